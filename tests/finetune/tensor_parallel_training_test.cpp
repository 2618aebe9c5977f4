// The decoder split over tensor-parallel ranks against the whole decoder.

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>

#include "cli/finetune/job.h"
#include "cli/finetune/trainer.h"
#include "cli/finetune/weights.h"
#include "runtime/error.h"
#include "tests/support/spmd.h"

namespace regatta::finetune {
namespace {

namespace fs = std::filesystem;
using Tensors = std::map<std::string, at::Tensor>;

at::Tensor part_of(const at::Tensor& whole, const ParamShard& shard) {
  if (whole.dim() == 1) return whole.slice(0, shard.cols.begin, shard.cols.end);
  return whole.slice(0, shard.rows.begin, shard.rows.end).slice(1, shard.cols.begin, shard.cols.end);
}

/// Copies a rank's parts into whole tensors. Requires equal bits where another rank has written already.
void put_parts(const std::vector<ParamShard>& shards, const std::function<at::Tensor(const std::string&)>& part,
               Tensors& whole, std::mutex& mutex) {
  const std::lock_guard lock(mutex);
  for (const ParamShard& shard : shards) {
    auto [entry, is_new] = whole.try_emplace(shard.name, at::full(shard.shape, NAN, at::kFloat));
    const at::Tensor mine = part(shard.name).detach();
    const at::Tensor there = part_of(entry->second, shard);
    if (at::isnan(there).all().item<bool>()) {
      there.copy_(mine);
    } else {
      EXPECT_TRUE(at::equal(there, mine)) << shard.name << " differs between peers that hold the same part";
    }
  }
}

class TensorParallel : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() / ("tensor_parallel." + std::to_string(::getpid()) + "." + info->name());
    fs::create_directories(folder_);
    std::ofstream text(folder_ / "text.txt");
    for (int i = 0; i < 400; ++i) text << "line " << i % 17 << " of " << i * i % 101 << "; ";
  }
  void TearDown() override { fs::remove_all(folder_); }

  Options options(std::int64_t kv_heads) const {
    Options o;
    o.sizes.vocab = 259;  // uneven on 2 and 4 ranks
    o.sizes.hidden = 24;
    o.sizes.intermediate = 40;
    o.sizes.layers = 2;
    o.sizes.heads = 4;
    o.sizes.kv_heads = kv_heads;
    o.sizes.head_dim = 6;
    o.sizes.qkv_bias = o.sizes.output_bias = o.sizes.mlp_bias = true;
    o.sizes.init_std = 0.1;
    o.data = o.eval_data = {(folder_ / "text.txt").string()};
    o.eval_sequences = 5;
    o.steps = 6;
    o.seq = 12;
    o.micro_batch = 2;
    o.global_batch = 8;
    o.seed = 4;
    o.schedule.base = 0.003;
    o.accumulation = "tree";
    o.engine_flags.clip = 1;
    o.out = (folder_ / "out").string();
    return o;
  }

  struct Outcome {
    std::vector<double> losses;
    Summary summary;
    Tensors weights;  // as saved
  };
  static Outcome train(Options o, const std::string& mesh_text) {
    o.engine_flags.mesh = mesh_text;
    o.out += "-" + mesh_text;
    fs::create_directories(o.out);
    const sharding::Mesh mesh = mesh_of(o);
    complete(o, mesh);
    Outcome outcome;
    testing::run_ranks(mesh.world_size(), [&](Transport& transport) {
      Job job(o, mesh, transport.rank());
      Observer observer;
      if (transport.rank() == 0)
        observer.stepped = [&](const StepRecord& record) { outcome.losses.push_back(record.loss); };
      Trainer trainer(job, mesh, transport);
      Summary summary = trainer.run(observer);
      if (transport.rank() == 0) outcome.summary = std::move(summary);
    });
    Decoder saved(o.sizes, at::kFloat);
    load_weights(saved, o.out);
    for (const auto& item : saved.named_parameters()) outcome.weights[item.key()] = item.value().detach();
    return outcome;
  }

  /// Gradients of one batch, gathered to whole tensors, and its loss on each rank.
  struct Backward {
    std::vector<float> losses;
    Tensors grads;
  };
  /// Norms and biases that are not 1 and 0, by global index, so that one that is left out or added twice shows.
  static void fill_vectors(Decoder& decoder) {
    for (const auto& item : decoder.named_parameters()) {
      at::Tensor values = item.value().detach();
      if (values.dim() > 1) continue;
      const ParamShard& shard = *find_shard(decoder.shards(), item.key());
      for (std::int64_t i = 0; i < values.numel(); ++i)
        values[i] = (item.key().ends_with("bias") ? 0 : 1) +
                    0.3 * std::sin(static_cast<double>(shard.cols.begin + i) + static_cast<double>(item.key().size()));
    }
  }
  static Backward backward(const Options& given, const std::string& mesh_text, double head_scale = 1) {
    Options o = given;
    o.engine_flags.mesh = mesh_text;
    const sharding::Mesh mesh = mesh_of(o);
    complete(o, mesh);
    Backward result;
    result.losses.resize(static_cast<std::size_t>(mesh.world_size()));
    std::mutex mutex;
    testing::run_ranks(mesh.world_size(), [&](Transport& transport) {
      Job job(o, mesh, transport.rank());
      fill_vectors(*job.model);
      {
        const torch::NoGradGuard no_grad;
        if (head_scale != 1) job.model->named_parameters()["lm_head.weight"].mul_(head_scale);
      }
      job.model->join(TensorGroup::make(transport, mesh));
      const torch::Tensor tokens = job.train.rows(4, [](std::int64_t row) { return 20 * row; });
      const torch::Tensor loss = job.model->loss(tokens);
      loss.backward();
      result.losses[static_cast<std::size_t>(transport.rank())] = loss.item<float>();
      put_parts(
          job.model->shards(), [&](const std::string& name) { return job.model->named_parameters()[name].grad(); },
          result.grads, mutex);
    });
    return result;
  }

  /// One engine step on the mesh from whole gradients, every rank given its parts: weights afterwards, gathered.
  static Tensors update(const Options& given, const std::string& mesh_text, const Tensors& grads) {
    Options o = given;
    o.engine_flags.mesh = mesh_text;
    o.global_batch = o.micro_batch * sharding::Mesh::parse(mesh_text).size("dp");
    const sharding::Mesh mesh = mesh_of(o);
    complete(o, mesh);
    Tensors result;
    std::mutex mutex;
    testing::run_ranks(mesh.world_size(), [&](Transport& transport) {
      Job job(o, mesh, transport.rank());
      Engine engine(job.params, job.groups, mesh, transport, job.options.engine);
      EngineAttachment attachment(job.module_params, engine);
      for (int step = 0; step < 2; ++step) {
        for (std::size_t i = 0; i < job.params.size(); ++i) {
          const ParamShard& shard = *find_shard(job.model->shards(), job.params[i].name);
          at::Tensor mine = part_of(grads.at(shard.name), shard).contiguous().clone();
          // Rank 0 of dp brings all of it, the others nothing: the sum is the recorded gradient, exactly.
          if (mesh.coordinate(transport.rank(), "dp") != 0) mine.zero_();
          engine.add_grad(static_cast<int>(i), mine.data_ptr(), DType::f32);
        }
        engine.step(0.01);
      }
      put_parts(
          job.model->shards(), [&](const std::string& name) { return job.model->named_parameters()[name]; }, result,
          mutex);
    });
    return result;
  }
  fs::path folder_;
};

double worst_relative(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).norm() / b.norm().clamp_min(1e-12)).item<double>();
}

TEST_F(TensorParallel, LossesAgreeStepByStep) {
  const std::map<std::int64_t, std::vector<const char*>> meshes_of_kv_heads = {
      {4, {"dp=2,tp=2"}},               // keys and values split
      {2, {"dp=1,tp=2", "dp=1,tp=4"}},  // split, and each used by two ranks
      {1, {"dp=2,tp=2"}}};              // one for all
  for (const auto& [kv_heads, meshes] : meshes_of_kv_heads) {
    const Options o = options(kv_heads);
    const Outcome whole = train(o, "dp=1,tp=1");
    ASSERT_EQ(whole.losses.size(), 6U);
    EXPECT_LT(whole.losses.back(), whole.losses.front() - 0.1);
    for (const char* mesh : meshes) {
      const Outcome split = train(o, mesh);
      ASSERT_EQ(split.losses.size(), whole.losses.size());
      // Partial sums over heads, widths and the vocabulary meet in another order.
      for (std::size_t i = 0; i < whole.losses.size(); ++i)
        EXPECT_NEAR(split.losses[i], whole.losses[i], 3e-6 * whole.losses[i]) << mesh << ", step " << i;
      EXPECT_NEAR(*split.summary.eval_after, *whole.summary.eval_after, 1e-5);
      EXPECT_EQ(split.summary.params, whole.summary.params);
      EXPECT_TRUE(split.summary.bytes_as_planned) << mesh;
      ASSERT_EQ(split.weights.size(), whole.weights.size());
      for (const auto& [name, weights] : whole.weights)
        EXPECT_LT(worst_relative(split.weights.at(name), weights), 2e-3) << mesh << ": " << name;
    }
  }
}

TEST_F(TensorParallel, GradientsAreTheWholeDecodersAndReplicasHaveTheSameBits) {
  for (const auto& [kv_heads, tied] : std::vector<std::pair<std::int64_t, bool>>{{4, false}, {2, true}, {1, false}}) {
    Options o = options(kv_heads);
    o.sizes.tied_head = tied;
    const Backward whole = backward(o, "dp=1,tp=1");
    for (const char* mesh : {"dp=1,tp=2", "dp=1,tp=4"}) {
      const Backward split = backward(o, mesh);
      for (const float loss : split.losses) {
        EXPECT_EQ(loss, split.losses[0]);
        EXPECT_NEAR(loss, whole.losses[0], 1e-5);
      }
      for (const auto& [name, grad] : whole.grads) {
        // Keys' biases shift all scores of a query alike: their true gradient is zero, what is left is rounding.
        if (name.ends_with("k_proj.bias")) continue;
        EXPECT_LT(worst_relative(split.grads.at(name), grad), 2e-5)
            << mesh << ", " << kv_heads << " key-value heads: " << name;
      }
    }
  }
}

// Scores whose exponential no fp32 holds.
TEST_F(TensorParallel, LargeScoresDoNotOverflow) {
  const Options o = options(2);
  const float whole = backward(o, "dp=1,tp=1", 1e4).losses[0];
  EXPECT_GT(whole, 100);
  for (const float loss : backward(o, "dp=1,tp=2", 1e4).losses) EXPECT_NEAR(loss, whole, 1e-4 * whole);
}

TEST_F(TensorParallel, TheSameGradientsGiveTheSameUpdateToTheBit) {
  for (const char* mode : {"zero1", "zero2"}) {
    Options o = options(2);
    o.engine_flags.mode = mode;
    o.engine_flags.clip = 0.5;
    const Tensors grads = backward(o, "dp=1,tp=1").grads;
    const Tensors whole = update(o, "dp=1,tp=1", grads);
    for (const char* mesh : {"dp=2,tp=2", "dp=1,tp=4", "dp=3,tp=2"}) {
      const Tensors split = update(o, mesh, grads);
      for (const auto& [name, weights] : whole)
        EXPECT_TRUE(at::equal(split.at(name), weights)) << mode << ", " << mesh << ": " << name;
    }
  }
}

TEST_F(TensorParallel, ACheckpointOfTheWholeIsReadInPartsAndWrittenWhole) {
  Options o = options(2);
  o.steps = 1;
  const Outcome whole = train(o, "dp=1,tp=1");
  o.init = o.out + "-dp=1,tp=1";
  o.schedule.base = 0;  // an update that changes nothing but is made
  o.out = (folder_ / "again").string();
  const Outcome again = train(o, "dp=2,tp=2");
  for (const auto& [name, weights] : whole.weights) EXPECT_TRUE(at::equal(again.weights.at(name), weights)) << name;
}

TEST_F(TensorParallel, WhatCannotBeSplitIsRefused) {
  Options o = options(4);
  try {
    train(o, "tp=3");
    ADD_FAILURE() << "trained";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::invalid_argument);
    EXPECT_NE(std::string(error.what()).find("4 attention heads"), std::string::npos) << error.what();
  }
  Decoder part(o.sizes, at::kFloat, sharding::Mesh({{"tp", 2}}), 0);
  EXPECT_THROW(part.forward(at::zeros({1, 3}, at::kLong)), Error);  // has not joined its group
}

}  // namespace
}  // namespace regatta::finetune
