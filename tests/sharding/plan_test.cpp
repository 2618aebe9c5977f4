#include "sharding/plan.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <stdexcept>

#include "sharding/reshard.h"

namespace regatta::sharding {
namespace {

constexpr std::int64_t line_bytes = 24;

View rows_or_columns(MatrixShape shape) {
  return View::lines({shape.rows <= shape.cols ? Line::row : Line::column}, line_bytes);
}

ParamSpec matrix(std::string name, std::vector<std::int64_t> shape, std::string placement = "",
                 std::vector<std::int64_t> block_rows = {}) {
  ParamSpec spec;
  spec.name = std::move(name);
  spec.shape = std::move(shape);
  spec.placement = Placement::parse(placement);
  spec.blocks = logical_blocks(spec.name, spec.shape, block_rows);
  for (const MatrixShape& block : spec.blocks) spec.views.push_back(rows_or_columns(block));
  return spec;
}

PlanOptions with(Cut cut, bool sharded = false) {
  PlanOptions options;
  options.cut = cut;
  options.sharded = sharded;
  return options;
}

// Sums of open lines per round, and who holds them.
std::int64_t open_line_count(const Plan& plan) {
  std::int64_t count = 0;
  for (const auto& round : plan.rounds())
    for (const Share& share : round) count += share.lines.size();
  return count;
}

TEST(LogicalBlocks, VectorsMatricesExpertsAndFusedRows) {
  EXPECT_EQ(logical_blocks("v", {7}, {}), (std::vector<MatrixShape>{{1, 7}}));
  EXPECT_EQ(logical_blocks("conv", {8, 3, 2}, {}), (std::vector<MatrixShape>{{8, 6}}));
  EXPECT_EQ(logical_blocks("qkv", {8, 4}, {4, 2, 2}), (std::vector<MatrixShape>{{4, 4}, {2, 4}, {2, 4}}));
  EXPECT_EQ(logical_blocks("experts", {2, 3, 5}, {3, 3}), (std::vector<MatrixShape>{{3, 5}, {3, 5}}));
}

TEST(LogicalBlocks, WrongRowsAreRefusedByName) {
  try {
    logical_blocks("qkv", {8, 4}, {4, 2});
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(), "parameter qkv of shape 8x4 has blocks of 6 rows in all; expected 8");
  }
}

TEST(Plan, WideMatrixCutBetweenRowsNeedsNoMessage) {
  const Plan plan(Mesh::parse("dp=4"), {matrix("w", {8, 16})}, with(Cut::row));
  EXPECT_EQ(open_line_count(plan), 0);
  for (int rank = 0; rank < 4; ++rank) EXPECT_EQ(plan.wire_bytes(rank).exchange, 0);
}

TEST(Plan, WideMatrixCutAnywhereOpensOneRowPerShardEdge) {
  const Plan plan(Mesh::parse("dp=3"), {matrix("w", {4, 10})}, with(Cut::element));  // cuts at 13 and 26
  EXPECT_EQ(open_line_count(plan), 2);
}

TEST(Plan, TallMatrixOverDpOpensEveryColumn) {
  const Plan plan(Mesh::parse("dp=2"), {matrix("w", {10, 4})}, with(Cut::row));
  EXPECT_EQ(open_line_count(plan), 4);
  // Each rank finishes two columns: sends two partial sums, answers two.
  for (int rank = 0; rank < 2; ++rank) EXPECT_EQ(plan.wire_bytes(rank).exchange, 2 * line_bytes + 2 * 4);
}

TEST(Plan, CutAtMatricesNeedsNoMessage) {
  const Plan plan(Mesh::parse("dp=2"), {matrix("a", {10, 4}), matrix("b", {4, 10})}, with(Cut::matrix));
  EXPECT_EQ(open_line_count(plan), 0);
}

TEST(Plan, ColumnShardsOpenEveryRowOverTp) {
  const Plan plan(Mesh::parse("tp=2"), {matrix("w", {6, 16}, "tp:1")}, with(Cut::row));
  EXPECT_EQ(open_line_count(plan), 6);
}

TEST(Plan, RowShardsOverTpKeepWideRowsClosed) {
  const Plan plan(Mesh::parse("dp=2,tp=2"), {matrix("w", {8, 16}, "tp:0")}, with(Cut::row));
  EXPECT_EQ(open_line_count(plan), 0);
}

TEST(Plan, DirectionComesFromTheGlobalShape) {  // 8960 x 1536 over tp=8: every local shard is wide, the matrix is tall
  const Plan plan(Mesh::parse("tp=8"), {matrix("w", {8960, 1536}, "tp:0")}, with(Cut::row));
  EXPECT_EQ(plan.params()[0].views[0].passes, (std::vector<Line>{Line::column}));
  EXPECT_EQ(open_line_count(plan), 1536);
}

TEST(Plan, ReplicasEachFinishTheirOwnLines) {
  const Plan plan(Mesh::parse("dp=2,tp=2"), {matrix("w", {10, 4})}, with(Cut::row));
  EXPECT_EQ(open_line_count(plan), 8);
  for (const Share& share : plan.rounds()[0]) EXPECT_EQ(share.holders.size(), 2U);
  EXPECT_TRUE(plan.primary(0, 0));
  EXPECT_FALSE(plan.primary(1, 0));
}

TEST(Plan, ShardedRowsOverDp) {
  const Plan plan(Mesh::parse("dp=2"), {matrix("wide", {4, 8}, "dp:0"), matrix("tall", {8, 4}, "dp:0")},
                  with(Cut::row, true));
  EXPECT_EQ(open_line_count(plan), 4);
  EXPECT_EQ(plan.wire_bytes(0).reduce_scatter, 0);
  EXPECT_EQ(plan.wire_bytes(0).all_gather, 0);
}

TEST(Plan, StackedRowsOfExpertsAreCutBetweenExperts) {  // 3 x 2 x 4, a block for each expert
  const Plan plan(Mesh::parse("dp=2"), {matrix("experts", {3, 2, 4}, "dp:rows", {2, 2, 2})}, with(Cut::row, true));
  EXPECT_EQ(plan.layout(0).params[0].numel, 16);
  EXPECT_EQ(plan.layout(1).params[0].numel, 8);
  EXPECT_EQ(open_line_count(plan), 0);
  EXPECT_THROW(
      Plan(Mesh::parse("dp=2,tp=2"), {matrix("experts", {3, 2, 4}, "tp:0,dp:rows", {2, 2, 2})}, with(Cut::row, true)),
      std::invalid_argument);
}

TEST(Plan, StackedRowsOfAVectorAreItsElements) {
  const Plan plan(Mesh::parse("dp=2"), {matrix("bias", {5}, "dp:rows")}, with(Cut::row, true));
  EXPECT_EQ(plan.layout(0).params[0].numel, 3);
}

TEST(Plan, ZeroModesRefuseAPlacementOverDp) {
  EXPECT_THROW(Plan(Mesh::parse("dp=2"), {matrix("w", {4, 4}, "dp:0")}, with(Cut::row)), std::invalid_argument);
}

TEST(Plan, UnknownAxisIsRefused) {
  EXPECT_THROW(Plan(Mesh::parse("dp=2"), {matrix("w", {4, 4}, "tp:0")}, with(Cut::row)), std::invalid_argument);
}

TEST(Plan, FingerprintSeesEverythingThatMatters) {
  const auto fingerprint = [](std::vector<ParamSpec> params, PlanOptions options) {
    return Plan(Mesh::parse("dp=2"), std::move(params), options).fingerprint();
  };
  const auto base = fingerprint({matrix("w", {4, 4})}, with(Cut::row));
  EXPECT_EQ(base, fingerprint({matrix("w", {4, 4})}, with(Cut::row)));
  EXPECT_NE(base, fingerprint({matrix("v", {4, 4})}, with(Cut::row)));
  EXPECT_NE(base, fingerprint({matrix("w", {4, 5})}, with(Cut::row)));
  EXPECT_NE(base, fingerprint({matrix("w", {4, 4})}, with(Cut::matrix)));
  ParamSpec other_rule = matrix("w", {4, 4});
  other_rule.note = "group 1";
  EXPECT_NE(base, fingerprint({other_rule}, with(Cut::row)));
}

TEST(Plan, GradientAndParameterBytesAreThePayload) {
  PlanOptions options = with(Cut::element);
  options.figure_bytes = 48;
  const Plan plan(Mesh::parse("dp=4"), {matrix("w", {8, 8})}, options);
  const WireBytes bytes = plan.wire_bytes(1);
  EXPECT_EQ(bytes.reduce_scatter, 48 * 4);
  EXPECT_EQ(bytes.all_gather, 16 * 3 * 4);
  EXPECT_EQ(bytes.vote, 3 * (vote_flag_bytes + vote_bytes_per_param + 48));
}

// Random plans: every element of every block is owned exactly once per replica cell, runs tile the matrix, and the
// shares of a round cover exactly the lines that several ranks touch.
TEST(PlanProperties, HoldOnRandomPlans) {
  std::mt19937 random(7);
  const char* meshes[] = {"dp=1", "dp=2",      "dp=3",      "dp=5",      "dp=7",
                          "tp=3", "dp=2,tp=2", "dp=3,tp=2", "dp=2,tp=3", "ep=2,dp=2,tp=2"};
  for (int trial = 0; trial < 300; ++trial) {
    const Mesh mesh = Mesh::parse(meshes[random() % std::size(meshes)]);
    const bool sharded = random() % 3 == 0;
    std::vector<ParamSpec> params;
    for (int p = 0; p < 1 + static_cast<int>(random() % 4); ++p) {
      std::string placement;
      if (mesh.size("tp") > 1 && random() % 3 != 0) placement = random() % 2 ? "tp:0" : "tp:1";
      if (sharded && random() % 4 != 0) {
        const char* dp[] = {"dp:0", "dp:1", "dp:flat"};
        if (mesh.size("dp") > 1) placement += (placement.empty() ? "" : ",") + std::string(dp[random() % 3]);
      }
      std::vector<std::int64_t> blocks;
      std::int64_t rows = 1 + random() % 12;
      if (random() % 3 == 0) {
        blocks = {rows, 1 + static_cast<std::int64_t>(random() % 5)};
        rows += blocks[1];
      }
      params.push_back(
          matrix("p" + std::to_string(p), {rows, 1 + static_cast<std::int64_t>(random() % 12)}, placement, blocks));
    }
    PlanOptions options = with(static_cast<Cut>(random() % 3), sharded);
    options.bucket_bytes = 1 + random() % 400;
    const Plan plan(mesh, params, options);

    for (int p = 0; p < static_cast<int>(params.size()); ++p) {
      for (int b = 0; b < static_cast<int>(params[p].blocks.size()); ++b) {
        const MatrixShape shape = params[p].blocks[b];
        std::vector<int> owners(shape.numel(), 0);
        std::map<std::int64_t, std::set<int>> row_holders, column_holders;
        int cells = 0;
        for (int rank = 0; rank < mesh.world_size(); ++rank) {
          if (!plan.primary(rank, p)) continue;
          ++cells;
          for (const Piece& piece : plan.layout(rank).pieces) {
            if (piece.param != p || piece.block != b) continue;
            for (const Stretch& stretch : stretches(piece.part, shape.cols))
              for (std::int64_t e = stretch.in_block; e < stretch.in_block + stretch.count; ++e) {
                ++owners[e];
                row_holders[e / shape.cols].insert(rank);
                column_holders[e % shape.cols].insert(rank);
              }
          }
        }
        ASSERT_GT(cells, 0);
        for (int owner_count : owners) ASSERT_EQ(owner_count, 1) << plan.text();

        const bool by_rows = params[p].views[b].passes[0] == Line::row;
        std::map<std::int64_t, int> shared;
        for (const Share& share : plan.rounds().empty() ? std::vector<Share>{} : plan.rounds()[0]) {
          if (share.param != p || share.block != b || !plan.primary(share.owner, p)) continue;
          for (std::int64_t line = share.lines.begin; line < share.lines.end; ++line) {
            ++shared[line];
            const std::set<int>& expected = by_rows ? row_holders[line] : column_holders[line];
            EXPECT_EQ(std::set<int>(share.holders.begin(), share.holders.end()), expected);
          }
        }
        for (const auto& [line, holders] : by_rows ? row_holders : column_holders)
          EXPECT_EQ(shared[line], holders.size() > 1 ? 1 : 0) << "line " << line << "\n" << plan.text();
      }
    }
  }
}

}  // namespace
}  // namespace regatta::sharding
