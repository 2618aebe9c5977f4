// What a checkpoint of `finetune` carries from one job to another: all of the engine's progress and state, onto any
// mesh; and what two jobs must have in common for that.

#include <nlohmann/json.hpp>

#include "tests/finetune/resume_job.h"

namespace regatta::finetune {
namespace {

/// Every number and every setting is another.
EngineProgress odd_progress(const Engine& engine) {
  EngineProgress progress = engine.progress();
  progress.steps = 5;
  progress.skipped_steps = 2;
  progress.loss_scale = 4096.25;
  progress.finite_steps = 33;
  progress.commanded_lr = 0.1234567890123456789;
  progress.clip = 0.7;
  int n = 1;
  for (EngineProgress::GroupSettings& group : progress.groups) {
    if (group.name != progress.groups[0].name) group.own_lr = 0.3 / ++n;
    for (auto& [name, value] : group.rule)
      if (name == "weight_decay") value = "0.0" + std::to_string(++n) + "5";
  }
  return progress;
}

void expect_equal(const EngineProgress& a, const EngineProgress& b) {
  EXPECT_EQ(a.steps, b.steps);
  EXPECT_EQ(a.skipped_steps, b.skipped_steps);
  EXPECT_EQ(a.loss_scale, b.loss_scale);
  EXPECT_EQ(a.finite_steps, b.finite_steps);
  EXPECT_EQ(a.commanded_lr, b.commanded_lr);
  EXPECT_EQ(a.clip, b.clip);
  ASSERT_EQ(a.groups.size(), b.groups.size());
  for (std::size_t g = 0; g < a.groups.size(); ++g) {
    EXPECT_EQ(a.groups[g].name, b.groups[g].name);
    EXPECT_EQ(a.groups[g].rule, b.groups[g].rule);
    EXPECT_EQ(a.groups[g].own_lr, b.groups[g].own_lr);
  }
}

TEST_F(CarriedState, EverythingGoesOnOnAnyMesh) {
  const std::string step7 = folder_.at("checkpoints/step-00000007");
  Collected saved;
  EngineProgress progress;
  on_ranks(options("dp=2,tp=2"), "", [&](Rank r) {
    const EngineProgress odd = odd_progress(r.engine);
    r.engine.restore(odd);
    fill(r.engine);
    Saver saver(r.job, r.mesh, r.engine, r.transport);
    EXPECT_EQ(saver.save(7), "");
    fill(r.engine);
    saver.save_last(7);
    saved.add(r.engine);
    if (r.transport.rank() == 0) progress = odd;
  });
  EXPECT_GT(saved.states.size(), 20U);
  const checkpoint::Checkpoint whole(step7);
  EXPECT_EQ(whole.state().size(), saved.states.size());
  for (const auto& [key, tensor] : whole.state()) EXPECT_EQ(tensor.stored, tensor.block.numel()) << key.text();
  const auto job = nlohmann::json::parse(checkpoint::Checkpoint(step7).manifest().job);
  EXPECT_EQ(job.at("step"), 7);
  EXPECT_EQ(job.at("tokens"), 7 * 12 * 12);
  EXPECT_EQ(job.at("mesh"), "dp=2,tp=2");
  EXPECT_EQ(job.at("mode"), "zero1");
  EXPECT_EQ(job.at("rule"), "reg");
  EXPECT_EQ(job.at("transport"), "local");
  EXPECT_EQ(job.at("data"), options("dp=1").data);
  std::map<std::string, at::Tensor> first;
  for (const char* mesh : {"dp=2,tp=2", "dp=1", "dp=3", "tp=2"}) {
    Options o = options(mesh);
    if (std::string(mesh) == "dp=3") {
      o.engine_flags.mode = "zero2";
      o.engine_flags.cut = "element";
    }
    Collected loaded;
    on_ranks(o, step7, [&](Rank r) {
      checkpoint::Checkpoint from(step7);
      const Resumed resumed = resume(from, r.job, r.mesh, r.engine);
      EXPECT_EQ(resumed.step, 7);
      expect_says(resumed.told, "after step 7 and 1008 tokens from " + step7 + ": rule reg, mesh dp=2,tp=2 then and " +
                                    mesh + " now");
      if (r.transport.rank() == 0) expect_equal(r.engine.progress(), progress);
      loaded.add(r.engine);
    });
    EXPECT_EQ(loaded.states, saved.states) << mesh;
  }
}

TEST_F(CarriedState, WhatDiffersIsNamedAndAllowedByItsWordOnly) {
  const std::string step1 = folder_.at("checkpoints/step-00000001");
  on_ranks(options("dp=1"), "", [&](Rank r) { Saver(r.job, r.mesh, r.engine, r.transport).save_last(1); });
  const std::vector<std::string> words{"data", "batch", "schedule", "rules", "arithmetic", "state", "tensors"};
  struct Case {
    const char* word;
    const char* named;
    std::function<void(Options&)> change;
  };
  const std::vector<Case> cases{
      {"data", "fingerprint", [&](Options& o) { o.data = {folder_.at("text1")}; }},
      {"data", "fingerprint", [&](Options& o) { o.data = {folder_.at("text2")}; }},
      {"data", "tokens", [&](Options& o) { o.data.push_back(folder_.at("text0")); }},
      {"data", "seq was 12 and is 13", [](Options& o) { o.seq = 13; }},
      {"data", "seed was 4 and is 5", [](Options& o) { o.seed = 5; }},
      {"batch", "global_batch was 12 and is 24", [](Options& o) { o.global_batch = 24; }},
      {"schedule", "kind was \"cosine\" and is \"linear\"", [](Options& o) { o.schedule_name = "linear"; }},
      {"schedule", "final_ratio was 0.25 and is not set", [](Options& o) { o.schedule_name = "constant"; }},
      {"schedule", "lr was 0.01 and is 0.02", [](Options& o) { o.schedule.base = 0.02; }},
      {"schedule", "warmup was 2 and is 3", [](Options& o) { o.schedule.warmup = 3; }},
      {"schedule", "steps was 20 and is 21", [](Options& o) { o.steps = 21; }},
      {"schedule", "final_ratio was 0.25 and is 0.5", [](Options& o) { o.schedule.final_ratio = 0.5; }},
      {"schedule", "lr_at.3 was 0.5 and is 0.25", [](Options& o) { o.lr_at = {"3=0.25"}; }},
      {"schedule", "lr_at.4 was not set and is 0.5",
       [](Options& o) {
         o.lr_at = {"3=0.5", "4=0.5"};
       }},
      {"schedule", "lr_at.3 was 0.5 and is not set", [](Options& o) { o.lr_at = {}; }},
      {"rules", "clip was 1.0 and is 2.0", [](Options& o) { o.engine_flags.clip = 2; }},
      {"rules", "reg", [](Options& o) { o.rules.settings = {"rho=0.3"}; }},
      {"rules", "adamw", [](Options& o) { o.rules.settings = {"adamw.beta2=0.9"}; }},
      {"arithmetic", "accumulation was \"sum\" and is \"tree\"", [](Options& o) { o.accumulation = "tree"; }},
      {"state", "momentum has another shape or dtype", [](Options& o) { o.engine_flags.momentum_dtype = "fp32"; }}};
  for (const Case& each : cases) {
    const auto attempt = [&](const std::vector<std::string>& allow) {
      Options o = options("dp=1");
      each.change(o);
      o.checkpoints.allow = allow;
      return refusal([&] {
        on_ranks(o, step1, [&](Rank r) {
          checkpoint::Checkpoint from(step1);
          resume(from, r.job, r.mesh, r.engine);
        });
      });
    };
    const std::string said = attempt({});
    expect_says(said, step1);
    expect_says(said, each.named);
    expect_says(said, std::string("--allow ") + each.word);
    std::vector<std::string> others;
    for (const std::string& word : words)
      if (word != each.word) others.push_back(word);
    EXPECT_EQ(attempt(others), said);
    EXPECT_EQ(attempt({each.word}), "") << each.named;
  }
}

// The flags win where the rules differ by them; what a command has set stays otherwise.
TEST_F(CarriedState, RulesThatDifferAreThisJobs) {
  const std::string step1 = folder_.at("checkpoints/step-00000001");
  EngineProgress odd;
  on_ranks(options("dp=1"), "", [&](Rank r) {
    odd = odd_progress(r.engine);
    r.engine.restore(odd);
    Saver(r.job, r.mesh, r.engine, r.transport).save_last(1);
  });
  Options o = options("dp=1");
  o.engine_flags.clip = 3;
  o.checkpoints.allow = {"rules"};
  on_ranks(o, step1, [&](Rank r) {
    EngineProgress expected = r.engine.progress();
    EXPECT_EQ(expected.clip, 3);
    checkpoint::Checkpoint from(step1);
    resume(from, r.job, r.mesh, r.engine);
    expected.steps = odd.steps;
    expected.skipped_steps = odd.skipped_steps;
    expected.loss_scale = odd.loss_scale;
    expected.finite_steps = odd.finite_steps;
    expected.commanded_lr = odd.commanded_lr;
    expect_equal(r.engine.progress(), expected);
  });
}

}  // namespace
}  // namespace regatta::finetune
