#include "cli/plan/collectives.h"

#include <algorithm>

namespace regatta::cli {

std::vector<Collective> collectives_of(const sharding::Plan& plan) {
  const int ranks = plan.mesh().world_size();
  const auto buckets = static_cast<std::int64_t>(plan.bucket_count());
  const std::string peers = "dp: " + std::to_string(plan.mesh().size("dp")) + " ranks";
  const std::string everybody = "all " + std::to_string(ranks) + " ranks";
  const auto none = [&] { return std::vector<std::int64_t>(ranks); };

  Collective reduce{
      "reduce-scatter of gradients", peers, "behind backward", buckets * plan.options().reductions_per_step, 0, none()};
  Collective vote{"vote: finite gradients, norms", everybody, "before anything is written", 1, 0, none()};
  Collective gather{"all-gather of parameters", peers, "behind later buckets' sweep", buckets, 0, none()};
  Collective figures{"health figures", everybody, "at the end", 1, 0, none()};
  for (int rank = 0; rank < ranks; ++rank) {
    const sharding::WireBytes bytes = plan.wire_bytes(rank);
    reduce.bytes[rank] = bytes.reduce_scatter;
    figures.bytes[rank] = (ranks - 1) * plan.figure_bytes(rank);
    vote.bytes[rank] = bytes.vote - figures.bytes[rank];
    gather.bytes[rank] = bytes.all_gather;
  }

  std::vector<Collective> step;
  const auto add = [&](Collective& collective) {
    if (std::any_of(collective.bytes.begin(), collective.bytes.end(), [](std::int64_t b) { return b > 0; }))
      step.push_back(std::move(collective));
  };
  add(reduce);
  add(vote);
  Collective directions{"directions to matrix owners", "ranks that share one", "behind the wave before", 0, 0, none()};
  Collective updates{"their updates back", "ranks that share one", "behind the wave after", 0, 0, none()};
  int last_open = -1;
  for (const sharding::MatrixShare& share : plan.matrices()) {
    if (!share.open()) continue;
    const sharding::View& view = plan.params()[share.param].views[share.block];
    if (share.wave != last_open) ++directions.calls;
    last_open = share.wave;
    for (const sharding::MatrixShare::Holder& holder : share.holders) {
      if (holder.rank == share.owner) continue;
      directions.bytes[holder.rank] += bytes_to_owner(view, holder.part);
      updates.bytes[share.owner] += bytes_from_owner(view, holder.part);
    }
  }
  updates.calls = directions.calls;
  add(directions);
  add(updates);
  for (std::size_t k = 0; k < plan.rounds().size(); ++k) {
    const std::string pass = plan.rounds().size() > 1 ? ", round " + std::to_string(k + 1) : "";
    Collective sums{
        "open lines to their owners" + pass, "ranks that share one", "behind closed lines' sweep", 1, 0, none()};
    Collective answers{"their norms back" + pass, "ranks that share one", "behind closed lines' sweep", 1, 0, none()};
    for (const sharding::Share& share : plan.rounds()[k]) {
      const std::int64_t lines = share.lines.size();
      sums.lines += lines;
      for (int holder : share.holders)
        if (holder != share.owner) sums.bytes[holder] += lines * share.bytes_per_line;
      answers.bytes[share.owner] += lines * share.answer_bytes * (static_cast<std::int64_t>(share.holders.size()) - 1);
    }
    answers.lines = sums.lines;
    add(sums);
    add(answers);
  }
  add(gather);
  add(figures);
  return step;
}

std::vector<LineCount> count_lines(const sharding::Plan& plan) {
  std::vector<LineCount> counts(plan.params().size());
  for (std::size_t p = 0; p < counts.size(); ++p) {
    const sharding::ParamSpec& spec = plan.params()[p];
    for (std::size_t b = 0; b < spec.blocks.size(); ++b)
      for (Line line : spec.views[b].passes)
        counts[p].all += line == Line::row ? spec.blocks[b].rows : spec.blocks[b].cols;
  }
  for (const std::vector<sharding::Share>& round : plan.rounds())
    for (const sharding::Share& share : round) {
      const auto passes = static_cast<int>(plan.params()[share.param].views[share.block].passes.size());
      if (share.pass < passes && plan.primary(share.owner, share.param)) counts[share.param].open += share.lines.size();
    }
  return counts;
}

}  // namespace regatta::cli
