#include "runtime/telemetry/page.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>
#include <unistd.h>

#include <fstream>

namespace regatta {
namespace {

using metrics::Metric;
using prometheus::ClientMetric;
using prometheus::MetricFamily;

class Page {
 public:
  explicit Page(const Labels& labels) : labels_(labels) {}

  void add(const Metric& metric, double value, const Labels& more = {}) {
    ClientMetric& entry = entry_of(metric, more);
    if (metric.type == metrics::Type::counter)
      entry.counter.value = value;
    else
      entry.gauge.value = value;
  }
  void add(const Metric& metric, const TimeHistogram& times, const Labels& more = {}) {
    ClientMetric& entry = entry_of(metric, more);
    std::uint64_t count = 0;
    for (std::size_t i = 0; i < times.counts.size(); ++i) {
      count += times.counts[i];
      const bool last = i == metrics::time_bounds.size();
      entry.histogram.bucket.push_back({count, last ? __builtin_inf() : metrics::time_bounds[i]});
    }
    entry.histogram.sample_count = count;
    entry.histogram.sample_sum = times.sum;
  }
  std::string text() const { return prometheus::TextSerializer().Serialize(families_); }

 private:
  ClientMetric& entry_of(const Metric& metric, const Labels& more) {
    if (families_.empty() || families_.back().name != metric.name) {
      MetricFamily& family = families_.emplace_back();
      family.name = metric.name;
      family.help = metric.help;
      family.type = metric.type == metrics::Type::counter ? prometheus::MetricType::Counter
                    : metric.type == metrics::Type::gauge ? prometheus::MetricType::Gauge
                                                          : prometheus::MetricType::Histogram;
    }
    ClientMetric& entry = families_.back().metric.emplace_back();
    for (const Labels* part : {&labels_, &more})
      for (const auto& [name, value] : *part) entry.label.push_back({name, value});
    return entry;
  }

  const Labels& labels_;
  std::vector<MetricFamily> families_;  // entries of a metric are added one after another
};

/// Of this process, now; 0 where the kernel does not say.
double resident_bytes() {
  long pages_in_all = 0, pages = 0;
  std::ifstream("/proc/self/statm") >> pages_in_all >> pages;
  return static_cast<double>(pages) * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

double spread_of(double smallest, double largest) { return smallest > 0 ? largest / smallest : 0; }

void add_groups(Page& page, const StepReport& report) {
  const auto each = [&](const Metric& metric, const auto& value) {
    for (const GroupReport& group : report.groups) page.add(metric, value(group), {{"group", group.name}});
  };
  each(metrics::group_grad_norm, [](const GroupReport& g) { return g.grad_norm; });
  each(metrics::update_rms, [](const GroupReport& g) { return g.update_rms; });
  each(metrics::normalized_update_rms, [&](const GroupReport& g) { return g.lr > 0 ? g.update_rms / g.lr : 0; });
  each(metrics::weight_rms, [](const GroupReport& g) { return g.weight_rms; });
  each(metrics::update_to_weight, [](const GroupReport& g) { return g.update_to_weight; });
  each(metrics::line_norm_min, [](const GroupReport& g) { return g.smallest_line_norm; });
  each(metrics::line_norm_max, [](const GroupReport& g) { return g.largest_line_norm; });
  each(metrics::line_spread, [](const GroupReport& g) { return spread_of(g.smallest_line_norm, g.largest_line_norm); });
  each(metrics::zero_lines, [](const GroupReport& g) { return static_cast<double>(g.zero_lines); });
  each(metrics::clamped_lines, [](const GroupReport& g) { return static_cast<double>(g.clamped_lines); });
  each(metrics::non_finite_lines, [](const GroupReport& g) { return static_cast<double>(g.non_finite_lines); });
}

void add_communication(Page& page, const Snapshot& s) {
  const auto add = [&](const Metric& metric, const char* collective, double value) {
    page.add(metric, value, {{"collective", collective}});
  };
  add(metrics::sent_bytes, "reduce_scatter", static_cast<double>(s.sent.reduce_scatter));
  add(metrics::sent_bytes, "all_gather", static_cast<double>(s.sent.all_gather));
  add(metrics::sent_bytes, "exchange", static_cast<double>(s.sent.exchange));
  add(metrics::sent_bytes, "vote", static_cast<double>(s.sent.vote));
  add(metrics::communication_seconds, "reduce_scatter", s.times.grad_comm_seconds);
  add(metrics::communication_seconds, "all_gather", s.times.gather_comm_seconds);
  add(metrics::exposed_seconds, "reduce_scatter", s.times.wait_grad_seconds);
  add(metrics::exposed_seconds, "exchange", s.times.wait_exchange_seconds);
  add(metrics::exposed_seconds, "all_gather", s.times.wait_gather_seconds);
}

}  // namespace

std::string metrics_page(const Snapshot& s, const PageFacts& facts) {
  Page page(facts.labels);
  page.add(metrics::info, 1, facts.info);
  page.add(metrics::world_size, facts.world_size);
  page.add(metrics::last_save_timestamp, s.last_save_timestamp);
  page.add(metrics::last_step_timestamp, s.last_step_timestamp);
  page.add(metrics::steps, static_cast<double>(s.report.step));
  page.add(metrics::skipped_steps, static_cast<double>(s.report.skipped_steps));
  page.add(metrics::clipped_steps, static_cast<double>(s.clipped_steps));
  page.add(metrics::setting_changes, static_cast<double>(s.setting_changes));
  page.add(metrics::tokens, static_cast<double>(s.tokens));
  page.add(metrics::proofs, static_cast<double>(s.proofs));
  page.add(metrics::proof_differences, static_cast<double>(s.proof_differences));
  page.add(metrics::state_bytes, static_cast<double>(facts.state_bytes));
  page.add(metrics::resident_memory, resident_bytes());
  if (s.loss) page.add(metrics::loss, *s.loss);
  if (s.steps > 0) {
    page.add(metrics::learning_rate, s.report.lr);
    page.add(metrics::loss_scale, s.report.loss_scale);
    page.add(metrics::grad_norm, s.report.grad_norm);
    page.add(metrics::clip, s.report.clip_factor);
    add_groups(page, s.report);
    for (const TopParam& top : s.by_update) page.add(metrics::param_update_rms, top.value, {{"param", top.name}});
    for (const TopParam& top : s.by_spread) page.add(metrics::param_line_spread, top.value, {{"param", top.name}});
  }
  page.add(metrics::step_seconds, s.step);
  for (std::size_t i = 0; i < s.phases.size(); ++i)
    page.add(metrics::phase_seconds, s.phases[i], {{"phase", std::string(metrics::phases[i])}});
  add_communication(page, s);
  return page.text();
}

}  // namespace regatta
