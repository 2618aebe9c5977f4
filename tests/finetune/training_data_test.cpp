// The batch of a step is the batch of that step, evaluation sees the evaluation data, and the figures of a run are
// those that a whole decoder on one rank finds by itself.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "cli/finetune/weights.h"
#include "runtime/error.h"
#include "tests/finetune/small_training.h"
#include "tests/finetune/window_order.h"

namespace regatta::finetune {
namespace {

namespace fs = std::filesystem;

/// Losses and gradients of the job's first weights, a sequence at a time.
class Apart {
 public:
  explicit Apart(const Options& o) : decoder_(o.sizes, at::kFloat), seq_(o.seq) { init_random(decoder_, o.seed); }

  double loss(const std::vector<std::int64_t>& tokens) {
    const torch::NoGradGuard no_grad;
    return decoder_.loss(tensor({tokens})).item<float>();
  }
  double grad_norm(const std::vector<std::vector<std::int64_t>>& rows) {
    for (const auto& item : decoder_.named_parameters()) item.value().mutable_grad() = at::Tensor();
    decoder_.loss(tensor(rows)).backward();
    double squares = 0;
    for (const auto& item : decoder_.named_parameters())
      squares += item.value().grad().to(at::kDouble).square().sum().item<double>();
    return std::sqrt(squares);
  }

 private:
  static at::Tensor tensor(const std::vector<std::vector<std::int64_t>>& rows) {
    at::Tensor result =
        at::empty({static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(rows[0].size())}, at::kLong);
    for (std::size_t r = 0; r < rows.size(); ++r)
      std::copy(rows[r].begin(), rows[r].end(), result.data_ptr<std::int64_t>() + r * rows[r].size());
    return result;
  }
  Decoder decoder_;
  std::int64_t seq_;
};

using Rows = std::vector<std::vector<std::int64_t>>;

Rows batch_of(const Options& o, std::int64_t step) {
  const std::vector<std::int64_t> tokens = reference::tokens_of(o.data);
  const std::int64_t windows = (static_cast<std::int64_t>(tokens.size()) - 1) / o.seq;
  Rows rows;
  for (std::int64_t i = 0; i < o.global_batch; ++i)
    rows.push_back(reference::row(tokens, reference::window(step * o.global_batch + i, windows, o.seed), o.seq));
  return rows;
}

double mean_loss(Apart& apart, const Rows& rows) {
  double sum = 0;
  for (const auto& row : rows) sum += apart.loss(row);
  return sum / static_cast<double>(rows.size());
}

/// `count` windows evenly over the evaluation data; 0 or too many: all.
Rows eval_rows(const Options& o) {
  const std::vector<std::int64_t> tokens = reference::tokens_of(o.eval_data);
  const std::int64_t windows = (static_cast<std::int64_t>(tokens.size()) - 1) / o.seq;
  const std::int64_t count = o.eval_sequences == 0 || o.eval_sequences > windows ? windows : o.eval_sequences;
  Rows rows;
  for (std::int64_t i = 0; i < count; ++i) rows.push_back(reference::row(tokens, i * windows / count, o.seq));
  return rows;
}

using TrainingData = testing::SmallTraining;

struct Case {
  const char* mesh;
  std::int64_t micro_batch, global_batch, eval_sequences;
  const char* accumulation;
  const char* mode;
};

/// Ten windows in all, so that every case goes round them; nothing is learnt, so that the losses say which tokens were
/// seen, and the gradients' norms which were learnt from and with what weight.
TEST_F(TrainingData, LossesAndGradientsAreThoseOfEachStepsOwnWindows) {
  const Case cases[] = {{"dp=1", 1, 1, 0, "sum", "zero1"},        {"dp=1", 3, 6, 1, "sum", "zero1"},
                        {"dp=2", 2, 8, 3, "tree", "zero1"},       {"dp=4", 1, 4, 8, "tree", "zero2"},
                        {"dp=3", 1, 9, 7, "sum", "zero2"},        {"dp=2,tp=2", 2, 8, 5, "tree", "zero1"},
                        {"dp=1,tp=4", 2, 4, 100, "sum", "zero2"}, {"dp=5", 2, 10, 2, "sum", "zero1"}};
  for (const Case& c : cases) {
    SCOPED_TRACE(std::string(c.mesh) + ", micro-batch " + std::to_string(c.micro_batch) + " of " +
                 std::to_string(c.global_batch));
    Options o = options("out");
    o.micro_batch = c.micro_batch;
    o.global_batch = c.global_batch;
    o.accumulation = c.accumulation;
    o.engine_flags.mode = c.mode;
    o.engine.loss_scaling.initial = 64;
    o.eval_data = eval_files_;
    o.eval_sequences = c.eval_sequences;
    o.steps = 4;
    Apart apart(o);
    const Run run = train(o, c.mesh);
    ASSERT_EQ(run.steps.size(), 4U);
    for (std::int64_t step = 0; step < o.steps; ++step) {
      const Rows rows = batch_of(o, step);
      const double expected = mean_loss(apart, rows);
      const StepRecord& record = run.steps[static_cast<std::size_t>(step)];
      EXPECT_EQ(record.step, step + 1);
      EXPECT_NEAR(record.loss, expected, 3e-6 * expected) << "step " << step;
      const double norm = apart.grad_norm(rows);
      EXPECT_NEAR(record.report.grad_norm, norm, 1e-4 * norm) << "step " << step;
      EXPECT_EQ(record.report.loss_scale, 64);
    }
    const double expected = mean_loss(apart, eval_rows(o));
    ASSERT_EQ(run.evals.size(), 2U);
    for (const EvalRecord& eval : run.evals) EXPECT_NEAR(eval.loss, expected, 3e-6 * expected);
    EXPECT_EQ(run.summaries[0].train_loss_first, run.steps.front().loss);
    EXPECT_EQ(run.summaries[0].train_loss_last, run.steps.back().loss);
    EXPECT_EQ(run.summaries[0].tokens_per_step, c.global_batch * o.seq);
  }
}

/// That the case above could tell: all windows and their gradients differ.
TEST_F(TrainingData, EveryWindowHasALossOfItsOwn) {
  Options o = options("unused");
  o.eval_data = eval_files_;
  o.eval_sequences = 0;
  Apart apart(o);
  std::set<std::int64_t> losses;  // in steps of 1e-3
  const std::vector<std::int64_t> tokens = reference::tokens_of(o.data);
  ASSERT_EQ(tokens.size(), 111U);
  for (std::int64_t w = 0; w < 10; ++w) losses.insert(std::llround(1e3 * apart.loss(reference::row(tokens, w, o.seq))));
  for (const auto& row : eval_rows(o)) losses.insert(std::llround(1e3 * apart.loss(row)));
  EXPECT_EQ(losses.size(), 18U);
}

TEST_F(TrainingData, EvaluationsComeWhenTheyWereAskedFor) {
  Options o = options("out");
  o.eval_data = eval_files_;
  o.schedule.base = 0.01;
  const auto steps_of = [&](std::int64_t every, std::int64_t steps) {
    o.eval_every = every;
    o.steps = steps;
    const Run run = train(o, "dp=2");
    std::vector<std::int64_t> at;
    for (const EvalRecord& eval : run.evals) at.push_back(eval.step);
    const Summary& summary = run.summaries[0];
    EXPECT_EQ(summary.evals.size(), run.evals.size());
    EXPECT_EQ(*summary.eval_before, run.evals.front().loss);
    EXPECT_EQ(*summary.eval_after, run.evals.back().loss);
    EXPECT_NE(*summary.eval_before, *summary.eval_after);
    return at;
  };
  using Steps = std::vector<std::int64_t>;
  EXPECT_EQ(steps_of(0, 5), (Steps{0, 5}));
  EXPECT_EQ(steps_of(2, 5), (Steps{0, 2, 4, 5}));
  EXPECT_EQ(steps_of(5, 5), (Steps{0, 5}));
  EXPECT_EQ(steps_of(1, 3), (Steps{0, 1, 2, 3}));
  o.eval_data.clear();
  o.eval_every = 0;
  const Run none = train(o, "dp=1");
  EXPECT_TRUE(none.evals.empty() && !none.summaries[0].eval_before && !none.summaries[0].eval_after);
}

TEST_F(TrainingData, LearningRatesFollowTheSchedule) {
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

TEST_F(TrainingData, TheSummaryCountsWhatWasDone) {
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

TEST_F(TrainingData, SkippedStepsAreCountedAndEndTheJobAtTheTenthInARow) {
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
TEST_F(TrainingData, SkippedStepsThatAreNotInARowDoNotEndTheJob) {
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
  EXPECT_TRUE(run.summaries[0].bytes_as_planned);
}

/// Of the whole job, of one rule, and how the job's parameters fall into groups.
TEST_F(TrainingData, SettingsReachTheRulesOfTheirParameters) {
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
TEST_F(TrainingData, WatchersHearOfEveryStep) {
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

TEST_F(TrainingData, OneRankThatIsAskedToEndEndsAllAfterTheSameStep) {
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

TEST_F(TrainingData, TextForALargeVocabularyIsWarnedOf) {
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

TEST_F(TrainingData, SequencesLongerThanTheModelAreRefused) {
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
TEST_F(TrainingData, BucketsFollowTheSizeOfTheModel) {
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
