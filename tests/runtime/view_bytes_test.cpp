// The table of docs/views.md, a test for every cell: the bytes a rank sends for a view under a placement are what the
// table's formula says, what the plan predicts, and what the transport counts. Each cell is also counted anew, line by
// line.

#include <gtest/gtest.h>

#include "cli/replay/run.h"
#include "kernels/matmul.h"
#include "runtime/engine/setup.h"
#include "runtime/transport/transport.h"
#include "tests/support/recorded_case.h"
#include "tests/support/spmd.h"

namespace regatta {
namespace {

// P, T, S and A of the document.
constexpr std::int64_t P = 4, T = 2, S = 24, A = 4;

struct Layout {
  const char* mesh;
  Mode mode;
  sharding::Cut cut;
  const char* place;
};

struct Cell {
  const char* placement;
  const char* view;  // elements, rows or columns
  MatrixShape shape;
  std::vector<Layout> layouts;
  std::int64_t bytes = 0;  // per rank
  bool at_most = false;    // `bytes` is a bound
};

void PrintTo(const Cell& cell, std::ostream* out) { *out << cell.placement << " x " << cell.view; }

std::vector<Cell> cells() {
  using enum Mode;
  using sharding::Cut;
  const std::vector<Layout> at_rows{{"dp=4", sharded, Cut::row, "dp:0"},
                                    {"dp=4", sharded, Cut::row, "dp:rows"},
                                    {"dp=4", zero1, Cut::row, ""},
                                    {"dp=4", zero2, Cut::row, ""}};
  const std::vector<Layout> anywhere{
      {"dp=4", sharded, Cut::row, "dp:flat"}, {"dp=4", zero1, Cut::element, ""}, {"dp=4", zero2, Cut::element, ""}};
  const std::vector<Layout> columns{{"tp=2", zero1, Cut::row, "tp:1"}, {"tp=2", sharded, Cut::row, "tp:1"}};
  const std::vector<Layout> columns_and_rows{{"dp=4,tp=2", zero1, Cut::row, "tp:1"},
                                             {"dp=4,tp=2", sharded, Cut::row, "tp:1,dp:0"}};
  const std::vector<Layout> rows_and_rows{{"dp=4,tp=2", zero2, Cut::row, "tp:0"},
                                          {"dp=4,tp=2", sharded, Cut::row, "tp:0,dp:0"}};
  const std::vector<Layout> at_matrices{{"dp=4", zero1, Cut::matrix, ""}, {"dp=4,tp=2", zero2, Cut::matrix, ""}};
  const MatrixShape wide{16, 44}, tall{40, 24};
  const MatrixShape wide_cut_inside{9, 44}, tall_cut_inside{35, 28};  // a quarter of either ends inside a row
  const std::int64_t line = S + A;
  return {
      {"row_shards", "elements", tall, at_rows, 0},
      {"row_shards", "rows", wide, at_rows, 0},
      {"row_shards", "columns", tall, at_rows, (P - 1) * tall.cols * line / P},
      {"flat_chunks", "elements", tall_cut_inside, anywhere, 0},
      {"flat_chunks", "rows", wide_cut_inside, anywhere, 2 * std::max(S, A), true},
      {"flat_chunks", "columns", tall_cut_inside, anywhere, (P - 1) * tall_cut_inside.cols * line / P},
      {"tp_columns", "elements", tall, columns, 0},
      {"tp_columns", "rows", wide, columns, (T - 1) * wide.rows * line / T},
      {"tp_columns", "columns", tall, columns, 0},
      {"tp_columns_dp_rows", "elements", tall, columns_and_rows, 0},
      {"tp_columns_dp_rows", "rows", wide, columns_and_rows, (T - 1) * wide.rows / P * line / T},
      {"tp_columns_dp_rows", "columns", tall, columns_and_rows, (P - 1) * tall.cols / T * line / P},
      {"tp_rows_dp_rows", "elements", tall, rows_and_rows, 0},
      {"tp_rows_dp_rows", "rows", wide, rows_and_rows, 0},
      {"tp_rows_dp_rows", "columns", tall, rows_and_rows, (P * T - 1) * tall.cols * line / (P * T)},
      {"whole_matrices", "elements", tall, at_matrices, 0},
      {"whole_matrices", "rows", wide, at_matrices, 0},
      {"whole_matrices", "columns", tall, at_matrices, 0},
  };
}

struct Job {
  cli::ReplayCase recorded;
  cli::ReplayOptions options;

  Job(const Layout& layout, const std::string& rule, MatrixShape shape,
      const std::vector<std::pair<std::string, std::string>>& settings = {}) {
    // Chunks cut at matrices need more than one of them to be of use.
    const int count = layout.cut == sharding::Cut::matrix ? 5 : 1;
    testing::CaseBuilder builder(3, 1);
    for (int i = 0; i < count; ++i) builder.add({"w" + std::to_string(i), {shape.rows, shape.cols}});
    recorded = builder.take();
    options.mesh = sharding::Mesh::parse(layout.mesh);
    options.engine.mode = layout.mode;
    options.engine.cut = layout.cut;
    options.steps = 1;
    options.groups = {{rule, make_rule(rule, settings), 1}};
    options.group_of.assign(count, 0);
    options.placement_of.assign(count, sharding::Placement::parse(layout.place));
    options.blocks_of.resize(count);
  }

  sharding::Plan plan() const {
    std::vector<Param> params;
    for (std::size_t p = 0; p < recorded.names.size(); ++p)
      params.push_back({recorded.names[p],
                        recorded.params.at(recorded.names[p]).shape,
                        DType::f32,
                        {},
                        options.placement_of[p],
                        {},
                        0});
    return make_plan(params, options.groups, options.mesh, options.engine);
  }

  /// What each rank sent.
  std::vector<sharding::WireBytes> counted() const {
    std::vector<sharding::WireBytes> bytes(options.mesh.world_size());
    testing::run_ranks(options.mesh.world_size(), [&](Transport& transport) {
      bytes[transport.rank()] = cli::replay(recorded, options, transport).counted;
    });
    return bytes;
  }
};

// Bytes on the whole mesh, without the plan's lines: for every row or column, how many ranks of a replica hold a piece
// of it.
std::int64_t count_anew(const sharding::Plan& plan, Line line) {
  std::int64_t total = 0;
  for (int p = 0; p < static_cast<int>(plan.params().size()); ++p) {
    const MatrixShape shape = plan.params()[p].blocks[0];
    const bool over_tp = plan.params()[p].placement.find("tp") != nullptr;
    for (int replica = 0; replica < (over_tp ? 1 : plan.mesh().size("tp")); ++replica) {
      std::vector<std::int64_t> holders(line == Line::row ? shape.rows : shape.cols);
      for (int rank = 0; rank < plan.mesh().world_size(); ++rank) {
        if (!over_tp && plan.mesh().coordinate(rank, "tp") != replica) continue;
        std::vector<bool> mine(holders.size());
        for (const sharding::Piece& piece : plan.layout(rank).pieces)
          for (std::int64_t e = piece.part.run.begin; piece.param == p && e < piece.part.run.end; ++e)
            mine[line == Line::row ? piece.part.rows.begin + e / piece.part.cols.size()
                                   : piece.part.cols.begin + e % piece.part.cols.size()] = true;
        for (std::size_t k = 0; k < mine.size(); ++k) holders[k] += mine[k];
      }
      for (std::int64_t count : holders) total += std::max<std::int64_t>(0, count - 1) * (S + A);
    }
  }
  return total;
}

class ViewTable : public ::testing::TestWithParam<Cell> {};

TEST_P(ViewTable, FormulaPlanAndTransportAgree) {
  const Cell& cell = GetParam();
  const bool elements = cell.view == std::string("elements");
  for (const Layout& layout : cell.layouts) {
    SCOPED_TRACE(std::string(layout.mesh) + " '" + layout.place + "' mode " +
                 std::to_string(static_cast<int>(layout.mode)));
    const Job job(layout, elements ? "adamw" : "reg", cell.shape);
    const sharding::Plan plan = job.plan();
    const std::vector<sharding::WireBytes> counted = job.counted();
    std::int64_t total = 0, most = 0;
    for (int rank = 0; rank < plan.mesh().world_size(); ++rank) {
      const std::int64_t planned = plan.wire_bytes(rank).exchange;
      if (cell.at_most) {
        EXPECT_LE(planned, cell.bytes) << "rank " << rank;
      } else {
        EXPECT_EQ(planned, cell.bytes) << "rank " << rank;
      }
      EXPECT_EQ(counted[rank], plan.wire_bytes(rank)) << "rank " << rank;
      total += planned;
      most = std::max(most, planned);
    }
    if (elements) continue;
    EXPECT_EQ(total, count_anew(plan, cell.view == std::string("rows") ? Line::row : Line::column));
    if (cell.at_most) {
      EXPECT_GT(most, 0) << "no row was split, so the bound says nothing";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cells, ViewTable, ::testing::ValuesIn(cells()),
                         [](const auto& info) { return std::string(info.param.placement) + "_" + info.param.view; });

TEST(ViewBytes, ARowOnManyRanksCostsItsOwnerAnAnswerToEach) {  // one row of 64 over 16 ranks: chunks shorter than a row
  const Job job({"dp=16", Mode::zero1, sharding::Cut::element, ""}, "reg", {1, 64});
  const std::vector<sharding::WireBytes> counted = job.counted();
  EXPECT_EQ(counted[0].exchange, 15 * A);
  for (int rank = 1; rank < 16; ++rank) EXPECT_EQ(counted[rank].exchange, S) << rank;
}

TEST(ViewBytes, OtherNormsAddOneNumberPerBlock) {  // p = 1: magnitudes and squares, then the block's own number
  const Job job({"dp=4", Mode::zero1, sharding::Cut::row, ""}, "reg", {40, 24}, {{"p", "1"}});
  const std::vector<sharding::WireBytes> counted = job.counted();
  std::int64_t total = 0;
  for (int rank = 0; rank < P; ++rank) {
    EXPECT_EQ(counted[rank], job.plan().wire_bytes(rank));
    total += counted[rank].exchange;
  }
  EXPECT_EQ(total, (P - 1) * 24 * (2 * S + A) + (P - 1) * (S + 8));
}

// The matrix column of the table: every holder but the owner sends its elements, and receives as many, with E bytes an
// element; rules' sums, factors and numbers ride along.
TEST(ViewBytes, WholeMatricesGoToTheirOwnersAndBack) {
  if (!kernels::has_matmul()) GTEST_SKIP() << "no BLAS in this build";
  constexpr std::int64_t E = 2;
  const MatrixShape shape{40, 24};
  const std::int64_t piece = shape.numel() / P;
  struct Extra {
    const char* rule;
    std::int64_t there, back;  // per holder of a quarter of the rows
  };
  for (const Extra& extra : std::vector<Extra>{{"muon", 0, 0},
                                               {"normuon", 0, 10 * 4},
                                               {"trasmuon", 24 * S, (10 + 24) * 4},
                                               {"namo", 2 * 32, 8},
                                               {"namo_d", 24 * 2 * S, 24 * 4}}) {
    for (const Layout& layout : {Layout{"dp=4", Mode::zero1, sharding::Cut::row, ""},
                                 Layout{"dp=4", Mode::sharded, sharding::Cut::row, "dp:0"},
                                 Layout{"dp=4", Mode::zero2, sharding::Cut::row, ""}}) {
      const Job job(layout, extra.rule, shape);
      const sharding::Plan plan = job.plan();
      const std::vector<sharding::WireBytes> counted = job.counted();
      const int owner = plan.matrices()[0].owner;
      for (int rank = 0; rank < P; ++rank) {
        EXPECT_EQ(counted[rank], plan.wire_bytes(rank));
        EXPECT_EQ(counted[rank].exchange, rank == owner ? (P - 1) * (E * piece + extra.back) : E * piece + extra.there)
            << extra.rule << " rank " << rank;
      }
    }
    const Job closed({"dp=4", Mode::zero1, sharding::Cut::matrix, ""}, extra.rule, shape);
    for (const sharding::WireBytes& bytes : closed.counted()) EXPECT_EQ(bytes.exchange, 0) << extra.rule;
  }
  // On a mesh, over both axes; fp32 on request.
  const Job mesh({"dp=4,tp=2", Mode::zero1, sharding::Cut::row, "tp:1"}, "muon", shape, {{"precision", "fp32"}});
  std::int64_t total = 0;
  for (const sharding::WireBytes& bytes : mesh.counted()) total += bytes.exchange;
  EXPECT_EQ(total, 2 * 4 * shape.numel() * (P * T - 1) / (P * T));
}

TEST(ViewBytes, GradientsParametersAndVote) {  // the columns beside the table
  const Job job({"dp=4,tp=2", Mode::zero1, sharding::Cut::row, "tp:0"}, "reg", {40, 24});
  const std::vector<sharding::WireBytes> counted = job.counted();
  const std::int64_t local = 40 * 24 / T * 4;
  for (int rank = 0; rank < P * T; ++rank) {
    EXPECT_EQ(counted[rank].reduce_scatter, local - local / P);
    EXPECT_EQ(counted[rank].all_gather, (P - 1) * local / P);
    EXPECT_EQ(counted[rank].vote,
              (P * T - 1) * (16 + 32 + 48 + (rank == 0 ? 64 : 0)));  // flags, one parameter, its figures; a command
  }
}

}  // namespace
}  // namespace regatta
