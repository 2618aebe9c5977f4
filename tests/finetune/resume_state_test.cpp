// Everything a job has come to travels with it: what commands changed, the loss scale, skipped steps; and a checkpoint
// that a command asked for is one of the step that it says.

#include <ATen/ATen.h>

#include <atomic>
#include <cmath>
#include <thread>

#include "cli/finetune/resume.h"
#include "cli/finetune/saver.h"
#include "runtime/error.h"
#include "tests/finetune/small_training.h"

namespace regatta::finetune {
namespace {

namespace fs = std::filesystem;

class ResumeState : public testing::SmallTraining {
 protected:
  Options saving(const std::string& out) const {
    Options o = options(out);
    o.schedule.base = 0.01;
    o.global_batch = 4;
    o.accumulation = "tree";
    o.engine_flags.clip = 1;
    o.checkpoints.every = 2;
    return o;
  }
};

/// One rank's engine under a job, steered by hand.
class Steered {
 public:
  Steered(const Options& o, const sharding::Mesh& mesh, Transport& transport, checkpoint::Checkpoint* from)
      : mesh_(mesh),
        transport_(transport),
        job_(o, mesh, transport.rank(), from),
        engine_(job_.params, job_.groups, mesh, transport, job_.options.engine),
        attachment_(job_.module_params, engine_),
        saver_(job_, mesh, engine_, transport) {
    if (from != nullptr) resumed = resume(*from, job_, mesh, engine_);
  }
  StepReport step(std::int64_t number) {
    const Options& o = job_.options;
    for (int k = 0; k < o.engine.micro_batches; ++k) {
      const std::int64_t first = number * o.global_batch + engine_.micro_batch_index(k) * o.micro_batch;
      const torch::Tensor tokens =
          job_.train.rows(o.micro_batch, [&](std::int64_t row) { return job_.train.windows.begin(first + row); });
      (job_.model->loss(tokens) * (engine_.loss_scale() / static_cast<double>(o.global_batch))).backward();
    }
    return engine_.step(o.schedule.lr(number));
  }
  void command(std::uint32_t fields, std::int32_t group, double value) {
    Command c;
    c.kind = Command::Kind::set;
    c.fields = fields;
    c.group = group;
    c.lr = c.weight_decay = c.momentum = c.rho = c.clip = value;
    engine_.apply(c);
  }
  void save(std::int64_t number) { saver_.save_last(number); }
  std::vector<float> weights() {
    std::vector<float> all;
    for (int p = 0; p < static_cast<int>(job_.params.size()); ++p) {
      std::vector<float> one(static_cast<std::size_t>(engine_.param(p).numel));
      engine_.read_param(p, one.data());
      all.insert(all.end(), one.begin(), one.end());
    }
    return all;
  }
  Engine& engine() { return engine_; }
  /// The steps of saves that have ended since the last call.
  std::vector<std::int64_t> told() {
    std::vector<std::int64_t> steps;
    saver_.tell([&](const checkpoint::SaveOutcome& save) { steps.push_back(save.step); },
                [](const std::string& problem) { ADD_FAILURE() << problem; });
    return steps;
  }
  Resumed resumed;

 private:
  sharding::Mesh mesh_;
  Transport& transport_;
  Job job_;
  Engine engine_;
  EngineAttachment attachment_;
  Saver saver_;
};

void expect_same(const EngineProgress& a, const EngineProgress& b) {
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

/// Steps 0 to 3 with commands between, saved; then steps 4 to 9 by the same engines, and by new ones that went on.
TEST_F(ResumeState, WhatCommandsChangedAndHowFarTheLossScaleHasComeTravel) {
  struct Set {
    std::uint32_t fields;
    std::int32_t group;
    double value;
  };
  using C = Command;
  const std::vector<std::vector<Set>> stories{
      {{C::lr_given, C::all_groups, 0.03}},
      {{C::lr_given, 1, 0.07}},
      {{C::lr_given, C::all_groups, 0.02}, {C::lr_given, 0, 0.05}, {C::weight_decay_given, 0, 0.2}},
      {{C::momentum_given, 1, 0.5}, {C::rho_given, 1, 0.4}, {C::clip_given, C::all_groups, 0.125}},
      {{C::weight_decay_given, C::all_groups, 0.3}},
      {}};
  int number = 0;
  for (const std::vector<Set>& story : stories) {
    SCOPED_TRACE("story " + std::to_string(number));
    Options o = saving("story" + std::to_string(number++));
    o.engine_flags.mesh = "dp=2";
    o.engine.loss_scaling = {4, 3, 1};
    const sharding::Mesh mesh = mesh_of(o);
    complete(o, mesh);
    const std::string folder = o.checkpoint_dir() + "/step-00000004";
    fs::create_directories(o.out);
    std::vector<std::vector<float>> kept(2), gone_on(2);
    std::vector<EngineProgress> at_save(2), after(2), at_end(2), end(2);
    regatta::testing::run_ranks(2, [&](Transport& transport) {
      const auto r = static_cast<std::size_t>(transport.rank());
      Steered job(o, mesh, transport, nullptr);
      for (int step = 0; step < 2; ++step) job.step(step);
      for (const Set& set : story) job.command(set.fields, set.group, set.value);
      for (int step = 2; step < 4; ++step) job.step(step);
      job.save(4);
      at_save[r] = job.engine().progress();
      for (int step = 4; step < 10; ++step) job.step(step);
      kept[r] = job.weights();
      at_end[r] = job.engine().progress();
    });
    regatta::testing::run_ranks(2, [&](Transport& transport) {
      const auto r = static_cast<std::size_t>(transport.rank());
      checkpoint::Checkpoint from(folder);
      Steered job(o, mesh, transport, &from);
      after[r] = job.engine().progress();
      EXPECT_EQ(job.resumed.step, 4);
      for (int step = 4; step < 10; ++step) job.step(step);
      gone_on[r] = job.weights();
      end[r] = job.engine().progress();
    });
    for (std::size_t r = 0; r < 2; ++r) {
      expect_same(at_save[r], after[r]);
      expect_same(at_end[r], end[r]);
      EXPECT_EQ(kept[r], gone_on[r]);
    }
    EXPECT_EQ(at_save[0].loss_scale, 8);  // doubled at the third step
    EXPECT_EQ(at_save[0].finite_steps, 1);
    EXPECT_EQ(at_end[0].loss_scale, 32);
  }
}

TEST_F(ResumeState, AStepIsSavedOnce) {
  Options o = saving("job");
  o.engine_flags.mesh = "dp=1";
  const sharding::Mesh mesh = mesh_of(o);
  complete(o, mesh);
  fs::create_directories(o.out);
  regatta::testing::run_ranks(1, [&](Transport& transport) {
    using Steps = std::vector<std::int64_t>;
    Steered job(o, mesh, transport, nullptr);
    EXPECT_EQ(job.told(), Steps{});
    job.save(2);
    EXPECT_EQ(job.told(), Steps{2});
    job.save(2);
    EXPECT_EQ(job.told(), Steps{});
    job.save(3);
    EXPECT_EQ(job.told(), Steps{3});
  });
}

/// Of what several tensor-parallel ranks hold alike, one saves it; and it goes on on any of them.
TEST_F(ResumeState, TensorParallelRanksSaveEveryNumberOnce) {
  Options o = saving("straight");
  o.steps = 4;
  const Run straight = train(o, "dp=2,tp=2");
  const std::string folder = o.checkpoint_dir() + "/step-00000002";
  const checkpoint::Checkpoint saved(folder);
  std::int64_t all = 0;
  for (const auto& [key, tensor] : saved.state()) {
    EXPECT_EQ(tensor.stored, tensor.block.rows * tensor.block.cols) << key.text();
    all += tensor.stored;
  }
  const std::int64_t adamw = 2 * 256 * 12 + 5 * 12, reg = 2 * (2 * 16 * 12 + 2 * 8 * 12 + 3 * 20 * 12);
  EXPECT_EQ(all, 2 * adamw + reg);
  o.out = (folder_ / "on").string();
  EXPECT_EQ(train(o, "dp=2,tp=2", folder).weights, straight.weights);
  o.out = (folder_ / "dp4").string();
  const Run other = train(o, "dp=4", folder);
  for (std::size_t i = 0; i < 2; ++i)
    EXPECT_NEAR(other.steps[i].loss, straight.steps[i + 2].loss, 1e-5 * other.steps[i].loss);
}

TEST_F(ResumeState, SkippedStepsTravel) {
  Options o = saving("job");
  o.engine_flags.mesh = "dp=1";
  o.engine.loss_scaling = {std::ldexp(1.0, 129), 5, 1};
  const sharding::Mesh mesh = mesh_of(o);
  complete(o, mesh);
  fs::create_directories(o.out);
  EngineProgress saved_then, now;
  regatta::testing::run_ranks(1, [&](Transport& transport) {
    Steered job(o, mesh, transport, nullptr);
    for (int step = 0; step < 2; ++step) EXPECT_TRUE(job.step(step).skipped);
    job.save(2);
    saved_then = job.engine().progress();
  });
  EXPECT_EQ(saved_then.skipped_steps, 2);
  EXPECT_EQ(saved_then.steps, 0);
  EXPECT_EQ(saved_then.loss_scale, std::ldexp(1.0, 127));
  regatta::testing::run_ranks(1, [&](Transport& transport) {
    checkpoint::Checkpoint from(o.checkpoint_dir() + "/step-00000002");
    Steered job(o, mesh, transport, &from);
    now = job.engine().progress();
  });
  expect_same(saved_then, now);
}

/// Allowed to have other rules, the flags of the new job hold, and the rest travels all the same.
TEST_F(ResumeState, OtherRulesThatWereAllowedHold) {
  Options o = saving("job");
  o.engine_flags.mesh = "dp=1";
  o.engine.loss_scaling = {4, 2, 1};
  const sharding::Mesh mesh = mesh_of(o);
  complete(o, mesh);
  fs::create_directories(o.out);
  regatta::testing::run_ranks(1, [&](Transport& transport) {
    Steered job(o, mesh, transport, nullptr);
    for (int step = 0; step < 3; ++step) job.step(step);
    job.command(Command::lr_given, Command::all_groups, 0.03);
    job.command(Command::lr_given, 0, 0.07);
    job.save(3);
  });
  o.rules.settings = {"weight_decay=0.5"};
  o.engine_flags.clip = 7;
  o.checkpoints.allow = {"rules"};
  complete(o, mesh);
  regatta::testing::run_ranks(1, [&](Transport& transport) {
    checkpoint::Checkpoint from(o.checkpoint_dir() + "/step-00000003");
    Steered job(o, mesh, transport, &from);
    const EngineProgress now = job.engine().progress();
    EXPECT_EQ(now.steps, 3);
    EXPECT_EQ(now.loss_scale, 8);
    EXPECT_EQ(now.finite_steps, 1);
    EXPECT_EQ(now.commanded_lr, 0.03);
    EXPECT_EQ(now.clip, 7);
    for (const EngineProgress::GroupSettings& group : now.groups) {
      EXPECT_FALSE(group.own_lr);
      for (const auto& [name, value] : group.rule)
        if (name == "weight_decay") {
          EXPECT_EQ(value, "0.5");
        }
    }
  });
}

TEST_F(ResumeState, ACheckpointThatWasAskedForIsOfTheStepItSays) {
  Options o = saving("straight");
  o.steps = 40;
  o.checkpoints = {};
  const std::string straight = train(o, "dp=2").weights;
  o.out = (folder_ / "asked").string();
  o.checkpoints.dir = o.out + "/c";
  o.engine_flags.mesh = "dp=2";
  fs::create_directories(o.out);
  const sharding::Mesh mesh = mesh_of(o);
  complete(o, mesh);
  control::Mailbox mailbox;
  control::Answer answer;
  std::atomic<bool> begun = false, waits = false, over = false;
  std::thread person([&] {
    while (!begun) std::this_thread::yield();
    control::Request request;
    request.command.kind = Command::Kind::save;
    answer = mailbox.send(request, [&] {
      waits = true;
      return over.load();
    });
  });
  regatta::testing::run_ranks(2, [&](Transport& transport) {
    Job job(o, mesh, transport.rank());
    Observer observer;
    if (transport.rank() == 0) {
      observer.stepped = [&](const StepRecord&) {
        begun = true;
        while (!waits) std::this_thread::yield();
      };
    }
    Trainer trainer(job, mesh, transport, transport.rank() == 0 ? &mailbox : nullptr);
    trainer.run(observer);
  });
  over = true;
  person.join();
  const std::vector<checkpoint::Listed> all = checkpoint::list_checkpoints(o.checkpoint_dir());
  EXPECT_EQ(answer.kind, control::Answer::Kind::accepted) << answer.sentence;
  ASSERT_EQ(all.size(), 2U);
  EXPECT_EQ(checkpoint::Checkpoint(all.back().path).manifest().step, 40);
  for (const checkpoint::Listed& each : all) {
    Options on = o;
    on.out = (folder_ / fs::path(each.path).filename()).string();
    on.checkpoints.dir = on.out + "/c";
    EXPECT_EQ(train(on, "dp=1", each.path).weights, straight) << each.path;
  }
}

}  // namespace
}  // namespace regatta::finetune
