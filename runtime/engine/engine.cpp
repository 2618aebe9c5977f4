#include "runtime/engine/engine.h"

#include <algorithm>

#include "runtime/engine/engine_impl.h"
#include "runtime/stopwatch.h"

namespace regatta {

StepReport Engine::step(double scheduled_lr) {
  Impl& s = *impl_;
  const double lr = s.commanded_lr.value_or(scheduled_lr);
  StepReport report = s.start_report(lr);
  Stopwatch total, phase;

  s.gradients.finish();
  report.times.grad_comm_seconds = static_cast<double>(s.gradients.busy_ns()) * 1e-9;
  report.times.wait_grad_seconds = phase.lap();

  s.vote.send(*s.world, s.gradients.figures(), s.pending).wait();
  s.pending = {};
  s.vote.count();
  report.command = s.vote.command();
  report.times.vote_seconds = phase.lap();

  if (s.vote.culprit() >= 0) {
    s.skip(report);
  } else {
    s.take_norms(report);
    s.set_infos(lr, report.clip_factor);
    s.bind_gradients();
    const bool proof_due = s.proof && s.proof->due(s.step_count + 1);
    if (proof_due) s.proof->begin(s.step_count + 1, s.works);
    s.sweep(report.times);
    if (proof_due) s.prove(report);
    phase.lap();
    for (Impl::Bucket& bucket : s.buckets) {
      bucket.gather.wait();
      report.times.gather_comm_seconds += static_cast<double>(bucket.gather.busy_ns()) * 1e-9;
    }
    report.times.wait_gather_seconds = phase.lap();
    s.collect_health(report);
    report.step = ++s.step_count;
  }
  s.last_lr = lr;
  s.adapt_loss_scale(report.skipped);
  if (report.command.kind == Command::Kind::set) apply(report.command);
  s.gradients.begin_step();
  report.times.step_seconds = total.lap();
  s.count_bytes(report);
  return report;
}

void Engine::Impl::set_infos(double lr, double clip_factor) {
  for (std::size_t g = 0; g < groups.size(); ++g)
    infos[g] = {group_lr(static_cast<int>(g), lr), step_count + 1, static_cast<float>(clip_factor / loss_scale)};
}

void Engine::Impl::bind_gradients() {
  for (Work& work : works) {
    const Gradients::Reduced reduced = gradients.reduced(work.bucket);
    const std::int64_t chunk_begin = plan.layout(rank).buckets[work.bucket].chunk(dp_group->rank()).begin;
    work.tensors.grad_dtype = reduced.dtype;
    work.tensors.grad =
        static_cast<const std::byte*>(reduced.data) + (work.bucket_offset - chunk_begin) * size_of(reduced.dtype);
    work.health = {};
    work.block_terms = {};
  }
}

void Engine::Impl::observe(int round) {
  for (Work& work : works) observe_work(work, rule(work), round, infos[work.group], options.momentum_dtype, pool);
}

void Engine::Impl::update_closed(int first_bucket, int last_bucket) {
  for (int b = first_bucket; b < last_bucket; ++b) {
    for (int w : buckets[b].works) {
      Work& work = works[w];
      if (work.one_sweep)
        rule(work).update(work.tensors, work.shape, infos[work.group], options.momentum_dtype, pool, work.health);
    }
    if (!buckets[b].has_open_lines) gather(buckets[b]);
  }
}

void Engine::Impl::apply_open(Bucket& bucket) {
  for (int w : bucket.works) {
    Work& work = works[w];
    if (work.one_sweep) continue;
    apply_work(work, rule(work), infos[work.group], options.momentum_dtype, pool);
  }
}

void Engine::Impl::gather(Bucket& bucket) {
  bucket.gather = dp_group->all_gather(bucket.params, 0, bucket.bounds_bytes, bucket.label);
}

// Open lines first, so that their messages travel while closed rows and elements are swept.
void Engine::Impl::sweep(StepTimes& times) {
  Stopwatch watch;
  const int bucket_count = static_cast<int>(buckets.size());
  int closed_done = 0;
  for (int round = 0; round < rounds; ++round) {
    LineExchange* exchange = round < static_cast<int>(exchanges.size()) ? exchanges[round].get() : nullptr;
    observe(round);
    if (exchange == nullptr || !exchange->needed()) continue;
    const Ticket partials = exchange->send_partials(*world);
    if (closed_done == 0) update_closed(0, closed_done = (bucket_count + 1) / 2);
    times.sweep_seconds += watch.lap();
    partials.wait();
    times.wait_exchange_seconds += watch.lap();
    const Ticket answers = exchange->send_answers(*world);
    if (closed_done < bucket_count) {
      update_closed(closed_done, bucket_count);
      closed_done = bucket_count;
    }
    times.sweep_seconds += watch.lap();
    answers.wait();
    times.wait_exchange_seconds += watch.lap();
    exchange->take_answers();
  }
  update_closed(closed_done, bucket_count);
  for (Bucket& bucket : buckets) {
    if (!bucket.has_open_lines) continue;
    apply_open(bucket);
    gather(bucket);
  }
  times.sweep_seconds += watch.lap();
}

}  // namespace regatta
