#include "runtime/engine/engine.h"

#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "runtime/device/thread_pool.h"
#include "runtime/engine/agreement.h"
#include "runtime/engine/gradients.h"
#include "runtime/engine/line_exchange.h"
#include "runtime/engine/setup.h"
#include "runtime/engine/state.h"
#include "runtime/engine/vote.h"
#include "runtime/engine/work.h"
#include "runtime/transport/transport.h"

namespace regatta {
namespace {

class Stopwatch {
 public:
  /// Seconds since the last call.
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - last_).count();
    last_ = now;
    return seconds;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

std::vector<const Rule*> rules_of(const std::vector<Param>& params, const std::vector<Group>& groups) {
  std::vector<const Rule*> rules;
  for (const Param& param : params) rules.push_back(groups[param.group].rule.get());
  return rules;
}

std::vector<int> groups_of(const std::vector<Param>& params) {
  std::vector<int> groups;
  for (const Param& param : params) groups.push_back(param.group);
  return groups;
}

}  // namespace

struct Engine::Impl {
  struct Bucket {
    SymmetricBuffer params;
    DType dtype = DType::f32;
    std::vector<std::int64_t> bounds_bytes;
    std::string label;
    bool has_open_lines = false;  // on any rank, so that all ranks gather in the same order
    std::vector<int> works;
    Ticket gather;
  };

  Impl(std::vector<Param> params_in, std::vector<Group> groups_in, const sharding::Mesh& mesh, Transport& transport,
       EngineOptions options_in)
      : params(std::move(params_in)),
        groups(std::move(groups_in)),
        options(options_in),
        world(transport),
        rank(transport.rank()),
        plan(make_plan(params, groups, mesh, options)),
        rules(rules_of(params, groups)),
        dp_group(split(transport, mesh)),
        kernels(kernels::cpu_kernels()),
        pool(options.threads),
        gradients(plan, rank, *dp_group,
                  {options.micro_batches, options.accumulation == Accumulation::tree, options.mode == Mode::zero2},
                  kernels),
        state(plan, rank, rules, options.momentum_dtype),
        vote(plan, rank),
        works(make_works(plan, rank, rules, groups_of(params))),
        loss_scale(options.loss_scaling.initial) {
    allocate_buckets();
    bind_works();
    for (std::size_t k = 0; k < plan.rounds().size(); ++k)
      exchanges.push_back(std::make_unique<LineExchange>(plan, static_cast<int>(k), rank, works, rules));
    for (const Work& work : works) rounds = std::max(rounds, work.rounds());
    rounds = std::max(rounds, static_cast<int>(exchanges.size()));
    infos.resize(groups.size());
    health.resize(groups.size());
    all_health.resize(groups.size() * transport.world_size());
    health_bytes.assign(transport.world_size(), plan.options().figure_bytes);
  }

  // Both are collective, so every rank checks its plan before any of them goes on.
  std::unique_ptr<Transport> split(Transport& transport, const sharding::Mesh& mesh) {
    if (mesh.world_size() != transport.world_size())
      throw Error(Code::invalid_argument, "mesh " + mesh.text() + " has " + std::to_string(mesh.world_size()) +
                                              " ranks but the transport has " + std::to_string(transport.world_size()));
    check_same_plan(plan, transport);
    return transport.split(reduction_group(mesh, rank, options.mode));
  }

  void allocate_buckets();
  void bind_works();
  void fill_master_weights();
  std::byte* element(int bucket, std::int64_t offset) const {
    return buckets[bucket].params.data() + offset * size_of(buckets[bucket].dtype);
  }
  const Rule& rule(const Work& work) const { return *rules[work.param]; }

  void set_infos(double lr, double clip_factor);
  void bind_gradients();
  void observe(int round);
  void finish_round(int round);
  void update_closed(int first_bucket, int last_bucket);
  void apply_open(Bucket& bucket);
  void gather(Bucket& bucket);
  void sweep(StepTimes& times);
  void collect_health(StepReport& report);
  void adapt_loss_scale(bool skipped);
  StepReport start_report(double lr) const;
  void take_norms(StepReport& report) const;
  void skip(StepReport& report);
  void count_bytes(StepReport& report);

  std::vector<Param> params;
  std::vector<Group> groups;
  EngineOptions options;
  Transport& world;
  int rank;
  sharding::Plan plan;
  std::vector<const Rule*> rules;  // by parameter
  std::unique_ptr<Transport> dp_group;
  const kernels::KernelTable& kernels;
  ThreadPool pool;
  Gradients gradients;
  OptimizerState state;
  Vote vote;
  std::vector<Bucket> buckets;
  std::vector<Work> works;
  std::vector<std::unique_ptr<LineExchange>> exchanges;  // by round
  int rounds = 0;

  std::vector<StepInfo> infos;  // by group
  std::vector<kernels::SweepHealth> health, all_health;
  std::vector<std::int64_t> health_bytes;
  std::int64_t step_count = 0, skipped_steps = 0;
  double loss_scale = 1;
  int finite_steps = 0;       // since the last change of the loss scale
  TransportCounters counted;  // up to the last step
};

void Engine::Impl::allocate_buckets() {
  const sharding::RankLayout& layout = plan.layout(rank);
  for (std::size_t b = 0; b < layout.buckets.size(); ++b) {
    Bucket bucket;
    const sharding::BucketLayout& from = layout.buckets[b];
    bucket.dtype = params[from.entries.front().param].dtype;
    bucket.params = dp_group->allocate(from.numel * size_of(bucket.dtype));
    for (std::int64_t bound : from.bounds) bucket.bounds_bytes.push_back(bound * size_of(bucket.dtype));
    bucket.label = "parameters of bucket " + std::to_string(b);
    for (const sharding::BucketEntry& entry : from.entries) {
      const sharding::ParamSpec& spec = plan.params()[entry.param];
      for (const sharding::View& view : spec.views)
        bucket.has_open_lines |= view.kind == sharding::View::Kind::lines && !view.one_sweep_rows();
      for (const std::vector<sharding::Share>& round : plan.rounds())
        for (const sharding::Share& share : round) bucket.has_open_lines |= share.param == entry.param;
    }
    buckets.push_back(std::move(bucket));
  }
}

void Engine::Impl::bind_works() {
  const std::vector<sharding::Piece>& pieces = plan.layout(rank).pieces;
  for (std::size_t w = 0; w < works.size(); ++w) {
    Work& work = works[w];
    buckets[work.bucket].works.push_back(static_cast<int>(w));
    const std::int64_t inside = work.bucket_offset - pieces[work.piece].bucket_offset;
    for (const OptimizerState::Tensor& tensor : state.tensors(work.piece))
      work.state.push_back(tensor.data + inside * size_of(tensor.dtype));
    work.tensors.state = work.state;
    std::byte* param = element(work.bucket, work.bucket_offset);
    work.tensors.param_dtype = buckets[work.bucket].dtype;
    if (work.tensors.param_dtype == DType::f32) {
      work.tensors.weight = reinterpret_cast<float*>(param);
    } else {
      work.tensors.weight = state.master(work.piece) + inside;
      work.tensors.param = param;
    }
  }
}

void Engine::Impl::fill_master_weights() {
  const std::vector<sharding::Piece>& pieces = plan.layout(rank).pieces;
  for (std::size_t p = 0; p < pieces.size(); ++p)
    if (float* master = state.master(static_cast<int>(p)))
      kernels.to_f32(element(pieces[p].bucket, pieces[p].bucket_offset), buckets[pieces[p].bucket].dtype, master,
                     pieces[p].part.run.size());
}

void Engine::Impl::set_infos(double lr, double clip_factor) {
  for (std::size_t g = 0; g < groups.size(); ++g)
    infos[g] = {lr * groups[g].lr_scale, step_count + 1, static_cast<float>(clip_factor / loss_scale)};
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

// Adds this rank's share of the statistics of pass `round`, and finishes the lines nobody else holds.
void Engine::Impl::observe(int round) {
  for (Work& work : works) {
    if (round < static_cast<int>(work.passes.size())) {
      PassLines& lines = work.passes[round];
      std::fill(lines.stats.begin(), lines.stats.end(), kernels::LineSum{});
      rule(work).observe(round, work.tensors, work.shape, infos[work.group], options.momentum_dtype,
                         {work.factors.data(), static_cast<std::size_t>(round)}, lines.stats, pool);
      finish_closed_lines(work, rule(work), round);
    } else if (round + 1 == work.rounds() && work.block_closed) {
      work.block_sum = kernels::value(work.block_terms);
    }
  }
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
    const double scale = rule(work).step_scale(work.shape, infos[work.group], work.block_sum);
    for (float& factor : work.passes.back().inverse) factor = kernels::step_factor(factor, scale);
    rule(work).apply(work.tensors, work.shape, infos[work.group], options.momentum_dtype, work.factors, pool,
                     work.health);
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
    const Ticket partials = exchange->send_partials(world);
    if (closed_done == 0) update_closed(0, closed_done = (bucket_count + 1) / 2);
    times.sweep_seconds += watch.lap();
    partials.wait();
    times.wait_exchange_seconds += watch.lap();
    const Ticket answers = exchange->send_answers(world);
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

void Engine::Impl::collect_health(StepReport& report) {
  std::fill(health.begin(), health.end(), kernels::SweepHealth{});
  for (const Work& work : works)
    if (work.primary) health[work.group].add(work.health);
  const Ticket figures = world.all_gather_small(
      std::as_bytes(std::span(health)), std::as_writable_bytes(std::span(all_health)), health_bytes, "health figures");
  figures.wait();
  for (std::size_t g = 0; g < groups.size(); ++g) {
    kernels::SweepHealth total;
    for (int r = 0; r < world.world_size(); ++r) total.add(all_health[r * groups.size() + g]);
    GroupReport& out = report.groups[g];
    const auto numel = static_cast<double>(std::max<std::int64_t>(out.numel, 1));
    out.update_rms = std::sqrt(total.update_squares / numel);
    out.weight_rms = std::sqrt(total.weight_squares / numel);
    out.update_to_weight = out.weight_rms > 0 ? out.update_rms / out.weight_rms : 0;
    out.smallest_line_norm = std::isinf(total.smallest_norm) ? 0 : total.smallest_norm;
    out.largest_line_norm = total.largest_norm;
    out.zero_lines = total.zero_lines;
    out.clamped_lines = total.clamped_lines;
    out.non_finite_lines = total.non_finite_lines;
  }
}

void Engine::Impl::adapt_loss_scale(bool skipped) {
  const LossScaling& scaling = options.loss_scaling;
  if (scaling.growth_interval == 0) return;
  if (skipped) {
    loss_scale = std::max(scaling.smallest, loss_scale / 2);
    finite_steps = 0;
  } else if (++finite_steps == scaling.growth_interval) {
    loss_scale *= 2;
    finite_steps = 0;
  }
}

StepReport Engine::Impl::start_report(double lr) const {
  StepReport report;
  report.step = step_count;
  report.skipped_steps = skipped_steps;
  report.lr = lr;
  report.loss_scale = loss_scale;
  for (const Group& group : groups) report.groups.push_back({.name = group.name});
  for (std::size_t p = 0; p < params.size(); ++p)
    for (const MatrixShape& block : plan.params()[p].blocks) report.groups[params[p].group].numel += block.numel();
  return report;
}

// Norms of the raw gradients, before clipping; the sum over parameters runs in their order on every rank.
void Engine::Impl::take_norms(StepReport& report) const {
  double total = 0;
  std::vector<double> of_group(groups.size(), 0.0);
  for (std::size_t p = 0; p < params.size(); ++p) {
    total += vote.param_squares()[p];
    of_group[params[p].group] += vote.param_squares()[p];
  }
  report.grad_norm = std::sqrt(total) / loss_scale;
  for (std::size_t g = 0; g < groups.size(); ++g) report.groups[g].grad_norm = std::sqrt(of_group[g]) / loss_scale;
  // As torch.nn.utils.clip_grad_norm_ does.
  if (options.clip > 0) report.clip_factor = std::min(1.0, options.clip / (report.grad_norm + 1e-6));
}

void Engine::Impl::skip(StepReport& report) {
  report.culprit = params[vote.culprit()].name;
  if (options.non_finite == NonFinite::stop)
    throw Error(Code::non_finite, "the gradient of " + report.culprit + " is not finite in step " +
                                      std::to_string(step_count + 1) + "; no state was changed");
  report.skipped = true;
  report.skipped_steps = ++skipped_steps;
}

void Engine::Impl::count_bytes(StepReport& report) {
  const TransportCounters& now = world.counters();
  report.bytes = {now.reduce_scatter.bytes - counted.reduce_scatter.bytes,
                  now.all_gather.bytes - counted.all_gather.bytes, now.exchange.bytes - counted.exchange.bytes,
                  now.all_gather_small.bytes - counted.all_gather_small.bytes};
  counted = now;
}

StepReport Engine::step(double lr) {
  Impl& s = *impl_;
  StepReport report = s.start_report(lr);
  Stopwatch total, phase;

  s.gradients.finish();
  report.times.grad_comm_seconds = static_cast<double>(s.gradients.busy_ns()) * 1e-9;
  report.times.wait_grad_seconds = phase.lap();

  s.vote.send(s.world, s.gradients.figures()).wait();
  s.vote.count();
  report.times.vote_seconds = phase.lap();

  if (s.vote.culprit() >= 0) {
    s.skip(report);
  } else {
    s.take_norms(report);
    s.set_infos(lr, report.clip_factor);
    s.bind_gradients();
    s.sweep(report.times);
    phase.lap();
    for (Impl::Bucket& bucket : s.buckets) {
      bucket.gather.wait();
      report.times.gather_comm_seconds += static_cast<double>(bucket.gather.busy_ns()) * 1e-9;
    }
    report.times.wait_gather_seconds = phase.lap();
    s.collect_health(report);
    report.step = ++s.step_count;
  }
  s.adapt_loss_scale(report.skipped);
  s.gradients.begin_step();
  report.times.step_seconds = total.lap();
  s.count_bytes(report);
  return report;
}

Engine::Engine(std::vector<Param> params, std::vector<Group> groups, const sharding::Mesh& mesh, Transport& transport,
               EngineOptions options)
    : impl_(std::make_unique<Impl>(std::move(params), std::move(groups), mesh, transport, options)) {
  impl_->counted = transport.counters();
}

Engine::~Engine() = default;

ParamView Engine::param(int index) {
  const sharding::ParamLocation& at = impl_->plan.layout(impl_->rank).params.at(index);
  return {impl_->element(at.bucket, at.offset), at.numel, impl_->params[index].dtype};
}

void Engine::publish_params() {
  std::vector<std::uint64_t> hashes;
  std::vector<std::string> names;
  for (std::size_t b = 0; b < impl_->buckets.size(); ++b) {
    const SymmetricBuffer& values = impl_->buckets[b].params;
    hashes.push_back(XXH3_64bits(values.data(), static_cast<std::size_t>(values.bytes())));
    const auto& entries = impl_->plan.layout(impl_->rank).buckets[b].entries;
    names.push_back(impl_->params[entries.front().param].name + (entries.size() > 1 ? " and others" : ""));
  }
  check_same_values(hashes, names, *impl_->dp_group);
  impl_->fill_master_weights();
}

void Engine::add_grad(int index, const void* grad, DType dtype) {
  if (index < 0 || index >= static_cast<int>(impl_->params.size()))
    throw Error(Code::invalid_argument, "add_grad got parameter " + std::to_string(index) + "; there are " +
                                            std::to_string(impl_->params.size()));
  impl_->gradients.add(index, grad, dtype);
}

std::int64_t Engine::micro_batch_index(int k) const {
  const std::int64_t dp = impl_->plan.mesh().size("dp"), me = impl_->plan.mesh().coordinate(impl_->rank, "dp");
  return impl_->options.mode == Mode::zero2 ? k * dp + me : me * impl_->options.micro_batches + k;
}

double Engine::loss_scale() const { return impl_->loss_scale; }
std::int64_t Engine::step_count() const { return impl_->step_count; }
void Engine::set_step_count(std::int64_t step) { impl_->step_count = step; }
const sharding::Plan& Engine::plan() const { return impl_->plan; }
const EngineOptions& Engine::options() const { return impl_->options; }
std::int64_t Engine::state_bytes() const { return impl_->state.bytes(); }

std::vector<StatePart> Engine::state_parts() const {
  std::vector<StatePart> parts;
  const std::vector<sharding::Piece>& pieces = impl_->plan.layout(impl_->rank).pieces;
  for (std::size_t p = 0; p < pieces.size(); ++p) {
    const bool primary = impl_->plan.primary(impl_->rank, pieces[p].param);
    for (const OptimizerState::Tensor& tensor : impl_->state.tensors(static_cast<int>(p)))
      parts.push_back(
          {tensor.name, pieces[p].param, pieces[p].block, pieces[p].part, tensor.data, tensor.dtype, primary});
    if (float* master = impl_->state.master(static_cast<int>(p)))
      parts.push_back({"master", pieces[p].param, pieces[p].block, pieces[p].part, master, DType::f32, primary});
  }
  return parts;
}

void Engine::load_state(const StatePart& part, const void* data) {
  std::memcpy(const_cast<void*>(part.data), data, static_cast<std::size_t>(part.part.run.size() * size_of(part.dtype)));
}

}  // namespace regatta
