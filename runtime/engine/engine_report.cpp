// What a step tells: norms, health, bytes, and the loss scale that follows from it.

#include <algorithm>
#include <cmath>

#include "runtime/engine/engine_impl.h"

namespace regatta {

void Engine::Impl::collect_health(StepReport& report) {
  std::fill(health.begin(), health.end(), kernels::SweepHealth{});
  for (const Work& work : works)
    if (work.primary) health[work.group].add(work.health);
  const Ticket figures = world->all_gather_small(
      std::as_bytes(std::span(health)), std::as_writable_bytes(std::span(all_health)), health_bytes, "health figures");
  figures.wait();
  for (std::size_t g = 0; g < groups.size(); ++g) {
    kernels::SweepHealth total;
    for (int r = 0; r < world->world_size(); ++r) total.add(all_health[r * groups.size() + g]);
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
