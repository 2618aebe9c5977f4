// What a step tells: norms, health, bytes, and the loss scale that follows from it.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "runtime/engine/engine_impl.h"

namespace regatta {

namespace {

// Figures that groups and parameters have alike.
template <class Report>
void take_health(Report& out, const kernels::SweepHealth& total) {
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

}  // namespace

void Engine::Impl::collect_health(StepReport& report) {
  std::fill(param_health.begin(), param_health.end(), kernels::SweepHealth{});
  if (device_side) {
    device_side->sweep().health().take(param_health);
  } else {
    for (const Work& work : works)
      if (work.primary) param_health[work.param].add(work.health);
  }
  const std::int64_t first = std::accumulate(health_bytes.begin(), health_bytes.begin() + rank, std::int64_t{0}) /
                             static_cast<std::int64_t>(sizeof(kernels::SweepHealth));
  for (std::size_t i = 0; i < own_health.size(); ++i) own_health[i] = param_health[health_params[first + i]];
  world
      ->all_gather_small(std::as_bytes(std::span(own_health)), std::as_writable_bytes(std::span(all_health)),
                         health_bytes, "health figures")
      .wait();

  std::fill(param_health.begin(), param_health.end(), kernels::SweepHealth{});
  for (std::size_t i = 0; i < all_health.size(); ++i) param_health[health_params[i]].add(all_health[i]);
  std::vector<kernels::SweepHealth> of_group(groups.size());
  for (std::size_t p = 0; p < params.size(); ++p) {
    take_health(param_reports[p], param_health[p]);
    param_reports[p].grad_norm = std::sqrt(vote.param_squares()[p]) / loss_scale;
    of_group[params[p].group].add(param_health[p]);
  }
  for (std::size_t g = 0; g < groups.size(); ++g) take_health(report.groups[g], of_group[g]);
}

void Engine::Impl::prove(StepReport& report) {
  report.proof = proof->finish(works, infos);
  if (report.proof->differing == 0 || !options.proof_stops) return;
  throw Error(Code::device, "step " + std::to_string(step_count + 1) + ": " + std::to_string(report.proof->differing) +
                                " numbers of " + params[report.proof->param].name +
                                " differ from the same step computed on one rank");
}

void Engine::Impl::adapt_loss_scale(bool skipped) {
  const LossScaling& scaling = options.loss_scaling;
  if (scaling.growth_interval == 0) return;
  if (skipped) {
    loss_scale = std::max(scaling.smallest, loss_scale / 2);
    finite_steps = 0;
  } else if (++finite_steps >= scaling.growth_interval) {  // a restored count may be larger
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
  for (std::size_t g = 0; g < groups.size(); ++g)
    report.groups.push_back({.name = groups[g].name, .lr = group_lr(static_cast<int>(g), lr)});
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
  report.skipped = true;
  if (options.non_finite == NonFinite::skip) report.skipped_steps = ++skipped_steps;
}

StepBytes Engine::Impl::sent_bytes() const {
  const TransportCounters& all = world->counters();
  const TransportCounters& dp = dp_group->counters();
  return {dp.reduce_scatter.bytes, dp.all_gather.bytes, all.exchange.bytes, all.all_gather_small.bytes};
}

void Engine::Impl::count_bytes(StepReport& report) {
  const StepBytes now = sent_bytes();
  report.bytes = {now.reduce_scatter - counted.reduce_scatter, now.all_gather - counted.all_gather,
                  now.exchange - counted.exchange, now.vote - counted.vote};
  counted = now;
}

}  // namespace regatta
