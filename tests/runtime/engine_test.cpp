#include "runtime/engine/engine.h"
#include "kernels/matmul.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <new>
#include <random>

#include "runtime/transport/transport.h"
#include "tests/support/spmd.h"

namespace {
std::atomic<bool> counting{false};
std::atomic<std::int64_t> allocations{0};
}  // namespace

// Counts allocations of the whole program while `counting` is set.
[[gnu::noinline]] void* operator new(std::size_t size) {
  if (counting) ++allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace regatta {
namespace {

using sharding::Mesh;

// A small model of two matrices and a vector, with gradients that depend on the micro-batch's global index only.
class EngineTest : public ::testing::Test {
 protected:
  struct Shape {
    std::string name;
    std::vector<std::int64_t> shape;
    int group;
  };
  const std::vector<Shape> model_{{"embed", {10, 6}, 1}, {"wide", {5, 12}, 0}, {"tall", {14, 4}, 0}, {"gain", {6}, 1}};
  EngineOptions options_;
  int global_batch_ = 8;

  std::vector<Param> params() const {
    std::vector<Param> params;
    for (const Shape& s : model_) params.push_back({s.name, s.shape, DType::f32, {}, {}, {}, s.group});
    return params;
  }
  std::vector<Group> groups() const {
    return {{"reg", make_rule("reg", {}), 1}, {"adamw", make_rule("adamw", {}), 0.5}};
  }

  static std::vector<float> values(std::uint64_t seed, std::int64_t numel) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(numel);
    for (float& value : values) value = normal(random);
    return values;
  }

  static void fill(Engine& engine, int count) {
    for (int p = 0; p < count; ++p) {
      const ParamView view = engine.param(p);
      const std::vector<float> initial = values(100 + p, view.numel);
      std::memcpy(view.data, initial.data(), initial.size() * 4);
    }
    engine.publish_params();
  }

  void add_micro_batch(Engine& engine, int step, std::int64_t index) {
    for (int p = static_cast<int>(model_.size()) - 1; p >= 0; --p)
      engine.add_grad(p, values(step * 1000 + index * 10 + p, engine.param(p).numel).data(), DType::f32);
  }

  using Weights = std::vector<std::vector<float>>;
  static Weights weights(Engine& engine, int count) {
    Weights all;
    for (int p = 0; p < count; ++p) {
      const ParamView view = engine.param(p);
      const auto* data = static_cast<const float*>(view.data);
      all.emplace_back(data, data + view.numel);
    }
    return all;
  }

  // Trains three steps on `dp` ranks; every rank must end with the same weights.
  Weights train(int dp, int steps = 3) {
    Weights result;
    std::mutex mutex;
    testing::run_ranks(dp, [&](Transport& transport) {
      EngineOptions options = options_;
      options.micro_batches = global_batch_ / dp;
      Engine engine(params(), groups(), Mesh({{"dp", dp}}), transport, options);
      fill(engine, static_cast<int>(model_.size()));
      for (int step = 0; step < steps; ++step) {
        for (int k = 0; k < options.micro_batches; ++k) add_micro_batch(engine, step, engine.micro_batch_index(k));
        engine.step(0.01);
      }
      const std::scoped_lock lock(mutex);
      const Weights mine = weights(engine, static_cast<int>(model_.size()));
      if (result.empty()) result = mine;
      EXPECT_EQ(result, mine) << "rank " << transport.rank();
    });
    return result;
  }

  std::string error_of(const std::function<void()>& body) {
    try {
      body();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }
};

TEST_F(EngineTest, TreeAccumulationGivesTheSameBitsOnAnyNumberOfRanks) {
  options_.accumulation = Accumulation::tree;
  const Weights one = train(1);
  for (int dp : {2, 4, 8}) EXPECT_EQ(one, train(dp)) << dp << " ranks";
  options_.mode = Mode::zero2;
  for (int dp : {1, 2, 4, 8}) EXPECT_EQ(one, train(dp)) << dp << " ranks, zero2";
  options_.bucket_bytes = 1;
  for (int dp : {1, 2, 4}) EXPECT_EQ(one, train(dp)) << dp << " ranks, zero2, small buckets";
}

TEST_F(EngineTest, TreeTakesAnyCountOnOneRankAndOddRankCountsWhenItMay) {
  options_.accumulation = Accumulation::tree;
  global_batch_ = 6;
  EXPECT_EQ(train(1), train(3));  // two micro-batches each: whole subtrees
}

TEST_F(EngineTest, TreeRefusesWhatItCannotPromise) {
  options_.accumulation = Accumulation::tree;
  global_batch_ = 6;
  EXPECT_EQ(error_of([&] { train(2); }),
            "accumulation 'tree' gives the same bits on any number of ranks only when the number of micro-batches per "
            "rank is a "
            "power of two; it is 3; use accumulation 'sum' or another split");
}

TEST_F(EngineTest, PlainAccumulationIsTheSumInArrivalOrder) {
  global_batch_ = 4;
  const Weights sum = train(1), tree = [&] {
    options_.accumulation = Accumulation::tree;
    return train(1);
  }();
  ASSERT_EQ(sum.size(), tree.size());
  for (std::size_t p = 0; p < sum.size(); ++p)
    for (std::size_t i = 0; i < sum[p].size(); ++i) EXPECT_NEAR(sum[p][i], tree[p][i], 1e-5);
}

TEST_F(EngineTest, NonFiniteGradientSkipsTheStepEverywhereAndTouchesNothing) {
  for (Mode mode : {Mode::zero1, Mode::zero2}) {
    testing::run_ranks(3, [&](Transport& transport) {
      EngineOptions options;
      options.mode = mode;
      Engine engine(params(), groups(), Mesh({{"dp", 3}}), transport, options);
      fill(engine, 4);
      add_micro_batch(engine, 0, transport.rank());
      engine.step(0.01);
      const Weights before = weights(engine, 4);
      std::vector<std::vector<std::byte>> state_before;
      for (const StatePart& part : engine.state_parts()) {
        const auto* data = static_cast<const std::byte*>(part.data);
        state_before.emplace_back(data, data + part.part.run.size() * size_of(part.dtype));
      }
      for (int p = 3; p >= 0; --p) {
        std::vector<float> grad = values(p, engine.param(p).numel);
        if (p == 2 && transport.rank() == 1) grad[5] = std::numeric_limits<float>::infinity();
        engine.add_grad(p, grad.data(), DType::f32);
      }
      const StepReport report = engine.step(0.01);
      EXPECT_TRUE(report.skipped);
      EXPECT_EQ(report.culprit, "tall");
      EXPECT_EQ(report.skipped_steps, 1);
      EXPECT_EQ(report.step, 1);
      EXPECT_EQ(weights(engine, 4), before);
      std::size_t i = 0;
      for (const StatePart& part : engine.state_parts()) {
        EXPECT_EQ(std::memcmp(part.data, state_before[i].data(), state_before[i].size()), 0);
        ++i;
      }
      add_micro_batch(engine, 1, transport.rank());  // and the job goes on
      EXPECT_EQ(engine.step(0.01).step, 2);
      EXPECT_NE(weights(engine, 4), before);
    });
  }
}

TEST_F(EngineTest, NonFiniteGradientStopsTheJobWhenAsked) {
  const std::string error = error_of([&] {
    testing::run_ranks(2, [&](Transport& transport) {
      EngineOptions options;
      options.non_finite = NonFinite::stop;
      Engine engine(params(), groups(), Mesh({{"dp", 2}}), transport, options);
      fill(engine, 4);
      std::vector<float> grad(engine.param(1).numel, std::numeric_limits<float>::quiet_NaN());
      engine.add_grad(1, grad.data(), DType::f32);
      try {
        engine.step(0.01);
      } catch (const Error&) {
        // A trainer may catch it and go on with other gradients.
        add_micro_batch(engine, 1, transport.rank());
        EXPECT_EQ(engine.step(0.01).step, 1);
        throw;
      }
    });
  });
  EXPECT_EQ(error, "the gradient of wide is not finite in step 1; no state was changed");
}

TEST_F(EngineTest, DynamicLossScaleBacksOffAndGrows) {
  testing::run_ranks(1, [&](Transport& transport) {
    EngineOptions options;
    options.loss_scaling = {.initial = 1024, .growth_interval = 2, .smallest = 1};
    Engine engine(params(), groups(), Mesh({{"dp", 1}}), transport, options);
    fill(engine, 4);
    std::vector<float> grad(engine.param(1).numel, std::numeric_limits<float>::infinity());
    engine.add_grad(1, grad.data(), DType::f32);
    EXPECT_TRUE(engine.step(0.01).skipped);
    EXPECT_EQ(engine.loss_scale(), 512);
    for (int step = 0; step < 2; ++step) {
      std::fill(grad.begin(), grad.end(), 512.0F);
      engine.add_grad(1, grad.data(), DType::f32);
      const StepReport report = engine.step(0.01);
      EXPECT_NEAR(report.grad_norm, std::sqrt(60.0), 1e-9);  // the scale is removed
    }
    EXPECT_EQ(engine.loss_scale(), 1024);
  });
}

TEST_F(EngineTest, ClippingUsesTheGlobalNorm) {
  testing::run_ranks(2, [&](Transport& transport) {
    EngineOptions options;
    options.clip = 1;
    Engine engine(params(), groups(), Mesh({{"dp", 2}}), transport, options);
    fill(engine, 4);
    std::vector<float> grad(engine.param(1).numel, 1.0F);  // 60 elements, summed over two ranks: norm 2 sqrt(60)
    engine.add_grad(1, grad.data(), DType::f32);
    const StepReport report = engine.step(0.01);
    EXPECT_NEAR(report.grad_norm, 2 * std::sqrt(60.0), 1e-12);
    EXPECT_NEAR(report.clip_factor, 1 / (2 * std::sqrt(60.0) + 1e-6), 1e-12);
    EXPECT_NEAR(report.groups[0].grad_norm, 2 * std::sqrt(60.0), 1e-12);
    EXPECT_EQ(report.groups[1].grad_norm, 0);
  });
}

TEST_F(EngineTest, ReportMeasuresTheAppliedUpdate) {
  testing::run_ranks(2, [&](Transport& transport) {
    Engine engine(
        {{"w", {4, 16}, DType::f32, {}, {}, {}, 0}},
        {{"reg",
          make_rule("reg", std::vector<std::pair<std::string, std::string>>{{"rho", "0.2"}, {"weight_decay", "0"}}),
          1}},
        Mesh({{"dp", 2}}), transport, {});
    engine.publish_params();
    std::vector<float> grad = values(1, 64);
    for (int i = 0; i < 16; ++i) grad[i] = 0;  // one dead row
    engine.add_grad(0, grad.data(), DType::f32);
    const StepReport report = engine.step(0.1);
    // Three rows of RMS rho, one at rest.
    EXPECT_NEAR(report.groups[0].update_rms, 0.1 * 0.2 * std::sqrt(0.75), 1e-8);
    EXPECT_EQ(report.groups[0].zero_lines, 1);
    EXPECT_EQ(report.groups[0].numel, 64);
    EXPECT_GT(report.groups[0].smallest_line_norm, 0);
    EXPECT_GE(report.groups[0].largest_line_norm, report.groups[0].smallest_line_norm);
  });
}

TEST_F(EngineTest, MissingGradientsCountAsZero) {
  for (Mode mode : {Mode::zero1, Mode::zero2}) {
    const auto train = [&](bool explicit_zero) {
      Weights result;
      testing::run_ranks(2, [&](Transport& transport) {
        EngineOptions options;
        options.mode = mode;
        options.micro_batches = 2;
        Engine engine(params(), groups(), Mesh({{"dp", 2}}), transport, options);
        fill(engine, 4);
        for (int k = 0; k < 2; ++k)
          for (int p = 3; p >= 0; --p) {
            if (p == 2 && (k == 1 || transport.rank() == 0)) {
              if (explicit_zero) engine.add_grad(p, std::vector<float>(engine.param(p).numel).data(), DType::f32);
              continue;
            }
            engine.add_grad(p, values(k * 10 + p, engine.param(p).numel).data(), DType::f32);
          }
        engine.step(0.01);
        if (transport.rank() == 0) result = weights(engine, 4);
      });
      return result;
    };
    EXPECT_EQ(train(true), train(false));
  }
}

TEST_F(EngineTest, RanksThatDisagreeLearnTheFirstDifference) {
  const std::string error = error_of([&] {
    testing::run_ranks(2, [&](Transport& transport) {
      std::vector<Param> mine = params();
      if (transport.rank() == 1) mine[2].shape = {14, 5};
      Engine engine(mine, groups(), Mesh({{"dp", 2}}), transport, {});
    });
  });
  EXPECT_EQ(error.substr(0, 100),
            std::string("ranks disagree on what to train: rank 0 has 'parameter tall 14x4 f32, gradient f32, placed "
                        "replicate, group reg")
                .substr(0, 100));
  EXPECT_NE(error.find("rank 1 has 'parameter tall 14x5"), std::string::npos) << error;
}

TEST_F(EngineTest, DifferentInitialValuesAreRefused) {
  // Over dp, and over tp where it does not cut the parameter; the rank is that which differs.
  for (const auto& [mesh, wrong] : {std::pair{"dp=2", 1}, std::pair{"tp=2", 1}, std::pair{"dp=2,tp=2", 3}}) {
    const std::string error = error_of([&, mesh = Mesh::parse(mesh), wrong = wrong] {
      testing::run_ranks(mesh.world_size(), [&](Transport& transport) {
        Engine engine(params(), groups(), mesh, transport, {});
        for (int p = 0; p < 4; ++p) std::fill_n(static_cast<float*>(engine.param(p).data), engine.param(p).numel, 1.0F);
        if (transport.rank() == wrong) static_cast<float*>(engine.param(3).data)[5] = 2;
        engine.publish_params();
      });
    });
    EXPECT_EQ(error, "initial values of parameter gain differ between ranks 0 and " + std::to_string(wrong) +
                         ", which hold replicas of it; load or initialise the same model on all of them");
  }
}

TEST_F(EngineTest, ShardsMayHoldWhatTheyLike) {
  std::vector<Param> cut = params();
  cut[2].placement = sharding::Placement::parse("tp:0");  // tall
  const auto publish = [&](int param) {
    return error_of([&] {
      testing::run_ranks(4, [&](Transport& transport) {
        Engine engine(cut, groups(), Mesh::parse("dp=2,tp=2"), transport, {});
        for (int p = 0; p < 4; ++p) std::fill_n(static_cast<float*>(engine.param(p).data), engine.param(p).numel, 1.0F);
        static_cast<float*>(engine.param(param).data)[0] = static_cast<float>(transport.rank() % 2);
        engine.publish_params();
      });
    });
  };
  EXPECT_EQ(publish(2), "no error");
  EXPECT_NE(publish(1).find("parameter wide differ between ranks 0 and 1"), std::string::npos);
}

TEST_F(EngineTest, WrongCallsNameTheParameterAndTheValue) {
  testing::run_ranks(1, [&](Transport& transport) {
    Engine engine(params(), groups(), Mesh(), transport, {});
    const std::vector<float> grad(200);
    EXPECT_EQ(error_of([&] { engine.add_grad(7, grad.data(), DType::f32); }), "add_grad got parameter 7; there are 4");
    EXPECT_EQ(error_of([&] { engine.add_grad(0, grad.data(), DType::bf16); }),
              "parameter embed got a gradient of bf16; expected f32 (Param::grad_dtype)");
    engine.add_grad(0, grad.data(), DType::f32);
    EXPECT_EQ(error_of([&] { engine.add_grad(0, grad.data(), DType::f32); }),
              "parameter embed got more than 1 gradients in one step; call step() after each global batch");
    EngineOptions none;
    none.micro_batches = 0;
    EXPECT_EQ(error_of([&] { Engine(params(), groups(), Mesh(), transport, none); }),
              "micro_batches is 0; expected at least 1");
    EXPECT_EQ(error_of([&] {
                Engine(params(), groups(), Mesh({{"dp", 2}}), transport, {});
              }),
              "mesh dp=2 has 2 ranks but the transport has 1");
  });
}

TEST_F(EngineTest, SteadyStateAllocatesNothing) {
  for (Mode mode : {Mode::zero1, Mode::zero2}) {
    testing::run_ranks(2, [&](Transport& transport) {
      EngineOptions options;
      options.mode = mode;
      options.micro_batches = 2;
      options.accumulation = Accumulation::tree;
      options.bucket_bytes = 200;
      options.threads = 2;
      Engine engine(params(), groups(), Mesh({{"dp", 2}}), transport, options);
      fill(engine, 4);
      std::vector<std::vector<float>> grads;
      for (int p = 0; p < 4; ++p) grads.push_back(values(p, engine.param(p).numel));
      // The report is the caller's; what is counted is everything else.
      std::int64_t inside = 0;
      for (int step = 0; step < 6; ++step) {
        transport.barrier("before the step");
        if (transport.rank() == 0) {
          allocations = 0;
          counting = step >= 3;
        }
        transport.barrier("counting");
        for (int k = 0; k < 2; ++k)
          for (int p = 3; p >= 0; --p) engine.add_grad(p, grads[p].data(), DType::f32);
        transport.barrier("gradients are in");
        if (transport.rank() == 0 && step >= 3) inside += allocations;
        counting = false;
        transport.barrier("stop counting");
        engine.step(0.01);
      }
      if (transport.rank() == 0) {
        EXPECT_EQ(inside, 0);
      }
    });
  }
}

// A step allocates its report, which is the caller's, and nothing else: as much with every rule.
TEST_F(EngineTest, StepsOfAllRulesAllocateOnlyTheReport) {
  const auto allocations_of = [&](const char* rule) {
    std::int64_t total = 0;
    testing::run_ranks(2, [&](Transport& transport) {
      EngineOptions options;
      options.bucket_bytes = 200;
      options.threads = 2;
      Engine engine(params(), {{"matrices", make_rule(rule, {}), 1}, {"adamw", make_rule("adamw", {}), 0.5}},
                    Mesh({{"dp", 2}}), transport, options);
      fill(engine, 4);
      for (int step = 0; step < 6; ++step) {
        for (int p = 3; p >= 0; --p) {
          const std::vector<float> grad = values(p, engine.param(p).numel);
          engine.add_grad(p, grad.data(), DType::f32);
        }
        transport.barrier("before the step");
        if (transport.rank() == 0) {
          allocations = 0;
          counting = step >= 3;
        }
        transport.barrier("counting");
        const StepReport report = engine.step(0.01);
        transport.barrier("after the step");
        if (transport.rank() == 0 && step >= 3) total += allocations;
        counting = false;
        transport.barrier("stop counting");
      }
    });
    return total;
  };
  const std::int64_t report = allocations_of("adamw");
  for (const std::string& rule : rule_names()) {
    if (!kernels::has_matmul() && make_rule(rule, {})->view({4, 4}).kind == sharding::View::Kind::matrix) continue;
    EXPECT_EQ(allocations_of(rule.c_str()), report) << rule;
  }
}

}  // namespace
}  // namespace regatta
