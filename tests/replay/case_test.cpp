// Recorded cases: what is read of a file, what is refused, and that a run in two parts is the run in one.

#include "cli/replay/case.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <limits>

#include "cli/replay/run.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/error.h"
#include "tests/support/recorded_case.h"
#include "tests/support/spmd.h"

namespace regatta::cli {
namespace {

using Shape = std::vector<std::int64_t>;

class CaseFile : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"b", "a"}) {
      put(std::string("param.") + name, {2, 3});
      for (int step = 0; step < 2; ++step) put("grad." + std::to_string(step) + "." + name, {2, 3});
    }
    put("state.momentum.a", {2, 3});
  }
  void TearDown() override { std::filesystem::remove(path_); }

  void put(const std::string& name, Shape shape, DType dtype = DType::f32) {
    std::int64_t numel = 1;
    for (const std::int64_t extent : shape) numel *= extent;
    std::vector<float> values(static_cast<std::size_t>(numel));
    for (float& value : values) value = 0.5F * static_cast<float>(++count_ % 97);
    tensors_[name] = testing::tensor_of(values, std::move(shape), dtype);
  }
  float* values(const std::string& name) { return reinterpret_cast<float*>(tensors_.at(name).values.data()); }
  ReplayCase read() {
    std::vector<safetensors::Source> sources;
    for (const auto& [name, tensor] : tensors_)
      sources.push_back({name, tensor.dtype, tensor.shape, tensor.values.data()});
    safetensors::write(path_, sources, metadata_);
    return ReplayCase::read(path_);
  }
  void expect_refused(const std::string& words) {
    try {
      read();
      ADD_FAILURE() << "was read; expected '" << words << "'";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_argument);
      EXPECT_NE(std::string(error.what()).find(path_ + ": "), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what() << ", expected " << words;
    }
  }

  const std::string path_ = ::testing::TempDir() + "case_test" + std::to_string(::getpid()) + ".safetensors";
  std::map<std::string, WholeTensor> tensors_;
  safetensors::Metadata metadata_;
  int count_ = 0;
};

TEST_F(CaseFile, EveryTensorIsReadUnderItsName) {
  put("param.deep.name", {4}, DType::bf16);
  put("grad.0.deep.name", {4}, DType::f16);
  put("grad.1.deep.name", {4}, DType::f16);
  put("state.moment2.deep.name", {4});
  metadata_["step"] = "17";
  const ReplayCase recorded = read();
  EXPECT_EQ(recorded.names, (std::vector<std::string>{"a", "b", "deep.name"}));
  EXPECT_EQ(recorded.step, 17);
  ASSERT_EQ(recorded.gradients.size(), 2U);
  for (const std::string& name : recorded.names) {
    const auto same = [&](const WholeTensor& found, const std::string& stored) {
      EXPECT_EQ(found.values, tensors_.at(stored).values) << stored;
      EXPECT_EQ(found.shape, tensors_.at(stored).shape);
      EXPECT_EQ(found.dtype, tensors_.at(stored).dtype);
    };
    same(recorded.params.at(name), "param." + name);
    for (const std::size_t step : {0U, 1U})
      same(recorded.gradients[step].at(name), "grad." + std::to_string(step) + "." + name);
  }
  EXPECT_EQ(recorded.states.at("momentum").at("a").values, tensors_.at("state.momentum.a").values);
  EXPECT_EQ(recorded.states.at("moment2").at("deep.name").values, tensors_.at("state.moment2.deep.name").values);
  EXPECT_EQ(recorded.states.size(), 2U);
}

TEST_F(CaseFile, StepsAreInTheOrderOfTheirNumbers) {
  for (const char* name : {"a", "b"})
    for (int step = 2; step < 12; ++step) put("grad." + std::to_string(step) + "." + name, {2, 3});
  const ReplayCase recorded = read();
  ASSERT_EQ(recorded.gradients.size(), 12U);
  for (std::size_t step = 0; step < 12; ++step)
    EXPECT_EQ(recorded.gradients[step].at("b").values, tensors_.at("grad." + std::to_string(step) + ".b").values);
  EXPECT_EQ(recorded.step, 0);
}

TEST_F(CaseFile, WhatIsMissingOrMisnamedIsSaid) {
  const auto all = tensors_;
  const auto without = [&](const std::string& name, const std::string& words) {
    tensors_ = all;
    tensors_.erase(name);
    expect_refused(words);
  };
  for (const char* name : {"grad.0.a", "grad.0.b", "grad.1.a", "grad.1.b"})
    without(name, "tensor " + std::string(name) + " is missing; every parameter needs a gradient in every step");
  without("param.a", "belongs to parameter a, but there is no param.a");
  tensors_ = {};
  put("grad.0.a", {2, 3});
  expect_refused("there is no tensor named param.NAME");
  const auto with = [&](const std::string& name, Shape shape, const std::string& words) {
    tensors_ = all;
    put(name, std::move(shape));
    expect_refused(words);
  };
  for (const char* name : {"weight", "grad.0", "state.momentum", "grads.0.a", "momentum.a"})
    with(name, {2, 3}, "tensor " + std::string(name) + " is not named param.NAME, grad.STEP.NAME or state.STATE.NAME");
  for (const char* step : {"x", "-1", "1x", "", "1000001"})
    with(std::string("grad.") + step + ".a", {2, 3}, "names step '" + std::string(step) + "'");
  with("grad.3.a", {2, 3}, "grad.2.a is missing");
  with("grad.0.c", {2, 3}, "belongs to parameter c");
  with("state.momentum.c", {2, 3}, "belongs to parameter c");
  for (const char* name : {"grad.1.b", "state.momentum.a"})
    with(name, {3, 2}, "tensor " + std::string(name) + " has shape [3, 2]; expected [2, 3] as param.");
  with("param.b", {}, "tensor param.b is a scalar");
  tensors_ = all;
  put("grad.1.a", {2, 3}, DType::bf16);
  expect_refused("tensor grad.1.a has another dtype than grad.0.a");
  tensors_ = all;
  for (const char* step : {"x", "-1", "1.5", ""}) {
    metadata_["step"] = step;
    expect_refused("metadata step is '" + std::string(step) + "'");
  }
}

TEST_F(CaseFile, AValueThatIsNotFiniteIsNamedByItsPlace) {
  for (const auto& [name, tensor] : std::map<std::string, WholeTensor>(tensors_))
    for (const int at : {0, 5}) {
      const float good = values(name)[at];
      values(name)[at] = std::numeric_limits<float>::quiet_NaN();
      expect_refused("tensor " + name + " holds NaN at element " + std::to_string(at));
      values(name)[at] = -std::numeric_limits<float>::infinity();
      expect_refused("tensor " + name + " holds Inf at element " + std::to_string(at));
      values(name)[at] = good;
    }
  EXPECT_EQ(read().names.size(), 2U);
}

// Runs of the case in memory.

ReplayOptions options_for(const ReplayCase& recorded, const std::string& rule, const std::string& mesh) {
  ReplayOptions options;
  options.mesh = sharding::Mesh::parse(mesh);
  options.lr = 0.02;
  options.steps = static_cast<int>(recorded.gradients.size());
  options.groups = {{rule, make_rule(rule, {}), 1}};
  for (const std::string& name : recorded.names) {
    options.group_of.push_back(0);
    const bool vector = recorded.params.at(name).shape.size() == 1;
    options.placement_of.push_back(vector || options.mesh.size("tp") == 1 ? sharding::Placement{}
                                                                          : sharding::Placement::parse("tp:1"));
    options.blocks_of.push_back(name == "fused" ? Shape{5, 4, 3} : Shape{});
  }
  return options;
}

ReplayResult run(const ReplayCase& recorded, const ReplayOptions& options) {
  ReplayResult result;
  testing::run_ranks(options.mesh.world_size(), [&](Transport& transport) {
    ReplayResult mine = replay(recorded, options, transport);
    if (transport.rank() == 0) result = std::move(mine);
  });
  return result;
}

ReplayCase some_case(int steps) {
  testing::CaseBuilder builder(7, steps);
  builder.add({"wide", {5, 9}})
      .add({"tall", {11, 4}}, DType::bf16)
      .add({"fused", {12, 6}})
      .add({"vector", {7}}, DType::bf16, DType::f32);
  return builder.take();
}

/// `recorded` from step `from` on, beginning with what `result` holds.
ReplayCase rest_of(const ReplayCase& recorded, const ReplayResult& result, int from) {
  ReplayCase rest = recorded;
  rest.gradients.erase(rest.gradients.begin(), rest.gradients.begin() + from);
  rest.step = result.step;
  for (const auto& [name, tensor] : result.tensors) {
    const std::size_t dot = name.find('.', 6);
    if (name.starts_with("param."))
      rest.params[name.substr(6)] = tensor;
    else
      rest.states[name.substr(6, dot - 6)][name.substr(dot + 1)] = tensor;
  }
  return rest;
}

TEST(ReplayRun, TwoPartsAreTheWhole) {
  const ReplayCase recorded = some_case(5);
  for (const char* rule : {"reg", "adamw", "normuon"})
    for (const char* mesh : {"dp=1", "dp=2,tp=2"}) {
      const ReplayOptions options = options_for(recorded, rule, mesh);
      const ReplayResult whole = run(recorded, options);
      EXPECT_EQ(whole.step, 5);
      ReplayOptions part = options;
      part.steps = 2;
      const ReplayResult first = run(recorded, part);
      EXPECT_EQ(first.step, 2);
      const ReplayCase rest = rest_of(recorded, first, 2);
      part.steps = 3;
      const ReplayResult second = run(rest, part);
      EXPECT_EQ(second.step, 5) << rule;
      ASSERT_EQ(whole.tensors.size(), second.tensors.size());
      for (const auto& [name, tensor] : whole.tensors) {
        EXPECT_EQ(tensor.values, second.tensors.at(name).values) << rule << " on " << mesh << ": " << name;
        EXPECT_EQ(tensor.shape, second.tensors.at(name).shape) << name;
        EXPECT_EQ(tensor.dtype, second.tensors.at(name).dtype) << name;
        EXPECT_NE(tensor.values, first.tensors.at(name).values) << name;
      }
      if (std::string(rule) != "adamw") continue;
      // The number of updates made before is part of the arithmetic.
      ReplayCase other = rest;
      other.step = 0;
      EXPECT_NE(run(other, part).tensors.at("param.wide").values, whole.tensors.at("param.wide").values) << rule;
    }
}

TEST(ReplayRun, OnlySoManyStepsAreMade) {
  const ReplayCase recorded = some_case(3);
  ReplayOptions options = options_for(recorded, "reg", "dp=2");
  std::vector<std::vector<std::byte>> after;
  for (options.steps = 0; options.steps <= 3; ++options.steps) {
    const ReplayResult result = run(recorded, options);
    EXPECT_EQ(result.step, options.steps);
    after.push_back(result.tensors.at("param.wide").values);
    ReplayCase shorter = recorded;
    shorter.gradients.resize(static_cast<std::size_t>(options.steps));
    if (options.steps > 0) {
      EXPECT_EQ(run(shorter, options).tensors.at("param.wide").values, after.back());
    }
  }
  EXPECT_EQ(after[0], recorded.params.at("wide").values);
  for (std::size_t i = 1; i < after.size(); ++i) EXPECT_NE(after[i], after[i - 1]);
}

TEST(ReplayRun, FiguresAreThoseOfTheLastStep) {
  const ReplayCase recorded = some_case(3);
  for (const char* mesh : {"dp=1", "dp=3", "dp=2,tp=2"}) {
    ReplayOptions options = options_for(recorded, "reg", mesh);
    options.engine.clip = 0.5;
    const ReplayResult result = run(recorded, options);
    double squares = 0;
    for (const auto& [name, tensor] : recorded.gradients[2])
      for (const float value : testing::floats_of(tensor)) squares += static_cast<double>(value) * value;
    EXPECT_NEAR(result.last.grad_norm, std::sqrt(squares), 1e-6 * std::sqrt(squares)) << mesh;
    EXPECT_NEAR(result.last.clip_factor, 0.5 / std::sqrt(squares), 1e-6) << mesh;
    EXPECT_TRUE(result.bytes_as_planned);
    EXPECT_EQ(result.planned, result.counted);
    EXPECT_EQ(result.planned.total() == 0, options.mesh.world_size() == 1);
    const StepBytes& bytes = result.last.bytes;
    EXPECT_EQ(result.counted,
              (sharding::WireBytes{bytes.reduce_scatter, bytes.all_gather, bytes.exchange, bytes.vote}));
    // Momentum of all, and masters of the 16-bit ones; a vector is there for each tp rank.
    if (std::string(mesh) == "dp=1") {
      EXPECT_EQ(result.state_bytes, 4 * (45 + 44 + 72 + 7) + 4 * (44 + 7));
    }
  }
}

TEST(ReplayRun, StateThatTheRunDoesNotKeepIsRefused) {
  const ReplayCase recorded = some_case(1);
  const ReplayResult result = run(recorded, options_for(recorded, "reg", "dp=1"));
  const auto refusal = [&](const ReplayCase& with, const std::string& mesh) -> std::string {
    try {
      run(with, options_for(with, "reg", mesh));
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_argument);
      return error.what();
    }
    return "(was run)";
  };
  for (const char* mesh : {"dp=1", "dp=3"}) {
    ReplayCase other = rest_of(recorded, result, 0);
    EXPECT_EQ(refusal(other, mesh), "(was run)");
    other.states["moment2"]["wide"] = other.states["momentum"]["wide"];
    EXPECT_NE(refusal(other, mesh).find("tensor state.moment2.wide names a state that the rule of wide does not keep"),
              std::string::npos);
    other = rest_of(recorded, result, 0);
    WholeTensor& momentum = other.states["momentum"]["wide"];
    momentum = testing::tensor_of(testing::floats_of(momentum), momentum.shape, DType::bf16);
    EXPECT_NE(refusal(other, mesh).find("tensor state.momentum.wide is bf16; this run keeps it in f32"),
              std::string::npos);
    other = rest_of(recorded, result, 0);
    other.states["master"]["wide"] = other.params["wide"];  // fp32 needs none
    EXPECT_NE(refusal(other, mesh).find("state.master.wide"), std::string::npos);
  }
}

}  // namespace
}  // namespace regatta::cli
