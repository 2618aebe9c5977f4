#include "cli/plan/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/plan/collectives.h"

namespace regatta::cli {
namespace {

using nlohmann::json;

// The numbers of a rank, in the order of the tables' columns.
using Figures = std::vector<std::int64_t>;

struct Extremes {
  std::int64_t least = 0, most = 0, sum = 0;
};

Extremes extremes_of(const std::vector<std::int64_t>& values) {
  Extremes e{values.front(), values.front(), 0};
  for (std::int64_t value : values) {
    e.least = std::min(e.least, value);
    e.most = std::max(e.most, value);
    e.sum += value;
  }
  return e;
}

// Each column by itself.
Figures fold(const std::vector<Figures>& rows, std::int64_t Extremes::*which) {
  Figures folded;
  for (std::size_t column = 0; column < rows.front().size(); ++column) {
    std::vector<std::int64_t> values;
    for (const Figures& row : rows) values.push_back(row[column]);
    folded.push_back(extremes_of(values).*which);
  }
  return folded;
}

Figures wire_figures(const RankCost& cost) {
  const sharding::WireBytes& wire = cost.wire;
  return {wire.reduce_scatter, wire.all_gather, wire.exchange, wire.vote, wire.total()};
}

Figures memory_figures(const RankCost& cost) {
  const RankMemory& memory = cost.memory;
  return {memory.parameters, memory.gradients, memory.state, memory.master, memory.matrices, cost.memory_total()};
}

std::string view_text(const sharding::View& view) {
  if (view.kind == sharding::View::Kind::elements) return "elements";
  std::string text = view.kind == sharding::View::Kind::matrix ? "matrix" : "";
  for (Line line : view.passes) text += std::string(text.empty() ? "" : "+") + (line == Line::row ? "rows" : "columns");
  return text + (view.block_scale ? "+block" : "");
}

std::string placement_text(const sharding::ParamSpec& spec) {
  return spec.placement.cuts.empty() ? "replicate" : spec.placement.text();
}

std::string row_of(const std::string& name, const Figures& figures) {
  std::string text = fmt::format("{:<26}", name);
  for (std::int64_t figure : figures) text += fmt::format(" {:>15}", figure);
  return text + "\n";
}

std::string head_of(const std::string& name, const std::vector<std::string>& columns) {
  std::string text = fmt::format("{:<26}", name);
  for (const std::string& column : columns) text += fmt::format(" {:>15}", column);
  return text + "\n";
}

std::string ranks_text(const std::vector<Figures>& ranks) {
  std::string text;
  if (ranks.size() <= listed_ranks) {
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) text += row_of(fmt::format("  rank {}", rank), ranks[rank]);
    return text;
  }
  text += row_of(fmt::format("  least of {} ranks", ranks.size()), fold(ranks, &Extremes::least));
  return text + row_of(fmt::format("  most of {} ranks", ranks.size()), fold(ranks, &Extremes::most));
}

std::vector<Figures> by_rank(const Alternative& alternative, Figures (*figures)(const RankCost&)) {
  std::vector<Figures> rows;
  for (const RankCost& cost : alternative.ranks) rows.push_back(figures(cost));
  return rows;
}

std::string params_text(const PlanReport& report) {
  const sharding::Plan& plan = report.plan;
  const std::vector<LineCount> lines = count_lines(plan);
  std::string text = fmt::format("{:<48} {:>14} {:<7} {:<12} {:<16} {:>9} {:>9} {:>6}\n", "parameter", "shape", "rule",
                                 "placement", "view", "closed", "open", "bucket");
  for (std::size_t p = 0; p < plan.params().size(); ++p) {
    const sharding::ParamSpec& spec = plan.params()[p];
    text += fmt::format("{:<48} {:>14} {:<7} {:<12} {:<16} {:>9} {:>9} {:>6}\n", spec.name,
                        fmt::format("{}", fmt::join(spec.shape, "x")), report.rules[p], placement_text(spec),
                        view_text(spec.views[0]), lines[p].closed(), lines[p].open, plan.layout(0).params[p].bucket);
  }
  return text;
}

std::string collectives_text(const sharding::Plan& plan) {
  const std::vector<Collective> step = collectives_of(plan);
  if (step.empty()) return "\nA step on one rank sends nothing.\n";
  std::string text =
      fmt::format("\nA step on mesh {}, in order:\n{:<36} {:>6} {:<22} {:>10} {:>14} {:>14}  {}\n", plan.mesh().text(),
                  "  message", "calls", "among", "open lines", "least bytes", "most bytes", "when");
  for (const Collective& c : step) {
    const Extremes bytes = extremes_of(c.bytes);
    text += fmt::format("{:<36} {:>6} {:<22} {:>10} {:>14} {:>14}  {}\n", "  " + c.name, c.calls, c.among,
                        c.lines > 0 ? std::to_string(c.lines) : "", bytes.least, bytes.most, c.when);
  }
  return text + "(bytes that a rank sends)\n";
}

const std::vector<std::string> wire_columns{"reduce-scatter", "all-gather", "exchange", "vote", "total"};
const std::vector<std::string> memory_columns{"parameters", "gradients", "state", "master", "whole matrices", "total"};

std::string comparison_text(const std::vector<Alternative>& alternatives) {
  std::string text;
  const auto table = [&](const std::string& head, const std::vector<std::string>& columns,
                         Figures (*figures)(const RankCost&)) {
    text += "\n" + head_of(head, columns);
    for (const Alternative& alternative : alternatives)
      text += row_of("  " + alternative.name, fold(by_rank(alternative, figures), &Extremes::most));
  };
  text += "\nThe same model and mesh, most of any rank:\n";
  table("bytes sent in a step", wire_columns, wire_figures);
  table("bytes kept", memory_columns, memory_figures);
  return text;
}

json wire_json(const Figures& f) {
  return {{"reduce_scatter", f[0]}, {"all_gather", f[1]}, {"exchange", f[2]}, {"vote", f[3]}, {"total", f[4]}};
}

json memory_json(const Figures& f) {
  return {{"parameters", f[0]}, {"gradients", f[1]},      {"state", f[2]},
          {"master", f[3]},     {"whole_matrices", f[4]}, {"total", f[5]}};
}

json params_json(const PlanReport& report) {
  const std::vector<LineCount> lines = count_lines(report.plan);
  json params = json::array();
  for (std::size_t p = 0; p < report.plan.params().size(); ++p) {
    const sharding::ParamSpec& spec = report.plan.params()[p];
    params.push_back({{"name", spec.name},
                      {"shape", spec.shape},
                      {"rule", report.rules[p]},
                      {"placement", spec.placement.text()},
                      {"view", view_text(spec.views[0])},
                      {"blocks", spec.blocks.size()},
                      {"lines", lines[p].all},
                      {"closed_lines", lines[p].closed()},
                      {"open_lines", lines[p].open},
                      {"bucket", report.plan.layout(0).params[p].bucket}});
  }
  return params;
}

json collectives_json(const sharding::Plan& plan) {
  json step = json::array();
  for (const Collective& c : collectives_of(plan)) {
    const Extremes bytes = extremes_of(c.bytes);
    step.push_back({{"name", c.name},
                    {"among", c.among},
                    {"when", c.when},
                    {"calls", c.calls},
                    {"open_lines", c.lines},
                    {"bytes", {{"least", bytes.least}, {"most", bytes.most}, {"sum", bytes.sum}}}});
  }
  return step;
}

json comparison_json(const std::vector<Alternative>& alternatives) {
  json comparison = json::array();
  for (const Alternative& alternative : alternatives) {
    const std::vector<Figures> wire = by_rank(alternative, wire_figures), memory = by_rank(alternative, memory_figures);
    json entry = {{"optimizer", alternative.name}};
    for (const auto& [key, which] :
         {std::pair{"least", &Extremes::least}, std::pair{"most", &Extremes::most}, std::pair{"sum", &Extremes::sum}})
      entry[key] = {{"wire_bytes", wire_json(fold(wire, which))}, {"memory_bytes", memory_json(fold(memory, which))}};
    for (const Figures& figures : wire) entry["exchange_by_rank"].push_back(figures[2]);
    comparison.push_back(std::move(entry));
  }
  return comparison;
}

}  // namespace

std::string plan_text(const PlanReport& report) {
  const Alternative& chosen = report.alternatives.front();
  std::string text = params_text(report) + collectives_text(report.plan);
  text += "\n" + head_of("bytes sent in a step", wire_columns) + ranks_text(by_rank(chosen, wire_figures));
  text += "\n" + head_of("bytes kept", memory_columns) + ranks_text(by_rank(chosen, memory_figures));
  if (report.alternatives.size() > 1) text += comparison_text(report.alternatives);
  return text + fmt::format("\nplan fingerprint {:016x}\n", report.plan.fingerprint());
}

json plan_json(const PlanReport& report) {
  const std::vector<RankCost>& costs = report.alternatives.front().ranks;
  json ranks = json::array();
  for (std::size_t rank = 0; rank < costs.size(); ++rank)
    ranks.push_back({{"rank", rank},
                     {"wire_bytes", wire_json(wire_figures(costs[rank]))},
                     {"memory_bytes", memory_json(memory_figures(costs[rank]))}});
  return {{"mesh", report.plan.mesh().text()},
          {"fingerprint", fmt::format("{:016x}", report.plan.fingerprint())},
          {"buckets", report.plan.bucket_count()},
          {"params", params_json(report)},
          {"collectives", collectives_json(report.plan)},
          {"ranks", ranks},
          {"comparison", comparison_json(report.alternatives)}};
}

}  // namespace regatta::cli
