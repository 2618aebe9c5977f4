// What a job goes on with after it was saved: every number of EngineProgress, the loss scale and its growth, and what
// happens to a job that is stopped by a gradient.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/job_run.h"
#include "tests/support/usual_job.h"

namespace regatta {
namespace {

using sharding::Mesh;
using Settings = std::vector<std::pair<std::string, std::string>>;

constexpr float inf = std::numeric_limits<float>::infinity();

std::vector<Group> two_groups() {
  return {{"matrices", make_rule("reg", {}), 1}, {"rest", make_rule("adamw", {}), 0.5}};
}

std::unique_ptr<Engine> make_engine(Transport& transport, const EngineOptions& options = {}) {
  std::vector<Param> params{{"w", {4, 6}}, {"v", {5}}};
  params[1].group = 1;
  auto engine =
      std::make_unique<Engine>(params, two_groups(), Mesh({{"dp", transport.world_size()}}), transport, options);
  engine->publish_params();
  return engine;
}

StepReport make_step(Engine& engine, float grad, double lr = 0.1) {
  const std::vector<float> numbers(24, grad);
  for (const int p : {1, 0}) engine.add_grad(p, numbers.data(), DType::f32);
  return engine.step(lr);
}

bool same(const EngineProgress& a, const EngineProgress& b) {
  bool equal = a.steps == b.steps && a.skipped_steps == b.skipped_steps && a.loss_scale == b.loss_scale &&
               a.finite_steps == b.finite_steps && a.commanded_lr == b.commanded_lr && a.clip == b.clip &&
               a.groups.size() == b.groups.size();
  for (std::size_t g = 0; equal && g < a.groups.size(); ++g)
    equal = a.groups[g].name == b.groups[g].name && a.groups[g].rule == b.groups[g].rule &&
            a.groups[g].own_lr == b.groups[g].own_lr;
  return equal;
}

// Every number another one.
EngineProgress unlike(const Engine& engine) {
  EngineProgress progress = engine.progress();
  progress.steps = 11;
  progress.skipped_steps = 3;
  progress.loss_scale = 64;
  progress.finite_steps = 2;
  progress.commanded_lr = 0.031;
  progress.clip = 7;
  progress.groups[0].rule = settings_of(*make_rule("reg", Settings{{"momentum", "0.5"}, {"weight_decay", "0.125"}}));
  progress.groups[1].own_lr = 0.017;
  return progress;
}

TEST(Progress, IsTakenOverNumberByNumber) {
  testing::run_ranks(2, [](Transport& transport) {
    EngineOptions options;
    options.loss_scaling = {8, 4, 1};
    const auto engine = make_engine(transport, options);
    const EngineProgress fresh = engine->progress(), wanted = unlike(*engine);
    EXPECT_EQ(fresh.steps, 0);
    EXPECT_EQ(fresh.loss_scale, 8);
    EXPECT_FALSE(fresh.commanded_lr);
    EXPECT_FALSE(same(fresh, wanted));
    engine->restore(wanted);
    EXPECT_TRUE(same(engine->progress(), wanted));
    EXPECT_EQ(engine->loss_scale(), 64);
    EXPECT_EQ(engine->step_count(), 11);
    EXPECT_EQ(engine->groups()[0].rule->settings_text(),
              make_rule("reg", Settings{{"momentum", "0.5"}, {"weight_decay", "0.125"}})->settings_text());
    StepReport report = make_step(*engine, inf, 0.1);  // one that is skipped counts on from there
    EXPECT_EQ(report.skipped_steps, 4);
    EXPECT_EQ(report.step, 11);
    EXPECT_EQ(report.lr, 0.031);
    EXPECT_EQ(report.groups[0].lr, 0.031);
    EXPECT_EQ(report.groups[1].lr, 0.017);
    EXPECT_EQ(report.loss_scale, 64);
    EXPECT_EQ(engine->loss_scale(), 32);
    report = make_step(*engine, 1000, 0.1);
    EXPECT_EQ(report.step, 12);
    EXPECT_LT(report.clip_factor, 1);
    engine->restore(fresh);  // and back, with nothing given
    EXPECT_TRUE(same(engine->progress(), fresh));
    report = make_step(*engine, 1, 0.1);
    EXPECT_EQ(report.step, 1);
    EXPECT_EQ(report.lr, 0.1);
    EXPECT_EQ(report.groups[1].lr, 0.05);
    EXPECT_EQ(report.clip_factor, 1);
    EXPECT_EQ(report.skipped_steps, 0);
  });
}

TEST(Progress, OfAnotherJobIsRefusedAndChangesNothing) {
  testing::run_ranks(1, [](Transport& transport) {
    const auto engine = make_engine(transport);
    make_step(*engine, 1);
    const EngineProgress before = engine->progress();
    const auto refused = [&](const char* text, const std::function<void(EngineProgress&)>& spoil) {
      EngineProgress wrong = unlike(*engine);
      wrong.groups[0].own_lr = 0.5;
      spoil(wrong);
      try {
        engine->restore(wrong);
        ADD_FAILURE() << "taken; expected '" << text << "'";
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), Code::invalid_argument);
        EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
      }
      EXPECT_TRUE(same(engine->progress(), before)) << text;
    };
    refused("progress of 1 groups was given to an engine of 2", [](EngineProgress& p) { p.groups.pop_back(); });
    refused("progress of 3 groups", [](EngineProgress& p) { p.groups.push_back({"more", {}, {}}); });
    refused("progress of 0 groups", [](EngineProgress& p) { p.groups.clear(); });
    refused("progress of the group \"others\" was given to \"rest\"",
            [](EngineProgress& p) { p.groups[1].name = "others"; });
    refused("was given to \"matrices\"", [](EngineProgress& p) { std::swap(p.groups[0], p.groups[1]); });
    refused("rule adamw has no setting \"rho\"", [](EngineProgress& p) { p.groups[1].rule = {{"rho", "0.1"}}; });
    refused("setting beta1 of rule adamw is \"2\"", [](EngineProgress& p) { p.groups[1].rule = {{"beta1", "2"}}; });
  });
}

TEST(Progress, IsTheSameOnAllRanksWhateverHappened) {
  testing::run_ranks(3, [](Transport& transport) {
    EngineOptions options;
    options.loss_scaling = {8, 2, 1};
    const auto engine = make_engine(transport, options);
    for (int step = 0; step < 7; ++step) {
      if (step == 1 && transport.rank() == 0) {
        Command command;
        command.kind = Command::Kind::set;
        command.fields = Command::lr_given | Command::clip_given;
        command.lr = 0.3;
        command.clip = 2;
        engine->post(command);
      }
      make_step(*engine, step == 3 && transport.rank() == 2 ? inf : 1);
      const EngineProgress mine = engine->progress();
      std::string numbers = std::to_string(mine.steps) + " " + std::to_string(mine.skipped_steps) + " " +
                            std::to_string(mine.loss_scale) + " " + std::to_string(mine.finite_steps) + " " +
                            std::to_string(mine.clip) + " " + std::to_string(mine.commanded_lr.value_or(-1));
      for (const std::string& other : transport.gather_strings(numbers, "progress")) EXPECT_EQ(other, numbers);
    }
    EXPECT_EQ(engine->progress().steps, 6);
    EXPECT_EQ(engine->progress().skipped_steps, 1);
  });
}

// The loss scale against the rule of three lines, over a long row of steps of both kinds, with any settings; the
// counter of finite steps is saved and restored anywhere on the way.
TEST(LossScale, GrowsAndBacksOffAsSettingsSay) {
  const std::vector<LossScaling> all{{1024, 1, 1},    {1024, 3, 256}, {4, 2, 4}, {1, 2, 0.25},
                                     {0.5, 4, 0.125}, {64, 0, 1},     {8, 7, 3}};
  testing::run_ranks(1, [&](Transport& transport) {
    std::uint64_t random = 7;
    for (const LossScaling& scaling : all) {
      EngineOptions options;
      options.loss_scaling = scaling;
      auto engine = make_engine(transport, options);
      double scale = scaling.initial;
      int finite = 0;
      for (int step = 0; step < 40; ++step) {
        random = testing::WholeJob::mix(random + 1);
        const bool skipped = random % 3 == 0;
        const StepReport report = make_step(*engine, skipped ? inf : 1);
        EXPECT_EQ(report.skipped, skipped);
        EXPECT_EQ(report.loss_scale, scale) << "step " << step;
        if (scaling.growth_interval > 0) {
          finite = skipped ? 0 : finite + 1;
          if (skipped) scale = std::max(scale / 2, scaling.smallest);
          if (finite == scaling.growth_interval) scale *= 2, finite = 0;
        }
        ASSERT_EQ(engine->loss_scale(), scale) << "step " << step;
        ASSERT_EQ(engine->progress().finite_steps, finite);
        if (random % 7 == 0) {
          const EngineProgress progress = engine->progress();
          engine = make_engine(transport, options);
          engine->restore(progress);
        }
      }
    }
  });
}

// A job that is started again with a shorter interval has more finite steps behind it than that.
TEST(LossScale, GrowsAlsoWhenMoreStepsThanItsIntervalWereRestored) {
  testing::run_ranks(1, [](Transport& transport) {
    EngineOptions options;
    options.loss_scaling = {8, 3, 1};
    const auto engine = make_engine(transport, options);
    EngineProgress progress = engine->progress();
    progress.finite_steps = 5;
    engine->restore(progress);
    make_step(*engine, 1);
    EXPECT_EQ(engine->loss_scale(), 16);
    EXPECT_EQ(engine->progress().finite_steps, 0);
  });
}

// A trainer that catches the error goes on: nothing was counted, the command that came with the vote holds, and the
// next step tells of its own bytes only.
TEST(Stop, ByAGradientLeavesTheJobAsItWas) {
  for (const int ranks : {1, 2})
    testing::run_ranks(ranks, [&](Transport& transport) {
      EngineOptions options;
      options.non_finite = NonFinite::stop;
      options.loss_scaling = {8, 2, 1};
      const auto engine = make_engine(transport, options);
      const StepReport usual = make_step(*engine, 1);
      EngineProgress expected = engine->progress();
      if (transport.rank() == 0) {
        Command command;
        command.kind = Command::Kind::set;
        command.fields = Command::clip_given;
        command.clip = 5;
        engine->post(command);
      }
      for (int again = 0; again < 2; ++again) {
        try {
          make_step(*engine, transport.rank() + 1 == ranks ? inf : 1);
          ADD_FAILURE() << "the step was made";
        } catch (const Error& error) {
          EXPECT_EQ(error.code(), Code::non_finite);
          EXPECT_STREQ(error.what(), "the gradient of w is not finite in step 2; no state was changed");
        }
        expected.clip = 5;
        EXPECT_TRUE(same(engine->progress(), expected));
      }
      const StepReport next = make_step(*engine, 1);
      EXPECT_EQ(next.step, 2);
      EXPECT_EQ(next.skipped_steps, 0);
      EXPECT_EQ(next.loss_scale, 8);
      EXPECT_EQ(next.bytes.total(), usual.bytes.total());
      EXPECT_EQ(next.bytes.reduce_scatter, usual.bytes.reduce_scatter);
    });
}

}  // namespace
}  // namespace regatta
