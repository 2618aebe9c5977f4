// The promise of the engine: given the same gradients, a step gives the same bits at every world size, mesh, placement,
// cut, bucket size and thread count; and the plan predicts every byte that travels.

#include <gtest/gtest.h>

#include <random>

#include "cli/replay/run.h"
#include "kernels/matmul.h"
#include "tests/support/recorded_case.h"
#include "tests/support/spmd.h"

namespace regatta {
namespace {

using cli::ReplayCase;
using cli::ReplayOptions;
using cli::ReplayResult;
using sharding::Cut;
using sharding::Mesh;
using Settings = std::vector<std::pair<std::string, std::string>>;

struct Layout {
  std::string mesh = "dp=1";
  Mode mode = Mode::zero1;
  Cut cut = Cut::row;
  std::string place;
  std::int64_t bucket_bytes = 25 << 20;
  int threads = 1;

  std::string text() const {
    static constexpr const char* modes[] = {"zero1", "zero2", "sharded"};
    static constexpr const char* cuts[] = {"element", "row", "matrix"};
    return mesh + " " + modes[static_cast<int>(mode)] + " cut " + cuts[static_cast<int>(cut)] + " place '" + place +
           "' bucket " + std::to_string(bucket_bytes) + " threads " + std::to_string(threads);
  }
};

class ShardedEqualsWhole : public ::testing::Test {
 protected:
  std::map<std::string, std::vector<std::int64_t>> blocks_;
  DType momentum_dtype_ = DType::f32;
  double clip_ = 0;

  ReplayResult run(const ReplayCase& recorded, const std::string& rule, const Settings& settings,
                   const Layout& layout) {
    ReplayOptions options;
    options.mesh = Mesh::parse(layout.mesh);
    options.engine.mode = layout.mode;
    options.engine.cut = layout.cut;
    options.engine.bucket_bytes = layout.bucket_bytes;
    options.engine.threads = layout.threads;
    options.engine.momentum_dtype = momentum_dtype_;
    options.engine.clip = clip_;
    options.lr = 0.02;
    options.steps = static_cast<int>(recorded.gradients.size());
    options.groups = {{rule, make_rule(rule, settings), 1}};
    for (const std::string& name : recorded.names) {
      options.group_of.push_back(0);
      // One-dim parameters have no dim 1.
      const bool vector = recorded.params.at(name).shape.size() == 1;
      options.placement_of.push_back(vector ? sharding::Placement{} : sharding::Placement::parse(layout.place));
      const auto blocks = blocks_.find(name);
      options.blocks_of.push_back(blocks == blocks_.end() ? std::vector<std::int64_t>{} : blocks->second);
    }
    ReplayResult result;
    SCOPED_TRACE(layout.text());
    testing::run_ranks(options.mesh.world_size(), [&](Transport& transport) {
      ReplayResult mine = cli::replay(recorded, options, transport);
      if (transport.rank() == 0) result = std::move(mine);
    });
    return result;
  }

  void expect_same(const ReplayResult& whole, const ReplayResult& sharded, const std::string& what) {
    EXPECT_TRUE(sharded.bytes_as_planned) << what;
    EXPECT_EQ(whole.last.grad_norm, sharded.last.grad_norm) << what;
    ASSERT_EQ(whole.tensors.size(), sharded.tensors.size()) << what;
    for (const auto& [name, tensor] : whole.tensors)
      EXPECT_EQ(tensor.values, sharded.tensors.at(name).values) << name << ": " << what;
  }

  ReplayCase awkward_shapes(std::uint64_t seed, DType dtype = DType::f32, DType grad_dtype = DType::f32) {
    blocks_ = {{"fused", {6, 3, 3}}, {"experts", {5, 5, 5}}};
    testing::CaseBuilder builder(seed, 3);
    for (const testing::Shape& shape : std::vector<testing::Shape>{{"wide", {7, 19}},
                                                                   {"tall", {23, 6}},
                                                                   {"square", {9, 9}},
                                                                   {"row", {1, 17}},
                                                                   {"column", {13, 1}},
                                                                   {"fused", {12, 8}},
                                                                   {"experts", {3, 5, 4}},
                                                                   {"long_row", {2, 300}},
                                                                   {"vector", {11}}})
      builder.add(shape, dtype, grad_dtype);
    return builder.take();
  }
};

// A few hundred random layouts for every rule configuration.
void sweep_layouts(std::mt19937& random, int count, const std::function<void(const Layout&)>& check) {
  static const char* meshes[] = {"dp=2", "dp=3", "dp=4",      "dp=5",      "dp=7",     "tp=2",
                                 "tp=3", "tp=5", "dp=2,tp=2", "dp=3,tp=2", "dp=2,tp=3"};
  for (int i = 0; i < count; ++i) {
    Layout layout;
    layout.mesh = meshes[random() % std::size(meshes)];
    layout.mode = static_cast<Mode>(random() % 3);
    layout.cut = static_cast<Cut>(random() % 3);
    layout.bucket_bytes = 1 + static_cast<std::int64_t>(random() % 2000);
    layout.threads = random() % 4 == 0 ? 3 : 1;
    const Mesh mesh = Mesh::parse(layout.mesh);
    if (mesh.size("tp") > 1 && random() % 4 != 0) layout.place = random() % 2 ? "tp:0" : "tp:1";
    if (layout.mode == Mode::sharded && mesh.size("dp") > 1) {
      static const char* dp[] = {"dp:0", "dp:1", "dp:flat"};
      layout.place += (layout.place.empty() ? "" : ",") + std::string(dp[random() % 3]);
    }
    check(layout);
  }
}

TEST_F(ShardedEqualsWhole, RegForEveryNormAndPassCount) {
  std::mt19937 random(11);
  const ReplayCase recorded = awkward_shapes(1);
  for (const char* p : {"1", "2", "inf"})
    for (const char* passes : {"1", "2", "3"}) {
      const Settings settings{{"p", p}, {"passes", passes}};
      const ReplayResult whole = run(recorded, "reg", settings, {});
      sweep_layouts(random, 24, [&](const Layout& layout) {
        expect_same(whole, run(recorded, "reg", settings, layout),
                    "p " + std::string(p) + " passes " + passes + " on " + layout.text());
      });
    }
}

TEST_F(ShardedEqualsWhole, RegWhenDeadLinesCount) {
  std::mt19937 random(12);
  const ReplayCase recorded = awkward_shapes(2);
  const Settings settings{{"zero_line", "count"}};
  const ReplayResult whole = run(recorded, "reg", settings, {});
  sweep_layouts(random, 30, [&](const Layout& layout) {
    expect_same(whole, run(recorded, "reg", settings, layout), layout.text());
  });
}

TEST_F(ShardedEqualsWhole, Adamw) {
  std::mt19937 random(13);
  const ReplayCase recorded = awkward_shapes(3);
  const ReplayResult whole = run(recorded, "adamw", {}, {});
  sweep_layouts(random, 30,
                [&](const Layout& layout) { expect_same(whole, run(recorded, "adamw", {}, layout), layout.text()); });
}

TEST_F(ShardedEqualsWhole, RulesThatSeeWholeMatrices) {
  if (!kernels::has_matmul()) GTEST_SKIP() << "no BLAS in this build";
  std::mt19937 random(16);
  const ReplayCase recorded = awkward_shapes(7);
  const std::vector<std::pair<const char*, Settings>> rules{
      {"muon", {}},
      {"muon", {{"variant", "torch"}, {"precision", "fp32"}}},
      {"normuon", {}},
      {"normuon", {{"scale", "code"}}},
      {"adamuon", {}},
      {"trasmuon", {}},
      {"trasmuon", {{"damping", "smooth"}, {"precision", "fp32"}}},
      {"namo", {}},
      {"namo_d", {}},
      {"row_norm", {}},
      {"column_norm", {}},
      {"centred_row_norm", {}}};
  for (const auto& [rule, settings] : rules) {
    const ReplayResult whole = run(recorded, rule, settings, {});
    sweep_layouts(random, 16, [&](const Layout& layout) {
      expect_same(whole, run(recorded, rule, settings, layout), std::string(rule) + " on " + layout.text());
    });
  }
}

TEST_F(ShardedEqualsWhole, MatrixRulesWithSixteenBitParametersAndMomentum) {
  if (!kernels::has_matmul()) GTEST_SKIP() << "no BLAS in this build";
  std::mt19937 random(17);
  momentum_dtype_ = DType::bf16;
  clip_ = 0.5;
  const ReplayCase recorded = awkward_shapes(8, DType::bf16, DType::bf16);
  for (const char* rule : {"muon", "adamuon", "trasmuon", "namo_d", "centred_row_norm"}) {
    const ReplayResult whole = run(recorded, rule, {}, {});
    sweep_layouts(random, 8, [&](const Layout& layout) {
      expect_same(whole, run(recorded, rule, {}, layout), std::string(rule) + " on " + layout.text());
    });
  }
}

TEST_F(ShardedEqualsWhole, EveryDtype) {
  std::mt19937 random(14);
  for (DType dtype : {DType::f32, DType::bf16, DType::f16})
    for (DType grad_dtype : {DType::f32, DType::bf16, DType::f16})
      for (DType momentum : {DType::f32, DType::bf16})
        for (const char* rule : {"reg", "adamw"}) {
          momentum_dtype_ = momentum;
          const ReplayCase recorded = awkward_shapes(4, dtype, grad_dtype);
          const ReplayResult whole = run(recorded, rule, {}, {});
          sweep_layouts(random, 6, [&](const Layout& layout) {
            expect_same(whole, run(recorded, rule, {}, layout),
                        std::string(rule) + " " + std::string(name_of(dtype)) + " grad " +
                            std::string(name_of(grad_dtype)) + " " + layout.text());
          });
        }
}

TEST_F(ShardedEqualsWhole, ClippedByTheGlobalNorm) {
  std::mt19937 random(15);
  clip_ = 0.5;
  const ReplayCase recorded = awkward_shapes(5);
  const ReplayResult whole = run(recorded, "reg", {}, {});
  EXPECT_LT(whole.last.clip_factor, 1);
  sweep_layouts(random, 30, [&](const Layout& layout) {
    const ReplayResult sharded = run(recorded, "reg", {}, layout);
    expect_same(whole, sharded, layout.text());
    EXPECT_EQ(whole.last.clip_factor, sharded.last.clip_factor);
  });
}

TEST_F(ShardedEqualsWhole, DirectionFollowsTheGlobalShape) {  // tall as a whole, wide in every tp shard
  testing::CaseBuilder builder(6, 2);
  const ReplayCase recorded = builder.add({"up", {96, 20}}).take();
  const ReplayResult whole = run(recorded, "reg", {}, {});
  for (const char* mesh : {"tp=8", "dp=2,tp=8"})
    expect_same(whole, run(recorded, "reg", {}, {.mesh = mesh, .place = "tp:0"}), mesh);
  // The same numbers seen as eight wide matrices are something else: the check above is not vacuous.
  blocks_ = {{"up", {12, 12, 12, 12, 12, 12, 12, 12}}};
  EXPECT_NE(run(recorded, "reg", {}, {}).tensors.at("param.up").values, whole.tensors.at("param.up").values);
}

}  // namespace
}  // namespace regatta
