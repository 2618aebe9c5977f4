#include "runtime/engine/engine.h"

#include <algorithm>
#include <cmath>

#include "runtime/engine/engine_impl.h"
#include "runtime/stopwatch.h"

namespace regatta {

StepReport Engine::step(double scheduled_lr) {
  if (!std::isfinite(scheduled_lr))
    throw Error(Code::invalid_argument, "lr is " + std::to_string(scheduled_lr) + "; expected a finite number");
  Impl& s = *impl_;
  const double lr = s.commanded_lr.value_or(scheduled_lr);
  StepReport report = s.start_report(lr);
  Stopwatch total, phase;

  s.gradients.finish();
  if (s.device_side) s.device_side->take_gradients(s.gradients);
  report.times.grad_comm_seconds = static_cast<double>(s.gradients.busy_ns()) * 1e-9;
  report.times.wait_grad_seconds = phase.lap();

  s.hold_vote();
  report.times.vote_seconds = phase.lap();

  // On a device the step is put there before anyone knows whether it happens; its sweeps then do nothing if not.
  bool happens = !s.vote_is_known() || s.vote.culprit() < 0;
  if (happens) {
    if (s.vote_is_known()) s.take_norms(report);
    s.update(report, lr);
    happens = s.vote.culprit() < 0;
    if (happens && !s.vote_is_known()) s.take_norms(report);
  }
  report.command = s.vote.command();
  if (happens) {
    s.collect_health(report);
    report.step = ++s.step_count;
  } else {
    s.skip(report);
  }
  const bool stops = !happens && s.options.non_finite == NonFinite::stop;
  s.last_lr = lr;
  if (!stops) s.adapt_loss_scale(report.skipped);
  if (report.command.kind == Command::Kind::set) apply(report.command);
  s.gradients.begin_step();
  report.times.step_seconds = total.lap();
  s.count_bytes(report);
  // Whoever catches this may go on with other gradients.
  if (stops)
    throw Error(Code::non_finite, "the gradient of " + report.culprit + " is not finite in step " +
                                      std::to_string(s.step_count + 1) + "; no state was changed");
  return report;
}

void Engine::Impl::hold_vote() {
  if (vote_is_known()) {
    vote.send(*world, gradients.figures(), pending).wait();
    vote.count();
  } else {
    vote_on_device();
  }
  pending = {};
}

void Engine::Impl::update(StepReport& report, double lr) {
  Stopwatch phase;
  set_infos(lr, report.clip_factor);
  bind_gradients();
  if (device_side) begin_device_step();
  const bool proof_due = proof && proof->due(step_count + 1);
  if (proof_due) proof->begin(step_count + 1, works);
  sweep(report.times);
  if (proof_due) prove(report);
  phase.lap();
  for (Bucket& bucket : buckets) {
    await(bucket.gather);
    if (device_side) take_gathered(bucket);
  }
  if (device_side) end_device_step();
  for (const Bucket& bucket : buckets) {
    bucket.gather.wait();
    report.times.gather_comm_seconds += static_cast<double>(bucket.gather.busy_ns()) * 1e-9;
  }
  report.times.wait_gather_seconds = phase.lap();
}

void Engine::Impl::set_infos(double lr, double clip_factor) {
  for (std::size_t g = 0; g < groups.size(); ++g)
    infos[g] = {group_lr(static_cast<int>(g), lr), step_count + 1, static_cast<float>(clip_factor / loss_scale)};
}

void Engine::Impl::bind_gradients() {
  for (Work& work : works) {
    const Gradients::Reduced reduced =
        device_side ? device_side->reduced(gradients, work.bucket) : gradients.reduced(work.bucket);
    const std::int64_t chunk_begin = plan.layout(rank).buckets[work.bucket].chunk(dp_group->rank()).begin;
    work.tensors.grad_dtype = reduced.dtype;
    work.tensors.grad =
        static_cast<const std::byte*>(reduced.data) + (work.bucket_offset - chunk_begin) * size_of(reduced.dtype);
    work.health = {};
    work.block_terms = {};
  }
}

void Engine::Impl::observe(int round) {
  if (device_side) return device_side->sweep().lines().observe(round, device_side->stream());
  for (Work& work : works) observe_work(work, rule(work), round, infos[work.group], options.momentum_dtype, pool);
}

void Engine::Impl::update_bucket(int bucket) {
  if (device_side) return device_side->sweep().update(bucket, device_side->stream());
  for (int w : buckets[bucket].works) {
    Work& work = works[w];
    if (work.one_sweep)
      rule(work).update(work.tensors, work.shape, infos[work.group], options.momentum_dtype, pool, work.health);
  }
}

void Engine::Impl::update_closed(int first_bucket, int last_bucket) {
  for (int b = first_bucket; b < last_bucket; ++b) {
    update_bucket(b);
    if (!buckets[b].has_open_lines && buckets[b].last_wave < 0) gather(buckets[b]);
  }
}

void Engine::Impl::apply_open(Bucket& bucket) {
  if (device_side) return device_side->sweep().apply(static_cast<int>(&bucket - buckets.data()), device_side->stream());
  for (int w : bucket.works) {
    Work& work = works[w];
    if (work.one_sweep || work.passes.empty()) continue;
    apply_work(work, rule(work), infos[work.group], options.momentum_dtype, pool);
  }
}

void Engine::Impl::gather(Bucket& bucket) {
  if (device_side) return gather_from_device(bucket);
  bucket.gather = dp_group->all_gather(bucket.params, 0, bucket.bounds_bytes, bucket.label);
}

bool Engine::Impl::exchange_needed(int round) const {
  if (device_side) return device_side->sweep().lines().exchange_needed(round);
  return round < std::ssize(exchanges) && exchanges[round]->needed();
}
Ticket Engine::Impl::send_partials(int round) {
  if (device_side) return device_side->sweep().lines().send_partials(round, *world, device_side->stream());
  return exchanges[round]->send_partials(*world);
}
Ticket Engine::Impl::send_answers(int round) {
  if (device_side) return device_side->sweep().lines().send_answers(round, *world, device_side->stream());
  return exchanges[round]->send_answers(*world);
}
void Engine::Impl::take_answers(int round) {
  if (device_side) return device_side->sweep().lines().take_answers(round, device_side->stream());
  exchanges[round]->take_answers();
}

// Matrices first: their messages are the largest. Then open lines, so that their messages travel while closed rows and
// elements are swept.
void Engine::Impl::sweep(StepTimes& times) {
  if (device_side && device_side->alone()) return device_side->run_alone();
  int closed_done = 0;
  sweep_matrices(times, closed_done);
  sweep_lines(times, closed_done);
}

// Wave k's directions travel while wave k - 1 is computed, and its updates while wave k + 1 is.
void Engine::Impl::sweep_matrices(StepTimes& times, int& closed_done) {
  const int count = static_cast<int>(waves.size());
  if (count == 0) return;
  Stopwatch watch;
  const auto wait = [&](const Ticket& ticket) {
    times.sweep_seconds += watch.lap();
    ticket.wait();
    times.wait_exchange_seconds += watch.lap();
  };
  Ticket directions, updates;  // of the waves last sent
  for (int k = 0; k < count + 2; ++k) {
    Ticket sent;
    if (k < count) {
      waves[k]->direct(infos, options.momentum_dtype, pool);
      sent = waves[k]->send_directions(*world);
    }
    if (k == 0) update_closed(0, closed_done = static_cast<int>(buckets.size()));
    Ticket returned;
    if (k >= 1 && k - 1 < count) {
      wait(directions);
      waves[k - 1]->solve(infos, pool);
      returned = waves[k - 1]->send_updates(*world);
    }
    if (k >= 2 && k - 2 < count) {
      wait(updates);
      finish_wave(k - 2);
    }
    directions = sent;
    updates = returned;
  }
  times.sweep_seconds += watch.lap();
}

void Engine::Impl::finish_wave(int wave) {
  waves[wave]->take_updates();
  for (Work* work : waves[wave]->works())
    if (work->passes.empty())
      rule(*work).update(work->tensors, work->shape, infos[work->group], options.momentum_dtype, pool, work->health);
  for (Bucket& bucket : buckets)
    if (bucket.last_wave == wave && !bucket.has_open_lines) gather(bucket);
}

void Engine::Impl::sweep_lines(StepTimes& times, int& closed_done) {
  Stopwatch watch;
  const int bucket_count = static_cast<int>(buckets.size());
  for (int round = 0; round < rounds; ++round) {
    observe(round);
    if (!exchange_needed(round)) continue;
    const Ticket partials = send_partials(round);
    if (closed_done == 0) update_closed(0, closed_done = (bucket_count + 1) / 2);
    times.sweep_seconds += watch.lap();
    await(partials);
    times.wait_exchange_seconds += watch.lap();
    const Ticket answers = send_answers(round);
    if (closed_done < bucket_count) {
      update_closed(closed_done, bucket_count);
      closed_done = bucket_count;
    }
    times.sweep_seconds += watch.lap();
    await(answers);
    times.wait_exchange_seconds += watch.lap();
    take_answers(round);
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
