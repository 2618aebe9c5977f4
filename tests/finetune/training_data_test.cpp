// The batch of a step is the batch of that step, evaluation sees the evaluation data, and the figures of a run are
// those that a whole decoder on one rank finds by itself.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "tests/finetune/small_training.h"
#include "tests/finetune/window_order.h"

namespace regatta::finetune {
namespace {

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

}  // namespace
}  // namespace regatta::finetune
