// Whole jobs of several steps on a device: every figure and weight against the job computed apart, the end to the bit
// against the CPU's; more elements, lines and words than one tile has; gradients on streams of the trainer's.

#include <gtest/gtest.h>

#include <random>

#include "kernels/cuda/layout.h"
#include "runtime/engine/device_arrays.h"
#include "tests/support/devices_under_test.h"
#include "tests/support/job_run.h"
#include "tests/support/usual_job.h"

namespace regatta {
namespace {

namespace cuda = kernels::cuda;
using testing::JobBits;
using testing::JobLayout;
using testing::JobRun;
using testing::WholeJob;

class DeviceJob : public ::testing::Test {
 protected:
  std::vector<testing::DeviceUnderTest> devices_;
  void SetUp() override {
    std::string why_not;
    devices_ = testing::devices_under_test(why_not);
    if (devices_.empty()) GTEST_SKIP() << why_not;
  }
};

TEST_F(DeviceJob, TellsAndLeavesWhatIsComputedApart) {
  const WholeJob job = testing::eventful_job(41);
  int skipped = 0, clipped = 0;
  for (const testing::WholeStep& step : testing::WholeJobModel(job).run()) {
    skipped += step.skipped ? 1 : 0;
    clipped += step.clip_factor < 1 ? 1 : 0;
  }
  ASSERT_GE(skipped, 2);
  ASSERT_GE(clipped, 2);
  const JobBits cpu = JobRun(job, {}).run();
  const JobLayout layouts[] = {
      {.mesh = "dp=1", .bucket_bytes = 300, .accumulation = Accumulation::tree, .move_before = 3},
      {.mesh = "dp=1", .mode = Mode::zero2},
      {.mesh = "dp=2", .cut = sharding::Cut::element, .bucket_bytes = 500, .move_before = 6},
      {.mesh = "dp=2", .mode = Mode::zero2, .bucket_bytes = 200},
      {.mesh = "dp=2", .mode = Mode::sharded, .place = "dp:flat"},
      {.mesh = "dp=2,tp=2", .bucket_bytes = 400, .place = "tp:1"}};
  // All of them where streams are late, the last kind; the others share them.
  for (std::size_t d = 0; d < devices_.size(); ++d)
    for (std::size_t l = 0; l < std::size(layouts); ++l)
      for (const bool graph : {false, true}) {
        if (d + 1 < devices_.size() && (l % 2 != d || graph)) continue;
        if (graph && layouts[l].mesh != "dp=1") continue;
        SCOPED_TRACE(devices_[d].name + (graph ? ", as a graph" : ""));
        JobRun(job, layouts[l], devices_[d].device, graph).run(&cpu);
      }
}

// One below, at, one above and several of what a tile holds: elements, lines that are finished, rows of columns.
TEST_F(DeviceJob, MoreThanOneTile) {
  WholeJob job;
  job.seed = 42;
  job.global_batch = 2;
  job.steps = 2;
  job.options.clip = 1000;
  job.groups = {{"lines", make_rule("reg", {}), 1}, {"elements", make_rule("adamw", {}), 0.5}};
  const auto add = [&](std::vector<std::int64_t> shape, int group) {
    Param& param = job.params.emplace_back();
    param.name = "p" + std::to_string(job.params.size());
    param.shape = std::move(shape);
    param.group = group;
  };
  for (const std::int64_t count : {cuda::flat_tile - 1, cuda::flat_tile, cuda::flat_tile + 1, 2 * cuda::flat_tile + 3})
    add({count}, 1);
  for (const std::int64_t count : {cuda::line_tile - 1, cuda::line_tile + 1}) add({count, count + 3}, 0);
  add({2 * cuda::observe_rows + 1, 5}, 0);
  add({3, cuda::flat_tile + 4}, 0);
  const JobBits cpu = JobRun(job, {}).run();
  const JobLayout layouts[] = {
      {.mesh = "tp=2", .place = "tp:1"}, {.mesh = "dp=1"}, {.mesh = "dp=2", .cut = sharding::Cut::element}};
  for (std::size_t d = 0; d < std::max(devices_.size(), std::size(layouts)); ++d) {
    SCOPED_TRACE(devices_[d % devices_.size()].name);
    JobRun(job, layouts[d % std::size(layouts)], devices_[d % devices_.size()].device).run(&cpu);
  }
}

// Room for the figures of gradients grows while reductions have been given some already.
TEST_F(DeviceJob, MorePiecesOfGradientsThanThereWasRoomFor) {
  WholeJob job;
  job.seed = 43;
  job.global_batch = 2;
  job.steps = 2;
  job.groups = {{"all", make_rule("adamw", {}), 1}};
  for (int p = 0; p < 2 * DeviceArrays::first_tiles + 5; ++p)
    job.params.push_back({"p" + std::to_string(p), {1 + p % 3}});
  const JobBits cpu = JobRun(job, {}).run();
  for (std::size_t d = 0; d < devices_.size(); ++d) {
    SCOPED_TRACE(devices_[d].name);
    JobRun(job, {.mesh = d % 2 == 0 ? "dp=1" : "dp=2", .bucket_bytes = 100}, devices_[d].device).run(&cpu);
  }
}

// The trainer's values, gradients and the memory that it uses again are on streams of its own, which change.
TEST_F(DeviceJob, FollowsTheTrainersStreams) {
  const auto train = [](const std::shared_ptr<Device>& device, int ranks, Mode mode) {
    std::vector<float> result(400);
    testing::run_ranks(ranks, [&](Transport& transport) {
      EngineOptions options;
      options.mode = mode;
      options.micro_batches = 2;
      options.bucket_bytes = 300;
      options.device = device;
      std::vector<Param> params{{"a", {10, 12}}, {"b", {9, 8}}};
      Engine engine(params, {{"all", make_rule("reg", {}), 1}}, sharding::Mesh({{"dp", ranks}}), transport, options);
      std::vector<float> numbers(200);
      for (int i = 0; i < 200; ++i) numbers[i] = static_cast<float>(i % 11) - 5;
      for (const int p : {0, 1}) engine.write_param(p, numbers.data());
      engine.publish_params();
      Stream streams[2];
      Buffer memory;
      if (device) {
        for (Stream& stream : streams) stream = Stream(*device);
        memory = Buffer(800, device.get());
      }
      for (int step = 0; step < 4; ++step) {
        const StreamHandle stream = step == 3 ? nullptr : streams[step % 2].handle();
        engine.use_stream(stream);
        for (int k = 0; k < 2; ++k)
          for (const int p : {1, 0}) {
            for (float& x : numbers) x = x * 0.75F + static_cast<float>(step + k + p + transport.rank());
            if (device) device->copy(memory.data(), numbers.data(), 800, stream);
            engine.add_grad(p, device ? static_cast<const void*>(memory.data()) : numbers.data(), DType::f32);
            if (device) device->zero(memory.data(), 800, stream);  // what follows on the stream may write there
          }
        engine.step(0.1);
      }
      if (transport.rank() != 0) return;
      engine.read_param(0, result.data());
      engine.read_param(1, result.data() + 120);
    });
    return result;
  };
  for (const Mode mode : {Mode::zero1, Mode::zero2}) {
    const std::vector<float> cpu = train(nullptr, 1, mode);
    for (const testing::DeviceUnderTest& under_test : devices_)
      EXPECT_EQ(train(under_test.device(), 1, mode), cpu) << under_test.name;
  }
}

}  // namespace
}  // namespace regatta
