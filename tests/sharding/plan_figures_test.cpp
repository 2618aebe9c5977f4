// A plan's rounds, waves, bytes, refusals and fingerprint, for views of every kind.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <stdexcept>

#include "sharding/plan.h"

namespace regatta::sharding {
namespace {

ParamSpec matrix(const std::string& name, std::vector<std::int64_t> shape, const View& view,
                 const std::string& placement = "", const std::vector<std::int64_t>& block_rows = {}) {
  ParamSpec spec;
  spec.name = name;
  spec.shape = std::move(shape);
  spec.placement = Placement::parse(placement);
  spec.blocks = logical_blocks(name, spec.shape, block_rows);
  spec.views.assign(spec.blocks.size(), view);
  return spec;
}

const View whole_matrix = View::matrix({.element_bytes = 2,
                                        .row_bytes = 3,
                                        .column_bytes = 5,
                                        .block_bytes = 7,
                                        .row_answer_bytes = 11,
                                        .column_answer_bytes = 13,
                                        .block_answer_bytes = 17});

// All bytes, share by share, of plans with lines, blocks' numbers and whole matrices on random meshes.
TEST(PlanFigures, BytesAreThoseOfTheSharesAndPieces) {
  std::mt19937 random(21);
  const char* meshes[] = {"dp=1", "dp=2", "dp=3", "tp=3", "dp=2,tp=2", "dp=3,tp=2", "ep=2,dp=2,tp=2"};
  for (int round = 0; round < 200; ++round) {
    const Mesh mesh = Mesh::parse(meshes[random() % std::size(meshes)]);
    const View views[] = {View::elements(),
                          View::lines({Line::row}, 24),
                          View::lines({Line::column, Line::row}, 48, 40),
                          View::lines({Line::row, Line::column, Line::row}, 8, 16),
                          whole_matrix,
                          View::matrix({.element_bytes = 4}, {Line::row}, 24, 12)};
    PlanOptions options;
    options.sharded = random() % 3 == 0;
    options.cut = static_cast<Cut>(random() % 3);
    options.bucket_bytes = 1 + random() % 300;
    options.reductions_per_step = 1 + static_cast<int>(random() % 3);
    options.accumulates_in_f32 = random() % 2 == 0;
    options.figure_bytes = 48;
    std::vector<ParamSpec> params;
    for (int p = 0; p < 1 + static_cast<int>(random() % 5); ++p) {
      std::string placement;
      if (mesh.size("tp") > 1 && random() % 3 != 0) placement = random() % 2 ? "tp:0" : "tp:1";
      if (options.sharded && mesh.size("dp") > 1 && random() % 3 != 0)
        placement += (placement.empty() ? "" : ",") + std::string(random() % 2 ? "dp:0" : "dp:flat");
      params.push_back(
          matrix("p" + std::to_string(p),
                 {1 + static_cast<std::int64_t>(random() % 9), 1 + static_cast<std::int64_t>(random() % 9)},
                 views[random() % std::size(views)], placement));
      params.back().dtype = static_cast<DType>(random() % 3);
      params.back().grad_dtype = static_cast<DType>(random() % 3);
    }
    const Plan plan(mesh, params, options);
    const int world = mesh.world_size();
    std::vector<WireBytes> expected(static_cast<std::size_t>(world));
    for (int rank = 0; rank < world; ++rank) {
      // Parameters of which this rank holds a piece and no earlier replica does.
      std::int64_t voted = 0;
      for (int p = 0; p < static_cast<int>(params.size()); ++p) {
        bool holds = false, first = true;
        for (const Piece& piece : plan.layout(rank).pieces) holds = holds || piece.param == p;
        for (const Axis& axis : mesh.axes()) {
          const bool cut = params[p].placement.find(axis.name) || (axis.name == "dp" && !options.sharded);
          first = first && (cut || mesh.coordinate(rank, axis.name) == 0);
        }
        EXPECT_EQ(plan.primary(rank, p), first);
        const std::vector<int> voting = plan.voted_params(rank);
        EXPECT_EQ(std::count(voting.begin(), voting.end(), p), holds && first ? 1 : 0);
        voted += holds && first;
      }
      EXPECT_EQ(plan.vote_bytes(rank), 16 + 32 * voted + (rank == 0 ? 64 : 0));
      EXPECT_EQ(plan.figure_bytes(rank), 48 * voted);
      expected[rank].vote = (world - 1) * (plan.vote_bytes(rank) + 48 * voted);
      if (options.sharded) continue;
      for (const BucketLayout& bucket : plan.layout(rank).buckets) {
        const ParamSpec& one = params[bucket.entries[0].param];
        for (const BucketEntry& entry : bucket.entries) {
          EXPECT_EQ(params[entry.param].dtype, one.dtype);
          EXPECT_EQ(params[entry.param].grad_dtype, one.grad_dtype);
        }
        const int dp = mesh.size("dp"), me = mesh.coordinate(rank, "dp");
        const std::int64_t grad_bytes = options.accumulates_in_f32 ? 4 : size_of(one.grad_dtype);
        for (int other = 0; other < dp; ++other) {
          if (other == me) continue;
          expected[rank].reduce_scatter += bucket.chunk(other).size() * grad_bytes * options.reductions_per_step;
          expected[rank].all_gather += bucket.chunk(me).size() * size_of(one.dtype);
        }
      }
    }
    for (std::size_t k = 0; k < plan.rounds().size(); ++k)
      for (const Share& share : plan.rounds()[k]) {
        const View& view = params[share.param].views[share.block];
        const bool number = share.pass == static_cast<int>(view.passes.size());
        EXPECT_EQ(share.pass, static_cast<int>(k));
        EXPECT_EQ(share.bytes_per_line, number ? view.bytes_per_block : view.bytes_per_line);
        EXPECT_EQ(share.answer_bytes, number ? 8 : 4);
        EXPECT_TRUE(std::binary_search(share.holders.begin(), share.holders.end(), share.owner));
        EXPECT_TRUE(std::is_sorted(share.holders.begin(), share.holders.end()));
        if (number) {
          EXPECT_TRUE(view.block_scale);
          EXPECT_EQ(share.lines, (Range{0, 1}));
        }
        for (const int holder : share.holders) {
          if (holder == share.owner) continue;
          expected[holder].exchange += share.lines.size() * share.bytes_per_line;
          expected[share.owner].exchange += share.lines.size() * share.answer_bytes;
        }
      }
    int wave = 0;
    std::map<int, std::size_t> of_wave;
    for (const MatrixShare& share : plan.matrices()) {
      const View& view = params[share.param].views[share.block];
      EXPECT_TRUE(share.wave == wave || share.wave == wave + 1) << "waves follow one another";
      wave = share.wave;
      ++of_wave[wave];
      bool owned = false;
      for (const MatrixShare::Holder& holder : share.holders) {
        owned = owned || holder.rank == share.owner;
        bool found = false;
        for (const Piece& piece : plan.layout(holder.rank).pieces)
          found = found || (piece.param == share.param && piece.block == share.block && piece.part == holder.part);
        EXPECT_TRUE(found) << "a holder's part is its piece";
        if (holder.rank == share.owner) continue;
        const std::int64_t elements = (holder.part.run.size() * view.traffic.element_bytes + 3) / 4 * 4,
                           rows = holder.part.matrix_run().touched_rows().size(), cols = holder.part.cols.size();
        expected[holder.rank].exchange +=
            elements + rows * view.traffic.row_bytes + cols * view.traffic.column_bytes + view.traffic.block_bytes;
        expected[share.owner].exchange += elements + rows * view.traffic.row_answer_bytes +
                                          cols * view.traffic.column_answer_bytes + view.traffic.block_answer_bytes;
      }
      EXPECT_TRUE(owned);
    }
    EXPECT_EQ(plan.wave_count(), plan.matrices().empty() ? 0 : wave + 1);
    for (int w = 0; w + 1 < plan.wave_count(); ++w) EXPECT_GE(of_wave[w], static_cast<std::size_t>(world));
    // Every piece of a matrix that is seen whole has one share that speaks of it.
    for (int rank = 0; rank < world; ++rank)
      for (const Piece& piece : plan.layout(rank).pieces) {
        if (params[piece.param].views[piece.block].kind != View::Kind::matrix) continue;
        int spoken = 0;
        for (const MatrixShare& share : plan.matrices())
          for (const MatrixShare::Holder& holder : share.holders)
            spoken += share.param == piece.param && share.block == piece.block && holder.rank == rank;
        EXPECT_EQ(spoken, 1);
      }
    for (int rank = 0; rank < world; ++rank)
      EXPECT_EQ(plan.wire_bytes(rank), expected[rank]) << rank << '\n' << plan.text();
  }
}

// The block's own number is one more line, of all that hold a part, after the last pass; work goes round.
TEST(PlanFigures, LinesAndNumbersGoRoundTheOwners) {
  for (const View& view : {View::lines({Line::row}, 24), View::lines({Line::row}, 24, 24)}) {
    std::vector<ParamSpec> params;
    for (int i = 0; i < 12; ++i) params.push_back(matrix("w" + std::to_string(i), {3, 10}, view));
    PlanOptions options;
    options.cut = Cut::element;
    options.bucket_bytes = 1;  // a bucket each, cut in its middle row
    const Plan plan(Mesh::parse("dp=2"), params, options);
    ASSERT_EQ(plan.rounds().size(), view.block_scale ? 2U : 1U);
    int owned[2] = {};
    for (const auto& round : plan.rounds()) {
      ASSERT_EQ(round.size(), 12U);
      for (const Share& share : round) {
        EXPECT_EQ(share.holders, (std::vector<int>{0, 1}));
        ++owned[share.owner];
      }
    }
    EXPECT_EQ(owned[0], owned[1]);
  }
}

template <class Make>
void expect_refused(const Make& make, const std::string& sentence) {
  try {
    make();
    ADD_FAILURE() << "taken: " << sentence;
  } catch (const std::invalid_argument& error) {
    EXPECT_EQ(std::string(error.what()), sentence);
  }
}

TEST(PlanFigures, WrongParametersAreRefusedByName) {
  const View rows = View::lines({Line::row}, 24);
  const auto plan = [&](const std::vector<ParamSpec>& params, bool sharded = false, std::int64_t bucket = 100) {
    PlanOptions options;
    options.sharded = sharded;
    options.bucket_bytes = bucket;
    return [=] { Plan(Mesh::parse("dp=2,tp=2"), params, options); };
  };
  const ParamSpec good = matrix("w", {4, 4}, rows);
  EXPECT_NO_THROW(plan({good})());
  EXPECT_NO_THROW(plan({good}, false, 1)());
  expect_refused(plan({}), "there are no parameters to plan for");
  expect_refused(plan({good}, false, 0), "bucket_bytes is 0; expected at least 1");
  expect_refused(plan({good, matrix("v", {4}, rows), good}), "parameter w appears twice");
  ParamSpec views = good;
  views.views.push_back(rows);
  expect_refused(plan({views}), "parameter w has 1 blocks and 2 views");
  expect_refused(plan({matrix("w", {4, 4}, rows, "dp:1")}),
                 "parameter w is placed dp:1; over dp the engine shards by itself unless the mode is sharded");
  EXPECT_NO_THROW(plan({matrix("w", {4, 4}, rows, "dp:1")}, true)());
  expect_refused(plan({matrix("w", {4, 4}, rows, "ep:0")}),
                 "parameter w is placed over axis ep, which mesh dp=2,tp=2 does not have");
  expect_refused(plan({matrix("v", {4}, rows, "tp:1")}),
                 "parameter v has one dim; placement tp:1 names dim 1, expected 0");
  EXPECT_NO_THROW(plan({matrix("v", {4}, rows, "tp:0")})());

  const auto blocks = [](std::vector<std::int64_t> shape, std::vector<std::int64_t> block_rows) {
    return [=] { logical_blocks("w", shape, block_rows); };
  };
  expect_refused(blocks({}, {}), "parameter w has no dims; expected one or more");
  expect_refused(blocks({4, 0}, {}), "parameter w has shape 4x0; every extent must be at least 1");
  expect_refused(blocks({4, 2, -1}, {}), "parameter w has shape 4x2x-1; every extent must be at least 1");
  expect_refused(blocks({4, 2}, {4, 0}), "parameter w has a block of 0 rows");
  expect_refused(blocks({4, 2}, {5, -1}), "parameter w has a block of -1 rows");
  expect_refused(blocks({4}, {4}), "parameter w of shape 4 has blocks of 4 rows in all; expected 4");
  expect_refused(blocks({4, 2}, {3, 2}), "parameter w of shape 4x2 has blocks of 5 rows in all; expected 4");
  EXPECT_EQ(logical_blocks("w", {4, 2}, {4}), (std::vector<MatrixShape>{{4, 2}}));
  EXPECT_EQ(logical_blocks("w", {4, 3, 2}, {1, 3}), (std::vector<MatrixShape>{{1, 6}, {3, 6}}));
}

// Ranks that differ in any of this would send each other other messages.
TEST(PlanFigures, TheFingerprintKnowsEveryNumberOfAView) {
  std::vector<std::uint64_t> seen;
  const auto note = [&](const ParamSpec& param, PlanOptions options = {}, const char* mesh = "dp=2,tp=2") {
    seen.push_back(Plan(Mesh::parse(mesh), {param}, options).fingerprint());
  };
  const auto of_view = [](const View& view) { return matrix("w", {6, 8}, view); };
  note(of_view(View::elements()));
  note(of_view(View::lines({Line::row}, 24)));
  note(of_view(View::lines({Line::column}, 24)));
  note(of_view(View::lines({Line::column, Line::row}, 24)));
  note(of_view(View::lines({Line::row}, 24, 24)));
  note(of_view(whole_matrix));
  for (int field = 0; field < 7; ++field) {
    View view = whole_matrix;
    View::Traffic& t = view.traffic;
    std::int64_t* const fields[] = {&t.element_bytes,    &t.row_bytes,           &t.column_bytes,      &t.block_bytes,
                                    &t.row_answer_bytes, &t.column_answer_bytes, &t.block_answer_bytes};
    *fields[field] += 100;
    note(of_view(view));
  }
  ParamSpec other = of_view(View::elements());
  other.dtype = DType::bf16;
  note(other);
  other = of_view(View::elements());
  other.grad_dtype = DType::f16;
  note(other);
  note(matrix("w", {6, 8}, View::elements(), "tp:0"));
  note(matrix("w", {6, 8}, View::elements(), "tp:1"));
  note(matrix("w", {6, 8}, View::elements(), "", {2, 4}));
  note(matrix("w", {6, 8}, View::elements(), "", {4, 2}));
  note(of_view(View::elements()), {}, "dp=4");
  note(of_view(View::elements()), {}, "tp=2,dp=2");
  PlanOptions options;
  options.bucket_bytes = 77;
  note(of_view(View::elements()), options);
  options = {};
  options.sharded = true;
  note(of_view(View::elements()), options);
  options = {};
  options.reductions_per_step = 3;
  note(of_view(View::elements()), options);
  std::sort(seen.begin(), seen.end());
  EXPECT_EQ(std::adjacent_find(seen.begin(), seen.end()), seen.end());
}

}  // namespace
}  // namespace regatta::sharding
