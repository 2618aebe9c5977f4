// What a run of the trainer does and tells: learning rates, counts, skipped steps, how it ends, what it refuses.

#include <algorithm>
#include <chrono>
#include <cmath>

#include "runtime/error.h"
#include "tests/finetune/small_training.h"

namespace regatta::finetune {
namespace {

namespace fs = std::filesystem;
using TrainingRun = testing::SmallTraining;

TEST_F(TrainingRun, LearningRatesFollowTheSchedule) {
  Options o = options("out");
  o.steps = 6;
  o.schedule.base = 0.01;
  o.schedule.warmup = 2;
  o.schedule.final_ratio = 0.2;
  const auto rates = [&](const char* kind, std::vector<std::string> changes = {}) {
    o.schedule_name = kind;
    o.lr_at = std::move(changes);
    std::vector<double> all;
    for (const StepRecord& record : train(o, "dp=1").steps) all.push_back(record.report.lr);
    return all;
  };
  const auto expect = [](const std::vector<double>& rates, const std::vector<double>& expected) {
    ASSERT_EQ(rates.size(), expected.size());
    for (std::size_t i = 0; i < rates.size(); ++i) EXPECT_NEAR(rates[i], expected[i], 1e-12) << "step " << i;
  };
  const double third = 0.01 / 3;
  expect(rates("constant"), {third, 2 * third, 0.01, 0.01, 0.01, 0.01});
  expect(rates("linear"), {third, 2 * third, 0.01, 0.008, 0.006, 0.004});
  const double root = std::sqrt(0.5);
  expect(rates("cosine"), {third, 2 * third, 0.01, 0.002 + 0.004 * (1 + root), 0.006, 0.002 + 0.004 * (1 - root)});
  expect(rates("linear", {"6=0.5", "4=0.25"}), {third, 2 * third, 0.01, 0.25, 0.25, 0.5});
}

TEST_F(TrainingRun, TheSummaryCountsWhatWasDone) {
  Options o = options("out");
  o.micro_batch = 2;
  o.global_batch = 8;
  o.schedule.base = 0.01;
  o.rules.rule = "adamw";
  const Run run = train(o, "dp=2,tp=2");
  // Embedding and head; per layer q and o, k and v, the MLP, two norms; the last norm.
  const std::int64_t params = 2 * 256 * 12 + 2 * (2 * 16 * 12 + 2 * 8 * 12 + 3 * 20 * 12 + 2 * 12) + 12;
  std::int64_t state = 0;
  for (const Summary& summary : run.summaries) {
    EXPECT_EQ(summary.params, params);
    EXPECT_EQ(summary.world_size, 4);
    EXPECT_EQ(summary.steps, 5);
    EXPECT_EQ(summary.first_step, 0);
    EXPECT_EQ(summary.own_steps(), 5);
    EXPECT_EQ(summary.skipped_steps, 0);
    EXPECT_TRUE(summary.bytes_as_planned);
    EXPECT_EQ(summary.state_bytes, run.summaries[0].state_bytes);
  }
  for (const std::int64_t bytes : run.summaries[0].state_bytes) state += bytes;
  // Two moments of fp32; norms are there once for each tp rank.
  EXPECT_EQ(state, 8 * (params + (2 * 2 + 1) * 12));
  EXPECT_EQ(run.summaries[0].files.size(), 2U);
  EXPECT_TRUE(run.summaries[1].files.empty() && run.summaries[2].files.empty());
  // Totals are the sums of the steps' figures, and all time is accounted for.
  Totals totals;
  for (const StepRecord& record : run.steps) {
    totals.phases.add(record.phases);
    totals.counted.reduce_scatter += record.report.bytes.reduce_scatter;
    totals.counted.vote += record.report.bytes.vote;
    for (const double seconds : {record.phases.data, record.phases.forward, record.phases.backward, record.phases.step})
      EXPECT_GT(seconds, 0);
    EXPECT_GE(record.phases.step, record.report.times.step_seconds);
  }
  EXPECT_EQ(run.summaries[0].totals.phases.all(), totals.phases.all());
  EXPECT_EQ(run.summaries[0].totals.counted.reduce_scatter, totals.counted.reduce_scatter);
  EXPECT_EQ(run.summaries[0].totals.counted.vote, totals.counted.vote);
  EXPECT_GT(totals.counted.reduce_scatter, 0);
}

TEST_F(TrainingRun, SkippedStepsAreCountedAndEndTheJobAtTheTenthInARow) {
  Options o = options("out");
  o.steps = 30;
  o.engine.loss_scaling.initial = 1e39;  // beyond fp32: no gradient is finite
  const std::string said = refusal([&] { train(o, "dp=2"); }, Code::non_finite);
  expect_says(said, "the last 10 steps were skipped, up to step 10; the gradient of ");
  EXPECT_FALSE(fs::exists(o.out + "/model.safetensors"));
  o.non_finite = "stop";
  refusal([&] { train(o, "dp=2"); }, Code::non_finite);
  EXPECT_FALSE(fs::exists(o.out + "/model.safetensors"));
}

/// Nine in a row and then every other one: the scale halves with each, and doubles after each that was finite.
TEST_F(TrainingRun, SkippedStepsThatAreNotInARowDoNotEndTheJob) {
  Options o = options("out");
  o.micro_batch = 2;
  o.global_batch = 16;
  o.schedule.base = 1e-6;
  const auto exponent = [](const StepRecord& record) { return std::ilogb(record.report.loss_scale); };
  // The largest scale whose gradients are finite.
  o.engine.loss_scaling = {std::ldexp(1.0, 132), 1000, 1};
  o.steps = 10;
  const Run probe = train(o, "dp=2");
  const auto finite = std::find_if(probe.steps.begin(), probe.steps.end(),
                                   [](const StepRecord& record) { return !record.report.skipped; });
  ASSERT_NE(finite, probe.steps.end());
  const int largest = exponent(*finite);
  o.engine.loss_scaling = {std::ldexp(1.0, largest + 9), 1, 1};
  o.steps = 24;
  o.out = (folder_ / "on").string();
  o.eval_data = eval_files_;
  const Run run = train(o, "dp=2");
  std::int64_t skipped = 0;
  for (const StepRecord& record : run.steps) {
    const bool beyond = record.step < 10 || record.step % 2 == 1;
    EXPECT_EQ(record.report.skipped, beyond) << record.step;
    EXPECT_EQ(record.report.skipped_steps, skipped += beyond) << record.step;
    EXPECT_EQ(exponent(record), largest + (record.step < 10 ? 10 - static_cast<int>(record.step) : beyond ? 1 : 0));
  }
  EXPECT_EQ(run.summaries[0].skipped_steps, skipped);
  EXPECT_EQ(run.summaries[0].steps, 24);
  EXPECT_EQ(run.evals.back().step, 24 - skipped);  // updates
  EXPECT_TRUE(run.summaries[0].bytes_as_planned);
}

/// Of the whole job, of one rule, and how the job's parameters fall into groups.
TEST_F(TrainingRun, SettingsReachTheRulesOfTheirParameters) {
  Options o = options("out");
  o.steps = 1;
  o.global_batch = 2;
  o.rules.settings = {"lr=0.05", "adamw.lr=0.2"};
  for (const char* mesh : {"dp=1", "dp=1,tp=2"}) {
    const Run run = train(o, mesh);
    const StepReport& report = run.steps.at(0).report;
    EXPECT_EQ(report.lr, 0.05);
    ASSERT_EQ(report.groups.size(), 2U);
    for (const GroupReport& group : report.groups) {
      EXPECT_DOUBLE_EQ(group.lr, group.name == "adamw" ? 0.2 : 0.05);
      EXPECT_EQ(group.numel,
                group.name == "adamw" ? 2 * 256 * 12 + 5 * 12 : 2 * (2 * 16 * 12 + 2 * 8 * 12 + 3 * 20 * 12))
          << group.name;
    }
  }
  o.rules.assignments = {"*o_proj*=adamw", "*norm*=reg"};
  o.engine_flags.blocks = {"*gate_proj*=6,14"};
  o.engine_flags.mesh = "dp=1";
  const sharding::Mesh mesh = mesh_of(o);
  complete(o, mesh);
  const Job job(o, mesh, 0);
  ASSERT_EQ(job.params.size(), job.module_params.size());
  for (const Param& param : job.params) {
    const auto has = [&](const char* part) { return param.name.find(part) != std::string::npos; };
    const bool adamw = has("embed") || has("lm_head") || has("o_proj");
    EXPECT_EQ(job.groups[static_cast<std::size_t>(param.group)].name, adamw ? "adamw" : "reg") << param.name;
    EXPECT_EQ(param.block_rows, has("gate_proj") ? (std::vector<std::int64_t>{6, 14}) : std::vector<std::int64_t>{})
        << param.name;
  }
}

/// What those who watch the job are told of each step.
TEST_F(TrainingRun, WatchersHearOfEveryStep) {
  Options o = options("out");
  o.global_batch = 4;
  o.engine_flags.mesh = "dp=2";
  fs::create_directories(o.out);
  const sharding::Mesh mesh = mesh_of(o);
  complete(o, mesh);
  control::Mailbox mailbox;
  const auto watcher = mailbox.watch();
  std::vector<StepRecord> records;
  regatta::testing::run_ranks(2, [&](Transport& transport) {
    Job job(o, mesh, transport.rank());
    Observer observer;
    if (transport.rank() == 0) observer.stepped = [&](const StepRecord& record) { records.push_back(record); };
    Trainer(job, mesh, transport, transport.rank() == 0 ? &mailbox : nullptr).run(observer);
  });
  EXPECT_EQ(mailbox.job().steps, 5);
  EXPECT_EQ(mailbox.job().world_size, 2);
  EXPECT_EQ(mailbox.job().mesh, "dp=2");
  ASSERT_EQ(records.size(), 5U);
  for (const StepRecord& record : records) {
    control::StepFacts facts;
    ASSERT_EQ(watcher->next(facts, std::chrono::seconds(60)), control::Watcher::Got::step);
    EXPECT_EQ(facts.step, record.step);
    EXPECT_EQ(facts.loss, record.loss);
    EXPECT_EQ(facts.seconds, record.phases.all());
    EXPECT_DOUBLE_EQ(facts.tokens_per_second, 44 / record.phases.all());
    EXPECT_EQ(facts.report.grad_norm, record.report.grad_norm);
  }
}

TEST_F(TrainingRun, OneRankThatIsAskedToEndEndsAllAfterTheSameStep) {
  Options o = options("out");
  o.steps = 9;
  o.eval_data = eval_files_;
  for (const int asked : {0, 2}) {
    const Run run = train(o, "dp=3", "", [&](int rank, int calls) { return rank == asked && calls == 4; });
    EXPECT_EQ(run.steps.size(), 4U);
    for (const Summary& summary : run.summaries) EXPECT_EQ(summary.steps, 4);
    ASSERT_EQ(run.warned.size(), 1U);
    EXPECT_EQ(run.warned[0], "drained after step 4 of 9");
    EXPECT_EQ(run.evals.size(), 1U);  // the one before
    EXPECT_FALSE(run.weights.empty());
  }
}

TEST_F(TrainingRun, TextForALargeVocabularyIsWarnedOf) {
  const auto warned = [&](std::int64_t vocab, const std::vector<std::string>& data,
                          const std::vector<std::string>& eval) {
    Options o = options("base" + std::to_string(vocab));
    o.sizes.vocab = vocab;
    o.steps = 1;
    EXPECT_TRUE(train(o, "dp=1").warned.empty());  // a random model is made for its data
    o.init = o.out;
    o.out += "-tuned";
    o.data = data;
    o.eval_data = eval;
    return train(o, "dp=1").warned;
  };
  const std::vector<std::string> ids{put("x.u16", 60, 6)};
  EXPECT_TRUE(warned(1024, train_files_, {}).empty());
  const std::vector<std::string> said = warned(1025, train_files_, {});
  ASSERT_EQ(said.size(), 1U);
  expect_says(said[0], "has a vocabulary of 1025");
  EXPECT_TRUE(warned(1025, ids, ids).empty());
  EXPECT_EQ(warned(1025, ids, eval_files_).size(), 1U);
}

TEST_F(TrainingRun, SequencesLongerThanTheModelAreRefused) {
  Options o = options("base");
  o.steps = 1;
  o.sizes.positions = 11;
  EXPECT_FALSE(train(o, "dp=1").weights.empty());
  o.sizes.positions = 10;
  expect_says(refusal([&] { train(o, "dp=1"); }), "--seq 11 is longer than the model's longest sequence");
  o.sizes.positions = 2048;
  o.sizes.sliding_window = 11;
  o.out += "2";
  EXPECT_FALSE(train(o, "dp=1").weights.empty());
  o.sizes.sliding_window = 10;
  expect_says(refusal([&] { train(o, "dp=1"); }), "sliding window, which this decoder does not compute, of 10");
}

/// A tenth of the model, at least 64 KiB, at most what the flag says; as counted from whole parameters.
TEST_F(TrainingRun, BucketsFollowTheSizeOfTheModel) {
  const auto bucket = [&](std::int64_t vocab, const char* dtype, const char* mesh_text, std::int64_t most) {
    Options o = options("unused");
    o.sizes.vocab = vocab;
    o.dtype_name = dtype;
    o.engine_flags.mesh = mesh_text;
    o.bucket_bytes_given = false;
    o.engine_flags.bucket_bytes = most;
    const sharding::Mesh mesh = mesh_of(o);
    complete(o, mesh);
    return Job(o, mesh, 0).options.engine.bucket_bytes;
  };
  const std::int64_t rest = 2 * (2 * 16 * 12 + 2 * 8 * 12 + 3 * 20 * 12 + 2 * 12) + 12;
  const auto numel = [&](std::int64_t vocab) { return 2 * vocab * 12 + rest; };
  EXPECT_EQ(bucket(256, "fp32", "dp=1", 25 << 20), 64 << 10);
  EXPECT_EQ(bucket(20000, "fp32", "dp=1", 25 << 20), numel(20000) * 4 / 10);
  EXPECT_EQ(bucket(20000, "bf16", "dp=1", 25 << 20), numel(20000) * 2 / 10);
  EXPECT_NEAR(bucket(20000, "fp32", "tp=2", 25 << 20), numel(20000) * 2 / 10, 20);
  EXPECT_EQ(bucket(20000, "fp32", "dp=1", 100'000), 100'000);
}

}  // namespace
}  // namespace regatta::finetune
