// The engine's device path: every layout gives the bits of the CPU engine, on a GPU or with the kernels' own source on
// the emulator in its place, whether transports read the device's memory or everything goes through the host.

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "cli/replay/run.h"
#include "runtime/device/buffer.h"
#include "tests/support/devices_under_test.h"
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
};

/// Numbers of the host where the engine expects them.
class Upload {
 public:
  const void* operator()(const std::vector<float>& values, Device* device) {
    if (device == nullptr) return values.data();
    const auto bytes = static_cast<std::int64_t>(values.size() * sizeof(float));
    memory_ = Buffer(bytes, device);
    device->copy(memory_.data(), values.data(), bytes, nullptr);
    device->synchronize(nullptr);
    return memory_.data();
  }

 private:
  Buffer memory_;
};

class DeviceEngine : public ::testing::Test {
 protected:
  std::vector<testing::DeviceUnderTest> devices_;
  void SetUp() override {
    std::string why_not;
    devices_ = testing::devices_under_test(why_not);
    if (devices_.empty()) GTEST_SKIP() << why_not;
  }

  std::map<std::string, std::vector<std::int64_t>> blocks_{{"fused", {6, 3, 3}}};
  std::string vector_rule_;  // of one-dim parameters, in a group of its own; empty: as all
  EngineOptions engine_;

  ReplayResult run(const ReplayCase& recorded, const std::string& rule, const Settings& settings, const Layout& layout,
                   const std::function<std::shared_ptr<Device>()>& device, bool graph = false) {
    ReplayOptions options;
    options.mesh = Mesh::parse(layout.mesh);
    options.engine = engine_;
    options.engine.mode = layout.mode;
    options.engine.cut = layout.cut;
    options.engine.bucket_bytes = layout.bucket_bytes;
    options.lr = 0.02;
    options.steps = static_cast<int>(recorded.gradients.size());
    options.groups = {{rule, make_rule(rule, settings), 1}};
    if (!vector_rule_.empty()) options.groups.push_back({"vectors", make_rule(vector_rule_, {}), 0.5});
    for (const std::string& name : recorded.names) {
      const bool vector = recorded.params.at(name).shape.size() == 1;
      options.group_of.push_back(vector && !vector_rule_.empty() ? 1 : 0);
      options.placement_of.push_back(vector ? sharding::Placement{} : sharding::Placement::parse(layout.place));
      const auto blocks = blocks_.find(name);
      options.blocks_of.push_back(blocks == blocks_.end() ? std::vector<std::int64_t>{} : blocks->second);
    }
    ReplayResult result;
    testing::run_ranks(options.mesh.world_size(), [&](Transport& transport) {
      ReplayOptions own = options;
      if (device) own.engine.device = device();
      own.engine.device_graph = graph;
      ReplayResult mine = cli::replay(recorded, own, transport);
      if (transport.rank() == 0) result = std::move(mine);
    });
    return result;
  }

  /// On the CPU and on all kinds of device.
  void expect_same(const ReplayCase& recorded, const std::string& rule, const Settings& settings,
                   const Layout& layout) {
    const ReplayResult cpu = run(recorded, rule, settings, layout, nullptr);
    for (const testing::DeviceUnderTest& under_test : devices_)
      for (const bool graph : {false, true}) {
        if (graph && Mesh::parse(layout.mesh).world_size() > 1) continue;
        const ReplayResult device = run(recorded, rule, settings, layout, under_test.device, graph);
        const std::string what = rule + " on " + layout.mesh + " place '" + layout.place + "', mode " +
                                 std::to_string(static_cast<int>(layout.mode)) + ", " + under_test.name +
                                 (graph ? ", as a graph" : "");
        expect_same(cpu, device, what);
      }
  }

  static void expect_same(const ReplayResult& cpu, const ReplayResult& device, const std::string& what) {
    EXPECT_TRUE(device.bytes_as_planned) << what;
    EXPECT_EQ(cpu.last.grad_norm, device.last.grad_norm) << what;
    EXPECT_EQ(cpu.last.clip_factor, device.last.clip_factor) << what;
    ASSERT_EQ(cpu.tensors.size(), device.tensors.size()) << what;
    for (const auto& [name, tensor] : cpu.tensors)
      EXPECT_EQ(tensor.values, device.tensors.at(name).values) << name << ": " << what;
    for (std::size_t g = 0; g < cpu.last.groups.size(); ++g) {
      const GroupReport &a = cpu.last.groups[g], &b = device.last.groups[g];
      EXPECT_NEAR(a.update_rms, b.update_rms, 2e-6 * a.update_rms) << what;
      EXPECT_EQ(a.smallest_line_norm, b.smallest_line_norm) << what;
      EXPECT_EQ(a.largest_line_norm, b.largest_line_norm) << what;
      EXPECT_EQ(a.zero_lines, b.zero_lines) << what;
      EXPECT_EQ(a.clamped_lines, b.clamped_lines) << what;
    }
  }

  static ReplayCase awkward(std::uint64_t seed, int steps, DType dtype = DType::f32, DType grad_dtype = DType::f32) {
    testing::CaseBuilder builder(seed, steps);
    for (const testing::Shape& shape : std::vector<testing::Shape>{{"wide", {7, 19}},
                                                                   {"tall", {23, 6}},
                                                                   {"square", {9, 9}},
                                                                   {"column", {13, 1}},
                                                                   {"fused", {12, 8}},
                                                                   {"long_row", {2, 300}},
                                                                   {"vector", {11}}})
      builder.add(shape, dtype, grad_dtype);
    return builder.take();
  }
};

const Layout layouts[] = {{"dp=1"},
                          {"dp=3", Mode::zero1, Cut::element, "", 500},
                          {"dp=2", Mode::zero1, Cut::row, "", 900},
                          {"tp=2", Mode::zero1, Cut::row, "tp:1"},
                          {"dp=2,tp=2", Mode::zero1, Cut::element, "tp:0", 700},
                          {"dp=3", Mode::sharded, Cut::row, "dp:flat"}};

TEST_F(DeviceEngine, RegGivesTheBitsOfTheCpu) {
  vector_rule_ = "adamw";
  const ReplayCase recorded = awkward(1, 2);
  for (const Layout& layout : layouts) expect_same(recorded, "reg", {}, layout);
}

TEST_F(DeviceEngine, EveryNormAndPassCount) {
  const ReplayCase recorded = awkward(2, 2);
  int turn = 0;
  for (const char* p : {"1", "2", "inf"})
    for (const char* passes : {"1", "2", "3"})
      expect_same(recorded, "reg", {{"p", p}, {"passes", passes}}, layouts[turn++ % std::size(layouts)]);
  expect_same(recorded, "reg", {{"zero_line", "count"}}, layouts[1]);
}

TEST_F(DeviceEngine, EveryDtypeAndClipping) {
  engine_.clip = 0.5;
  int turn = 1;
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
    for (const DType grad_dtype : {DType::f32, DType::bf16})
      for (const DType momentum : {DType::f32, DType::bf16}) {
        engine_.momentum_dtype = momentum;
        const ReplayCase recorded = awkward(3, 2, dtype, grad_dtype);
        expect_same(recorded, turn % 2 == 0 ? "adamw" : "reg", {}, layouts[turn % std::size(layouts)]);
        ++turn;
      }
}

TEST_F(DeviceEngine, StagesOfZero2) {
  const ReplayCase recorded = awkward(4, 2, DType::bf16, DType::bf16);
  expect_same(recorded, "reg", {}, {"dp=2", Mode::zero2, Cut::row, "", 300});
  expect_same(recorded, "reg", {}, {"dp=1", Mode::zero2, Cut::row, "", 300});
}

// Micro-batches, tree and sum, against the CPU with the same gradients.
TEST_F(DeviceEngine, MicroBatchesAddUpAsOnTheCpu) {
  for (const Mode mode : {Mode::zero1, Mode::zero2})
    for (const Accumulation accumulation : {Accumulation::sum, Accumulation::tree}) {
      std::vector<std::vector<float>> results;
      for (std::size_t way = 0; way <= devices_.size(); ++way) {
        std::vector<float> values(60 * 4);
        testing::run_ranks(2, [&](Transport& transport) {
          EngineOptions options;
          options.mode = mode;
          options.accumulation = accumulation;
          options.micro_batches = 4;
          options.bucket_bytes = 400;
          if (way > 0) options.device = devices_[way - 1].device();
          Param a{"a", {10, 12}}, b{"b", {12, 10}};
          Engine engine({a, b}, {{"all", make_rule("reg", {}), 1}}, Mesh::parse("dp=2"), transport, options);
          std::mt19937 random(5);
          std::normal_distribution<float> normal;
          std::vector<float> numbers(120);
          Upload on_device;
          for (int p = 0; p < 2; ++p) {
            for (float& x : numbers) x = normal(random);
            engine.write_param(p, numbers.data());
          }
          engine.publish_params();
          for (int step = 0; step < 2; ++step) {
            for (int k = 0; k < 4; ++k)
              for (int p = 1; p >= 0; --p) {
                for (int r = 0; r <= transport.rank() || r == 0; ++r)
                  for (float& x : numbers) x = normal(random);
                engine.add_grad(p, on_device(numbers, options.device.get()), DType::f32);
              }
            engine.step(0.1);
          }
          if (transport.rank() != 0) return;
          engine.read_param(0, values.data());
          engine.read_param(1, values.data() + 120);
        });
        results.push_back(values);
      }
      for (std::size_t way = 1; way < results.size(); ++way)
        EXPECT_EQ(results[0], results[way]) << devices_[way - 1].name << ", mode " << static_cast<int>(mode);
    }
}

// Steps that clip, one that is skipped, and settings that change on the way: what every step tells and leaves behind.
struct Told {
  bool skipped = false;
  std::string culprit;
  std::int64_t step = 0;
  double grad_norm = 0, clip_factor = 0, loss_scale = 0;
  std::vector<float> values;
  bool operator==(const Told&) const = default;
};

std::vector<Told> tell_steps(const std::shared_ptr<Device>& device, bool graph) {
  std::vector<Told> told;
  testing::run_ranks(1, [&](Transport& transport) {
    EngineOptions options;
    options.device = device;
    options.device_graph = graph;
    options.clip = 2;
    options.loss_scaling = {1024, 3, 1};
    Upload upload;
    std::vector<Param> params{{"wide", {8, 12}}, {"tall", {96, 1}}, {"vector", {96}}};
    params[2].group = 1;
    Engine engine(params, {{"reg", make_rule("reg", {}), 1}, {"adamw", make_rule("adamw", {}), 1}}, Mesh(), transport,
                  options);
    std::vector<float> numbers(96);
    for (int i = 0; i < 96; ++i) numbers[i] = static_cast<float>(i % 13) - 5;
    for (int p = 0; p < 3; ++p) engine.write_param(p, numbers.data());
    engine.publish_params();
    for (int step = 0; step < 7; ++step) {
      for (int p = 2; p >= 0; --p) {
        std::vector<float> grad = numbers;
        for (float& x : grad)
          x *= static_cast<float>(engine.loss_scale()) * 0.1F * static_cast<float>(1 + (step + p) % 4);
        if (step == 3 && p == 1) grad[7] = std::numeric_limits<float>::infinity();
        engine.add_grad(p, upload(grad, device.get()), DType::f32);
      }
      const StepReport report = engine.step(0.1 / (1 + step));
      Told& now = told.emplace_back();
      now = {report.skipped, report.culprit, report.step, report.grad_norm, report.clip_factor, report.loss_scale, {}};
      for (int p = 0; p < 3; ++p) {
        std::vector<float> values(96);
        engine.read_param(p, values.data());
        now.values.insert(now.values.end(), values.begin(), values.end());
      }
      if (step != 1 && step != 4) continue;
      Command command;
      command.kind = Command::Kind::set;
      command.fields = Command::momentum_given | Command::weight_decay_given | Command::clip_given;
      command.momentum = 0.5 + 0.1 * step;
      command.weight_decay = 0.3;
      command.clip = 3;
      engine.apply(command);
    }
  });
  return told;
}

TEST_F(DeviceEngine, TellsOfEveryStepWhatTheCpuTells) {
  const std::vector<Told> cpu = tell_steps(nullptr, false);
  ASSERT_EQ(cpu.size(), 7u);
  EXPECT_TRUE(cpu[3].skipped);
  EXPECT_EQ(cpu[3].culprit, "tall");
  EXPECT_EQ(cpu[3].values, cpu[2].values);
  EXPECT_NE(cpu[4].values, cpu[3].values);
  EXPECT_LT(cpu[0].clip_factor, 1);
  for (const testing::DeviceUnderTest& under_test : devices_)
    for (const bool graph : {false, true}) {
      const std::vector<Told> device = tell_steps(under_test.device(), graph);
      for (std::size_t step = 0; step < cpu.size(); ++step)
        EXPECT_TRUE(device[step] == cpu[step])
            << "step " << step << " on " << under_test.name << (graph ? " as a graph" : "") << ": norm "
            << device[step].grad_norm << ", expected " << cpu[step].grad_norm;
    }
}

// A job that goes on elsewhere: state leaves a CPU and enters a device, and the other way round.
TEST_F(DeviceEngine, TakesOverStateOfTheCpuAndGivesItBack) {
  const std::shared_ptr<Device> its_device = devices_.back().device();
  testing::run_ranks(1, [&](Transport& transport) {
    const auto make = [&](std::shared_ptr<Device> device) {
      EngineOptions options;
      options.device = std::move(device);
      Param wide{"wide", {4, 24}, DType::bf16}, tall{"tall", {24, 4}, DType::bf16, DType::f32};
      wide.grad_dtype = DType::f32;
      return std::make_unique<Engine>(std::vector<Param>{wide, tall},
                                      std::vector<Group>{{"all", make_rule("reg", {}), 1}}, Mesh(), transport, options);
    };
    std::vector<float> numbers(96);
    for (int i = 0; i < 96; ++i) numbers[i] = static_cast<float>(i % 17) - 8;
    Upload upload;
    const auto step = [&](Engine& engine) {
      for (int p = 1; p >= 0; --p) engine.add_grad(p, upload(numbers, engine.options().device.get()), DType::f32);
      engine.step(0.1);
    };
    const auto move = [&](Engine& from, Engine& to) {
      std::vector<std::byte> values(2 * 96);
      for (int p = 0; p < 2; ++p) {
        from.read_param(p, values.data());
        to.write_param(p, values.data());
      }
      to.publish_params();
      const std::vector<StatePart> parts = from.state_parts(), places = to.state_parts();
      ASSERT_EQ(parts.size(), 4u);  // momentum and master weights of both
      for (std::size_t i = 0; i < parts.size(); ++i) to.load_state(places[i], parts[i].data);
      to.set_step_count(from.step_count());
    };
    const auto expect_same = [](Engine& a, Engine& b) {
      const std::vector<StatePart> mine = a.state_parts(), theirs = b.state_parts();
      for (std::size_t i = 0; i < mine.size(); ++i)
        EXPECT_EQ(std::memcmp(mine[i].data, theirs[i].data,
                              static_cast<std::size_t>(mine[i].part.run.size() * size_of(mine[i].dtype))),
                  0)
            << mine[i].state;
    };
    const auto cpu = make(nullptr), device = make(its_device), again = make(nullptr);
    step(*cpu);
    move(*cpu, *device);
    step(*cpu);
    step(*device);
    expect_same(*cpu, *device);
    move(*device, *again);
    step(*cpu);
    step(*again);
    expect_same(*cpu, *again);
  });
}

TEST_F(DeviceEngine, RefusesWhatItCannot) {
  EngineOptions options;
  options.device = devices_.back().device();
  options.proof_every = 3;
  testing::run_ranks(1, [&](Transport& transport) {
    try {
      Engine engine({Param{"a", {4, 8}}}, {{"all", make_rule("reg", {}), 1}}, Mesh(), transport, options);
      FAIL() << "expected an error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_argument);
      EXPECT_NE(std::string(error.what()).find("live proof"), std::string::npos) << error.what();
    }
  });
  class Elsewhere : public Rule {
    std::string_view name() const override { return "elsewhere"; }
    std::string settings_text() const override { return "elsewhere"; }
    sharding::View view(MatrixShape) const override { return sharding::View::elements(); }
    std::vector<StateSpec> state(DType) const override { return {}; }
    void update(const RunTensors&, MatrixShape, const StepInfo&, DType, ThreadPool&,
                kernels::SweepHealth&) const override {}
  };
  options.proof_every = 0;
  testing::run_ranks(1, [&](Transport& transport) {
    try {
      Engine engine({Param{"a", {4, 8}}}, {{"all", std::make_shared<Elsewhere>(), 1}}, Mesh(), transport, options);
      FAIL() << "expected an error";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("rule elsewhere, which has no kernels"), std::string::npos)
          << error.what();
    }
  });
  EXPECT_THROW(open_device("gpu"), Error);
  EXPECT_THROW(open_device("cuda:x"), Error);
  EXPECT_EQ(open_device("cpu"), nullptr);
}

}  // namespace
}  // namespace regatta
