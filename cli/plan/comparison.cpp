#include "cli/plan/comparison.h"

#include "cli/plan/muon_model.h"
#include "runtime/engine/setup.h"

namespace regatta::cli {
namespace {

std::vector<RankCost> costs(const sharding::Plan& plan, const std::vector<Param>& params,
                            const std::vector<Group>& groups, const EngineOptions& options) {
  std::vector<RankCost> ranks;
  for (int rank = 0; rank < plan.mesh().world_size(); ++rank)
    ranks.push_back({plan.wire_bytes(rank), memory_of(plan, rank, params, groups, options), 0});
  return ranks;
}

std::string names_of(const std::vector<Group>& groups) {
  std::string text;
  for (const Group& group : groups) text += (text.empty() ? "" : " + ") + group.name;
  return text;
}

bool sees_lines(const sharding::Plan& plan) {
  for (const sharding::ParamSpec& spec : plan.params())
    for (const sharding::View& view : spec.views)
      if (view.kind == sharding::View::Kind::lines) return true;
  return false;
}

}  // namespace

std::vector<Alternative> compare(const sharding::Plan& plan, const std::vector<Param>& params,
                                 const std::vector<Group>& groups, const EngineOptions& options) {
  std::vector<Alternative> alternatives;
  alternatives.push_back({names_of(groups) + " (this plan)", false, costs(plan, params, groups, options)});
  if (!sees_lines(plan)) return alternatives;

  std::vector<Param> all = params;
  for (Param& param : all) param.group = 0;
  const std::vector<Group> adamw{{"adamw", make_rule("adamw", {}), 1}};
  alternatives.push_back({"adamw", false, costs(make_plan(all, adamw, plan.mesh(), options), all, adamw, options)});

  // One momentum, as REG keeps; only the exchange differs, and the room for whole matrices.
  Alternative muon{"gather-based Muon (model)", true, alternatives.front().ranks};
  const MatrixGather gather = gather_matrices(plan, size_of(options.momentum_dtype));
  for (std::size_t rank = 0; rank < muon.ranks.size(); ++rank) {
    muon.ranks[rank].wire.exchange = gather.sent[rank];
    muon.ranks[rank].gathered = gather.gathered[rank];
  }
  alternatives.push_back(std::move(muon));
  return alternatives;
}

}  // namespace regatta::cli
