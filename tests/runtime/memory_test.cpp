// What a plan says a rank must remember, against what it allocates.

#include "runtime/engine/memory.h"

#include <gtest/gtest.h>

#include <random>

#include "kernels/matmul.h"
#include "runtime/engine/gradients.h"
#include "runtime/engine/setup.h"
#include "tests/support/spmd.h"

namespace regatta {
namespace {

using sharding::Mesh;

TEST(Memory, IsWhatIsAllocated) {
  // None so small that memory for collectives is larger than what was asked for.
  std::mt19937 random(5);
  for (int i = 0; i < 40; ++i) {
    static constexpr const char* meshes[] = {"dp=1", "dp=2", "dp=3", "tp=2", "dp=2,tp=2", "dp=4"};
    const Mesh mesh = Mesh::parse(meshes[random() % std::size(meshes)]);
    EngineOptions options;
    options.mode = static_cast<Mode>(random() % 3);
    options.cut = static_cast<sharding::Cut>(random() % 3);
    options.bucket_bytes = 1 + random() % 1500;
    options.micro_batches = 1 + static_cast<int>(random() % 9);
    options.momentum_dtype = random() % 2 == 0 ? DType::f32 : DType::bf16;
    const bool tree = random() % 2 == 0;
    if (tree) options.accumulation = Accumulation::tree;
    if (tree && mesh.size("dp") > 1) options.micro_batches = 1 << random() % 4;
    if (mesh.size("dp") == 3 && options.mode == Mode::zero2) options.accumulation = Accumulation::sum;
    std::vector<Param> params{{"a", {4, 5}}, {"b", {5, 12}}, {"c", {14, 4}}, {"d", {16}}, {"e", {8, 8}}};
    params[1].dtype = DType::bf16;
    params[2].dtype = DType::f16;
    params[2].grad_dtype = DType::f32;
    params[4].grad_dtype = DType::bf16;
    params[3].group = params[4].group = 1;
    const char* first = random() % 2 == 0 || !kernels::has_matmul() ? "reg" : "normuon";
    const std::vector<Group> groups{{"first", make_rule(first, {}), 1}, {"second", make_rule("adamw", {}), 1}};
    SCOPED_TRACE(std::to_string(i) + ": " + mesh.text() + ", mode " + std::to_string(static_cast<int>(options.mode)) +
                 ", " + std::to_string(options.micro_batches) + " micro-batches" + (tree ? ", tree, " : ", ") + first);
    testing::run_ranks(mesh.world_size(), [&](Transport& transport) {
      Engine engine(params, groups, mesh, transport, options);
      const int rank = transport.rank();
      const RankMemory planned = memory_of(engine.plan(), rank, params, groups, options);
      std::int64_t parameters = 0, state = 0, master = 0;
      for (const sharding::BucketLayout& bucket : engine.plan().layout(rank).buckets)
        parameters += bucket.numel * size_of(params[bucket.entries.front().param].dtype);
      for (const StatePart& part : engine.state_parts())
        (part.state == "master" ? master : state) += part.part.run.size() * size_of(part.dtype);
      EXPECT_EQ(planned.parameters, parameters);
      EXPECT_EQ(planned.state, state);
      EXPECT_EQ(planned.master, master);
      EXPECT_EQ(engine.state_bytes(), state + master);
      const auto dp_group = transport.split(reduction_group(mesh, rank, options.mode));
      HostArrays arrays(kernels::cpu_kernels());
      const Gradients gradients(
          engine.plan(), rank, *dp_group,
          {options.micro_batches, options.accumulation == Accumulation::tree, options.mode == Mode::zero2}, arrays);
      EXPECT_EQ(planned.gradients, gradients.bytes());
    });
  }
}

}  // namespace
}  // namespace regatta
