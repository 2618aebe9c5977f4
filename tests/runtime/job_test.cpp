// Whole jobs of several steps, in many layouts: every figure of every step and all weights against the same job
// computed apart in fp64, and the end of the job to the bit against the end on one rank.

#include <gtest/gtest.h>

#include <random>

#include "tests/support/job_run.h"
#include "tests/support/usual_job.h"

namespace regatta {
namespace {

using sharding::Cut;
using testing::JobBits;
using testing::JobLayout;
using testing::JobRun;
using testing::usual_job;
using testing::WholeJob;

// Layouts that a job of eight micro-batches fits in.
std::vector<JobLayout> layouts(std::uint64_t seed, int count) {
  static constexpr const char* meshes[] = {"dp=2", "dp=4", "dp=8", "tp=2", "dp=2,tp=2", "dp=4,tp=2", "dp=1"};
  std::mt19937_64 random(seed);
  std::vector<JobLayout> chosen;
  for (int i = 0; i < count; ++i) {
    JobLayout layout;
    layout.mesh = meshes[i % std::size(meshes)];
    const sharding::Mesh mesh = sharding::Mesh::parse(layout.mesh);
    layout.mode = static_cast<Mode>(random() % (mesh.size("dp") > 1 ? 3 : 2));
    layout.cut = static_cast<Cut>(random() % 3);
    layout.bucket_bytes = 1 + static_cast<std::int64_t>(random() % 1500);
    layout.accumulation = random() % 2 == 0 ? Accumulation::sum : Accumulation::tree;
    layout.threads = random() % 3 == 0 ? 2 : 1;
    layout.move_before = static_cast<int>(random() % 12);
    if (mesh.size("tp") > 1 && random() % 4 != 0) layout.place = random() % 2 == 0 ? "tp:0" : "tp:1";
    if (layout.mode == Mode::sharded) {
      static constexpr const char* dp[] = {"dp:0", "dp:1", "dp:flat"};
      layout.place += (layout.place.empty() ? "" : ",") + std::string(dp[random() % 3]);
    }
    chosen.push_back(layout);
  }
  return chosen;
}

void expect_everywhere(const WholeJob& job, std::uint64_t seed, int count) {
  const JobBits one = JobRun(job, {}).run();
  for (const JobLayout& layout : layouts(seed, count)) JobRun(job, layout).run(&one);
}

TEST(Job, GradientsThatComeAndStayAway) {
  WholeJob job = usual_job(1);
  expect_everywhere(job, 1, 21);
}

TEST(Job, OneMicroBatchThatTravelsAsItIs) {
  for (const int batch : {1, 2}) {
    WholeJob job = usual_job(2 + static_cast<std::uint64_t>(batch));
    job.global_batch = batch;
    const JobBits one = JobRun(job, {}).run();
    for (JobLayout layout : layouts(2, 21)) {
      if (batch % sharding::Mesh::parse(layout.mesh).size("dp") != 0 && layout.mode != Mode::sharded)
        layout.mesh = batch == 1 ? "tp=2" : "dp=2";
      if (sharding::Mesh::parse(layout.mesh).size("dp") == 1 && layout.mode == Mode::sharded) continue;
      if (sharding::Mesh::parse(layout.mesh).size("tp") == 1 && layout.place.starts_with("tp")) layout.place = "";
      JobRun(job, layout).run(&one);
    }
  }
}

TEST(Job, StepsThatAreSkippedLeaveNothingBehind) {
  constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  WholeJob job = usual_job(6);
  job.options.loss_scaling = {16, 2, 4};
  job.steps = 12;
  // The first in order of the parameters, wherever and whenever the others are found.
  for (int p = 5; p >= 2; --p) job.spoil(1, p, nan);
  job.spoil(3, 0, inf, job.numel(0) - 1);
  job.spoil(3, 5, nan);
  job.spoil(4, 5, -inf);
  job.spoil(5, 4, nan, job.numel(4) - 1);
  job.spoil(8, 3, inf);
  job.spoil(8, 1, nan, 7);
  job.spoil(9, 6, inf);
  int skipped = 0;
  for (const testing::WholeStep& step : testing::WholeJobModel(job).run()) skipped += step.skipped ? 1 : 0;
  ASSERT_GE(skipped, 4);
  expect_everywhere(job, 3, 21);
}

TEST(Job, SettingsThatChangeOnTheWay) {
  WholeJob job = usual_job(8);
  job.steps = 12;
  const auto command = [&](int step, std::uint32_t fields, int group, double lr = 0) {
    Command& command = job.commands[step];
    command.kind = Command::Kind::set;
    command.number = 100 + static_cast<std::uint64_t>(step);
    command.fields = fields;
    command.group = group;
    command.lr = lr;
    command.weight_decay = 0.01 * (step + 1);
    command.momentum = 0.5 + 0.03 * step;
    command.rho = 0.1 + 0.02 * step;
    command.clip = 40.0 + step;
  };
  command(0, Command::lr_given, 1, 0.07);                         // a group's own
  command(2, Command::lr_given | Command::clip_given, -1, 0.05);  // of all, so none has its own any more
  command(3, Command::momentum_given | Command::rho_given, 2);    // of one group
  command(4, Command::lr_given | Command::weight_decay_given, 2, 0.02);
  command(6, Command::weight_decay_given | Command::momentum_given | Command::rho_given, -1);
  command(8, Command::clip_given, -1);
  for (const auto& [step, kind] :
       {std::pair{1, Command::Kind::pause}, {5, Command::Kind::resume}, {7, Command::Kind::save}}) {
    job.commands[step].kind = kind;
    job.commands[step].number = 7;
    job.commands[step].lr = 99;  // says nothing in these
  }
  for (int p = 0; p < 7; ++p)  // a command that comes with a skipped step
    job.spoil(4, p, std::numeric_limits<float>::quiet_NaN());
  ASSERT_TRUE(testing::WholeJobModel(job).run()[4].skipped);
  expect_everywhere(job, 4, 21);
}

TEST(Job, EveryNormAndNumberOfPasses) {
  using Settings = std::vector<std::pair<std::string, std::string>>;
  std::uint64_t turn = 60;
  for (const char* p : {"1", "2", "inf"})
    for (const char* passes : {"1", "2", "3"})
      for (const char* zero_line : {"keep", "count"}) {
        SCOPED_TRACE("p " + std::string(p) + ", passes " + passes + ", " + zero_line);
        WholeJob job = usual_job(++turn);
        job.steps = 3;
        job.groups[0].rule = make_rule("reg", Settings{{"p", p}, {"passes", passes}, {"zero_line", zero_line}});
        expect_everywhere(job, turn, 3);
      }
}

// A momentum that is out of fp32's range breaks its line and no other, wherever that lies.
TEST(Job, LinesThatOverflowAreCounted) {
  struct Layout {
    const char* mesh;
    Mode mode;
    const char* place;
  };
  for (const Layout& layout : {Layout{"dp=1", Mode::zero1, ""},
                               {"dp=3", Mode::zero1, ""},
                               {"tp=2", Mode::zero1, "tp:1"},
                               {"dp=3", Mode::sharded, "dp:flat"}}) {
    SCOPED_TRACE(layout.mesh);
    const sharding::Mesh mesh = sharding::Mesh::parse(layout.mesh);
    testing::run_ranks(mesh.world_size(), [&](Transport& transport) {
      EngineOptions options;
      options.mode = layout.mode;
      options.cut = sharding::Cut::element;
      options.loss_scaling.initial = 0x1p-100;  // so gradients count 2^100 times what they are
      Param param{"w", {5, 7}};
      param.placement = sharding::Placement::parse(layout.place);
      Engine engine({param, {"other", {4}}}, {{"reg", make_rule("reg", {}), 1}}, mesh, transport, options);
      engine.publish_params();
      std::vector<float> whole(35, 0x1p-100F), mine(static_cast<std::size_t>(engine.param(0).numel));
      for (int col = 0; col < 7; ++col) whole[0 * 7 + col] = 0;
      whole[2 * 7 + 1] = whole[4 * 7 + 6] = 0x1p60F;
      const sharding::BlockPart part = engine.plan().local_parts(transport.rank(), 0)[0];
      for (const sharding::Stretch& s : sharding::stretches(part, 7))
        std::copy_n(whole.begin() + s.in_block, s.count, mine.begin() + s.in_part);
      const bool shared = layout.mode == Mode::zero1 && mesh.coordinate(transport.rank(), "dp") > 0;  // one rank's only
      if (!shared) engine.add_grad(0, mine.data(), DType::f32);
      const StepReport report = engine.step(0.1);
      EXPECT_FALSE(report.skipped);  // the gradients are finite
      for (const std::int64_t lines : {report.groups[0].non_finite_lines, engine.param_reports()[0].non_finite_lines})
        EXPECT_EQ(lines, 2);
      EXPECT_EQ(engine.param_reports()[1].non_finite_lines, 0);
      EXPECT_EQ(engine.param_reports()[0].zero_lines, 1);
      EXPECT_EQ(report.groups[0].zero_lines, 2);  // and the other's only one
      EXPECT_NEAR(report.groups[0].smallest_line_norm, 0.05 * std::sqrt(7.0), 1e-6);
      EXPECT_NEAR(report.groups[0].largest_line_norm, 0.05 * std::sqrt(7.0), 1e-6);
      const std::int64_t begin = part.rows.begin * 7 + part.run.begin;
      if (layout.place[0] != 't') {
        const auto* weights = static_cast<const float*>(engine.param(0).data);
        for (std::int64_t i = 0; i < engine.param(0).numel; ++i) {
          const std::int64_t row = (begin + i) / 7;
          EXPECT_EQ(std::isnan(weights[i]) || std::isinf(weights[i]), row == 2 || row == 4) << begin + i;
        }
      }
    });
  }
}

// Values that are written later are the model's when they are published, in master weights too.
TEST(Job, ParametersMayBePublishedAgain) {
  const WholeJob job = usual_job(9);
  for (const Mode mode : {Mode::zero1, Mode::zero2})
    testing::run_ranks(2, [&](Transport& transport) {
      EngineOptions options;
      options.mode = mode;
      options.cut = sharding::Cut::element;
      Engine engine(job.params, job.groups, sharding::Mesh({{"dp", 2}}), transport, options);
      for (int round = 0; round < 3; ++round) {
        for (int p = 0; p < std::ssize(job.params); ++p) {
          std::vector<std::uint16_t> values(static_cast<std::size_t>(2 * job.numel(p)), 0x3c00);
          for (std::size_t i = 0; i < values.size(); ++i) values[i] += static_cast<std::uint16_t>(i % 7 + 16 * round);
          engine.write_param(p, values.data());
        }
        engine.publish_params();
        int masters = 0;
        for (const StatePart& part : engine.state_parts()) {
          if (part.state != "master") continue;
          ++masters;
          std::int64_t begin = part.part.rows.begin * part.shape.cols + part.part.run.begin;
          for (int b = 0; b < part.block; ++b) begin += engine.plan().params()[part.param].blocks[b].numel();
          const ParamView view = engine.param(part.param);
          std::vector<float> wide(static_cast<std::size_t>(view.numel));
          kernels::cpu_kernels().to_f32(view.data, view.dtype, wide.data(), view.numel);
          for (std::int64_t i = 0; i < part.part.run.size(); ++i)
            ASSERT_EQ(static_cast<const float*>(part.data)[i], wide[begin + i]) << "parameter " << part.param;
        }
        EXPECT_GE(masters, 1);
        engine.step(0.1);
      }
    });
}

}  // namespace
}  // namespace regatta
