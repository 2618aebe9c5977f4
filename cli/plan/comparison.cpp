#include "cli/plan/comparison.h"

#include "runtime/engine/setup.h"

namespace regatta::cli {
namespace {

std::vector<RankCost> costs(const sharding::Plan& plan, const std::vector<Param>& params,
                            const std::vector<Group>& groups, const EngineOptions& options) {
  std::vector<RankCost> ranks;
  for (int rank = 0; rank < plan.mesh().world_size(); ++rank)
    ranks.push_back({plan.wire_bytes(rank), memory_of(plan, rank, params, groups, options)});
  return ranks;
}

std::string names_of(const std::vector<Group>& groups) {
  std::string text;
  for (const Group& group : groups) text += (text.empty() ? "" : " + ") + group.name;
  return text;
}

bool sees_elements(const sharding::ParamSpec& param) {
  for (const sharding::View& view : param.views)
    if (view.kind != sharding::View::Kind::elements) return false;
  return true;
}

}  // namespace

std::vector<Alternative> compare(const sharding::Plan& plan, const std::vector<Param>& params,
                                 const std::vector<Group>& groups, const EngineOptions& options) {
  std::vector<Alternative> alternatives;
  alternatives.push_back({names_of(groups) + " (this plan)", costs(plan, params, groups, options)});
  std::vector<std::size_t> matrices;
  for (std::size_t p = 0; p < params.size(); ++p)
    if (!sees_elements(plan.params()[p])) matrices.push_back(p);
  if (matrices.empty()) return alternatives;

  const auto add = [&](const std::string& name, const std::vector<Param>& with, const std::vector<Group>& rules) {
    alternatives.push_back({name, costs(make_plan(with, rules, plan.mesh(), options), with, rules, options)});
  };
  std::vector<Param> all = params;
  for (Param& param : all) param.group = 0;
  add("adamw", all, {{"adamw", make_rule("adamw", {}), 1}});
  for (const std::string name : {"reg", "muon"}) {
    std::vector<Param> with = params;
    std::vector<Group> rules = groups;
    rules.push_back({name, make_rule(name, {}), 1});
    bool chosen = true;
    for (std::size_t p : matrices) {
      chosen = chosen && groups[params[p].group].rule->name() == name;
      with[p].group = static_cast<int>(groups.size());
    }
    if (!chosen) add(name + " for the matrices", with, rules);
  }
  return alternatives;
}

}  // namespace regatta::cli
