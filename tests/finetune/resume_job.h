#pragma once
// A small job of `finetune` with its engine on every rank of a mesh, for what checkpoints carry from one to another.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <random>

#include "cli/finetune/resume.h"
#include "cli/finetune/saver.h"
#include "runtime/checkpoint/checkpoint_folder.h"
#include "runtime/error.h"
#include "sharding/reshard.h"
#include "tests/checkpoint/test_folder.h"
#include "tests/support/refusal.h"
#include "tests/support/spmd.h"

namespace regatta::finetune {

using regatta::testing::expect_says;
using regatta::testing::refusal;

class CarriedState : public ::testing::Test {
 protected:
  void SetUp() override {
    // The last is as long as the first.
    for (const int which : {0, 1, 2}) {
      std::ofstream text(folder_.at("text" + std::to_string(which)));
      for (int i = 0; i < 400; ++i)
        text << (which < 2 ? "line " : "lime ") << i % 17 + which % 2 << " of " << i * i % 101 << "; ";
    }
  }
  Options options(const std::string& mesh) const {
    Options o;
    o.sizes.vocab = 256;
    o.sizes.hidden = 16;
    o.sizes.intermediate = 24;
    o.sizes.layers = 2;
    o.sizes.heads = 2;
    o.sizes.kv_heads = 2;
    o.sizes.head_dim = 8;
    o.data = {folder_.at("text0")};
    o.steps = 20;
    o.seq = 12;
    o.micro_batch = 1;
    o.global_batch = 12;
    o.seed = 4;
    o.schedule_name = "cosine";
    o.schedule.base = 0.01;
    o.schedule.warmup = 2;
    o.schedule.final_ratio = 0.25;
    o.lr_at = {"3=0.5"};
    o.engine_flags.mesh = mesh;
    o.engine_flags.clip = 1;
    o.engine_flags.momentum_dtype = "bf16";
    o.engine_flags.bucket_bytes = 4000;
    o.bucket_bytes_given = true;
    o.dtype_name = "bf16";
    o.out = folder_.at("out");
    o.checkpoints.dir = folder_.at("checkpoints");
    return o;
  }

  struct Rank {
    const Options& options;
    const sharding::Mesh& mesh;
    Transport& transport;
    Job& job;
    Engine& engine;
  };
  /// A job of these options with its engine, on every rank; `from` gives its weights.
  static void on_ranks(Options o, const std::string& from, const std::function<void(Rank)>& body) {
    const sharding::Mesh mesh = mesh_of(o);
    complete(o, mesh);
    testing::run_ranks(mesh.world_size(), [&](Transport& transport) {
      std::unique_ptr<checkpoint::Checkpoint> saved;
      if (!from.empty()) saved = std::make_unique<checkpoint::Checkpoint>(from);
      Job job(o, mesh, transport.rank(), saved.get());
      Engine engine(job.params, job.groups, mesh, transport, job.options.engine);
      job.model->join(TensorGroup::make(transport, mesh));
      for (std::size_t p = 0; p < job.module_params.size(); ++p) {
        const at::Tensor values = job.module_params[p].tensor.detach();
        std::memcpy(engine.param(static_cast<int>(p)).data, values.data_ptr(),
                    static_cast<std::size_t>(values.numel() * values.element_size()));
      }
      engine.publish_params();
      body({o, mesh, transport, job, engine});
    });
  }

  /// Every state of all ranks, whole, by its key's text.
  using Whole = std::map<std::string, std::vector<std::byte>>;
  struct Collected {
    std::mutex mutex;
    Whole states;
    void add(const Engine& engine) {
      const std::scoped_lock lock(mutex);
      for (const StatePart& part : engine.state_parts()) {
        const auto& param = engine.plan().params()[static_cast<std::size_t>(part.param)];
        const std::int64_t size = size_of(part.dtype);
        auto& whole = states[checkpoint::StateKey{param.name, part.state, part.block}.text()];
        whole.resize(static_cast<std::size_t>(part.shape.numel() * size));
        for (const sharding::Stretch& s : sharding::stretches(part.part, part.shape.cols))
          std::memcpy(whole.data() + s.in_block * size, static_cast<const std::byte*>(part.data) + s.in_part * size,
                      static_cast<std::size_t>(s.count * size));
      }
    }
  };
  /// Other bits in every element of every state, the same whatever the layout.
  static void fill(Engine& engine) {
    for (const StatePart& part : engine.state_parts()) {
      const std::int64_t size = size_of(part.dtype);
      std::vector<std::byte> values(static_cast<std::size_t>(part.part.run.size() * size));
      for (const sharding::Stretch& s : sharding::stretches(part.part, part.shape.cols))
        for (std::int64_t i = 0; i < s.count; ++i) {
          std::mt19937 random(static_cast<unsigned>((part.param * 31 + part.block) * 7919 + (s.in_block + i) * 13) +
                              static_cast<unsigned>(part.state.back()));
          const unsigned bits = random() & 0x3fffffffU;  // finite
          std::memcpy(values.data() + (s.in_part + i) * size, &bits, static_cast<std::size_t>(size));
        }
      engine.load_state(part, values.data());
    }
  }

  testing::TestFolder folder_;
};

}  // namespace regatta::finetune
