// What `regatta plan` prints against the plan itself and against counts element by element, on random models and
// meshes.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "cli/plan/collectives.h"
#include "cli/plan/comparison.h"
#include "tests/cli/random_model.h"

namespace regatta::cli {
namespace {

/// Lines that several ranks hold elements of, counted where the replica's part counts.
LineCount lines_by_element(const sharding::Plan& plan, std::size_t p) {
  LineCount count;
  const sharding::ParamSpec& spec = plan.params()[p];
  for (std::size_t b = 0; b < spec.blocks.size(); ++b)
    for (const Line line : spec.views[b].passes) {
      const std::int64_t lines = line == Line::row ? spec.blocks[b].rows : spec.blocks[b].cols;
      std::vector<std::set<int>> holders(static_cast<std::size_t>(lines));
      for (int rank = 0; rank < plan.mesh().world_size(); ++rank) {
        if (!plan.primary(rank, static_cast<int>(p))) continue;
        for (const sharding::Piece& piece : plan.layout(rank).pieces) {
          if (piece.param != static_cast<int>(p) || piece.block != static_cast<int>(b)) continue;
          for (std::int64_t i = piece.part.run.begin; i < piece.part.run.end; ++i) {
            const std::int64_t row = piece.part.rows.begin + i / piece.part.cols.size();
            const std::int64_t col = piece.part.cols.begin + i % piece.part.cols.size();
            holders[static_cast<std::size_t>(line == Line::row ? row : col)].insert(rank);
          }
        }
      }
      count.all += lines;
      for (const std::set<int>& who : holders) count.open += who.size() > 1 ? 1 : 0;
    }
  return count;
}

TEST(PlanFigures, LinesAreOpenWhereSeveralRanksHoldThem) {
  std::mt19937 random(31);
  std::int64_t open = 0, closed = 0;
  for (int i = 0; i < 120; ++i) {
    const Model model = random_model(random);
    const sharding::Plan plan = model.plan();
    const std::vector<LineCount> counts = count_lines(plan);
    ASSERT_EQ(counts.size(), model.params.size());
    for (std::size_t p = 0; p < counts.size(); ++p) {
      if (plan.params()[p].views[0].kind == sharding::View::Kind::matrix) continue;  // its owner has all of it
      const LineCount expected = lines_by_element(plan, p);
      EXPECT_EQ(counts[p].all, expected.all) << model.params[p].name << " of " << text_of(model);
      EXPECT_EQ(counts[p].open, expected.open) << model.params[p].name << " of " << text_of(model);
      EXPECT_EQ(counts[p].closed(), expected.all - expected.open);
      open += expected.open;
      closed += expected.closed();
    }
  }
  EXPECT_GT(open, 300);
  EXPECT_GT(closed, 300);
}

TEST(PlanFigures, MessagesAddUpToWhatARankSends) {
  std::mt19937 random(32);
  std::map<std::string, int> seen;
  for (int i = 0; i < 150; ++i) {
    const Model model = random_model(random);
    const sharding::Plan plan = model.plan();
    const int ranks = plan.mesh().world_size();
    std::vector<sharding::WireBytes> sums(static_cast<std::size_t>(ranks));
    std::int64_t lines = 0;
    for (const Collective& c : collectives_of(plan)) {
      ++seen[c.name.substr(0, c.name.find(','))];
      ASSERT_EQ(c.bytes.size(), static_cast<std::size_t>(ranks));
      std::int64_t all = 0;
      for (std::size_t r = 0; r < c.bytes.size(); ++r) {
        all += c.bytes[r];
        std::int64_t& sum = c.name.starts_with("reduce-scatter")                         ? sums[r].reduce_scatter
                            : c.name.starts_with("all-gather")                           ? sums[r].all_gather
                            : c.name.starts_with("vote") || c.name.starts_with("health") ? sums[r].vote
                                                                                         : sums[r].exchange;
        sum += c.bytes[r];
      }
      EXPECT_GT(all, 0) << c.name << " in " << text_of(model);
      EXPECT_GT(c.calls, 0) << c.name;
      if (c.name.starts_with("open lines")) lines += c.lines;
      const std::string peers = c.name.find("gradients") != std::string::npos && c.name.starts_with("reduce")
                                    ? "dp: " + std::to_string(plan.mesh().size("dp")) + " ranks"
                                : c.name.starts_with("vote") ? "all " + std::to_string(ranks) + " ranks"
                                                             : c.among;
      EXPECT_EQ(c.among, peers);
      const auto buckets = static_cast<std::int64_t>(plan.bucket_count());
      if (c.name.starts_with("all-gather")) {
        EXPECT_EQ(c.calls, buckets);
      }
      if (c.name.starts_with("reduce-scatter")) {
        EXPECT_EQ(c.calls, buckets * (model.options.mode == Mode::zero2 ? model.options.micro_batches : 1));
      }
    }
    for (int r = 0; r < ranks; ++r) EXPECT_EQ(sums[static_cast<std::size_t>(r)], plan.wire_bytes(r)) << text_of(model);
    std::int64_t shared = 0;
    for (const auto& round : plan.rounds())
      for (const sharding::Share& share : round) shared += share.lines.size();
    EXPECT_EQ(lines, shared);
  }
  for (const char* name :
       {"reduce-scatter of gradients", "vote: finite gradients", "open lines to their owners", "their norms back",
        "directions to matrix owners", "their updates back", "all-gather of parameters", "health figures"})
    EXPECT_GT(seen[name], 0) << name;
}

/// Sums over all ranks that a hand can count: what is kept once in all, and what on each replica.
TEST(PlanFigures, AlternativesKeepWhatTheirRulesDo) {
  Model model;
  model.mesh = sharding::Mesh::parse("dp=3,tp=2");
  model.groups = {{"reg", make_rule("reg", {}), 1}, {"adamw", make_rule("adamw", {}), 1}};
  model.params = {{"cut", {8, 6}, DType::f32, {}, sharding::Placement::parse("tp:0"), {}, 0},
                  {"narrow", {5, 7}, DType::bf16, {}, {}, {}, 0},
                  {"gain", {9}, DType::f32, {}, {}, {}, 1}};
  for (const DType momentum : {DType::f32, DType::bf16})
    for (const char* chosen : {"reg", "muon", "row_norm"}) {
      model.options.momentum_dtype = momentum;
      model.groups[0] = {chosen, make_rule(chosen, {}), 1};
      const sharding::Plan plan = model.plan();
      const std::vector<Alternative> all = compare(plan, model.params, model.groups, model.options);
      std::vector<std::string> names;
      for (const Alternative& each : all) names.push_back(each.name);
      std::vector<std::string> expected{std::string(chosen) + " + adamw (this plan)", "adamw"};
      for (const char* other : {"reg", "muon"})
        if (std::string(other) != chosen) expected.push_back(std::string(other) + " for the matrices");
      EXPECT_EQ(names, expected);
      const std::int64_t held = 48 + 2 * (35 + 9);  // elements of optimizer state: replicas on each tp rank
      const std::int64_t size = size_of(momentum);
      for (const Alternative& each : all) {
        ASSERT_EQ(each.ranks.size(), 6U);
        RankMemory sum;
        std::int64_t reduced = 0, gathered = 0;
        for (std::size_t r = 0; r < 6; ++r) {
          const RankMemory& m = each.ranks[r].memory;
          EXPECT_EQ(m.parameters, 24 * 4 + 35 * 2 + 9 * 4);
          EXPECT_EQ(each.ranks[r].memory_total(), m.parameters + m.gradients + m.state + m.master + m.matrices);
          sum.state += m.state;
          sum.master += m.master;
          sum.matrices += m.matrices;
          reduced += each.ranks[r].wire.reduce_scatter;
          gathered += each.ranks[r].wire.all_gather;
        }
        // Two rows of three, in each two thirds of everything are sent by or to each.
        EXPECT_EQ(reduced, 2 * 2 * (24 * 4 + 35 * 2 + 9 * 4)) << each.name;
        EXPECT_EQ(gathered, reduced) << each.name;
        EXPECT_EQ(sum.master, 2 * 35 * 4) << each.name;
        const bool adamw = each.name == "adamw", muon = each.name.starts_with("muon");
        if (!adamw) {
          EXPECT_EQ(sum.state, size * (held - 18) + (size + 4) * 18) << each.name;
        }
        if (adamw) {
          EXPECT_EQ(sum.state, (size + 4) * held) << each.name;
        }
        EXPECT_EQ(sum.matrices > 0, muon) << each.name;
      }
      for (std::size_t r = 0; r < 6; ++r) {
        EXPECT_EQ(all[0].ranks[r].wire, plan.wire_bytes(static_cast<int>(r)));
        EXPECT_EQ(all[1].ranks[r].wire.exchange, 0);
      }
    }
  // Chosen is what all matrices have, not one of them.
  model.groups = {{"row_norm", make_rule("row_norm", {}), 1},
                  {"adamw", make_rule("adamw", {}), 1},
                  {"reg", make_rule("reg", {}), 1}};
  for (const auto& [first, second] : {std::pair(0, 2), std::pair(2, 0), std::pair(2, 2)}) {
    model.params[0].group = first;
    model.params[1].group = second;
    std::vector<std::string> names;
    for (const Alternative& each : compare(model.plan(), model.params, model.groups, model.options))
      names.push_back(each.name);
    const bool all_reg = first == second;
    EXPECT_EQ(std::count(names.begin(), names.end(), "reg for the matrices"), all_reg ? 0 : 1) << first << second;
    EXPECT_EQ(names.size(), all_reg ? 3U : 4U);
  }
  for (Param& param : model.params) param.group = 1;
  EXPECT_EQ(compare(model.plan(), model.params, model.groups, model.options).size(), 1U);
}

}  // namespace
}  // namespace regatta::cli
