// Runs cut into tasks: every element once, figures in the order of tasks, and the same bits from many tasks as from
// one.

#include "runtime/rules/sweep_tasks.h"

#include <gtest/gtest.h>

#include <random>

#include "runtime/rules/line_sweeps.h"
#include "tests/kernels/rule_run.h"

namespace regatta::testing {
namespace {

using Random = std::mt19937_64;
using Settings = std::vector<std::pair<std::string, std::string>>;

TEST(SweepTasks, TakeEveryElementOnceInOrder) {
  Random random(61);
  for (int round = 0; round < 4000; ++round) {
    const auto any = [&](std::int64_t most) { return static_cast<std::int64_t>(random() % most); };
    const std::int64_t rows = 1 + any(12), cols = 1 + any(round % 2 ? 12 : 60), numel = 1 + any(40);
    std::int64_t begin = any(rows * cols + 1), end = any(rows * cols + 1);
    if (begin > end) std::swap(begin, end);
    const MatrixRun run{rows, cols, begin, end};
    const SweepTasks tasks(run, numel);
    EXPECT_EQ(tasks.count() == 0, run.empty());
    std::int64_t at = begin;
    for (std::int64_t t = 0; t < tasks.count(); ++t) {
      const MatrixRun task = tasks.task(t);
      EXPECT_EQ(task.rows, rows);
      EXPECT_EQ(task.cols, cols);
      ASSERT_GE(task.numel(), 0);
      if (task.empty()) continue;
      ASSERT_EQ(task.begin, at);
      at = task.end;
      EXPECT_EQ(task.begin / cols - begin / cols, tasks.row_offset(t));
      EXPECT_LE(task.numel(), std::max(numel, tasks.splits_rows() ? numel : cols));
      if (tasks.splits_rows()) {
        EXPECT_EQ(task.begin / cols, (task.end - 1) / cols) << "a piece lies in one row";
      } else {
        EXPECT_TRUE(task.begin == begin || task.begin % cols == 0);
        EXPECT_TRUE(task.end == end || task.end % cols == 0);
      }
    }
    EXPECT_EQ(at, run.empty() ? begin : end);
    EXPECT_EQ(tasks.splits_rows() && !run.empty(), cols > numel && !run.empty());
  }
}

TEST(SweepTasks, FiguresAreAddedInTheOrderOfTasks) {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    pool.scratch(0, 1 << 16);
    std::fill_n(pool.scratch(0, 1 << 16).data(), 1 << 16, std::byte{0x5a});  // what was there must not count
    kernels::SweepHealth health;
    health.zero_lines = 5;
    run_with_health(pool, 100, health, [](std::int64_t task, kernels::SweepHealth& part) {
      part.update_squares += task == 0 ? 1e16 : task == 99 ? -1e16 : 1.0;
      part.zero_lines += task;
    });
    // 1 is lost beside 1e16 in this order, and in no other.
    EXPECT_EQ(health.update_squares, 0);
    EXPECT_EQ(health.zero_lines, 5 + 4950);
  }
}

std::vector<float> random_values(Random& random, MatrixShape shape) {
  std::vector<float> values(static_cast<std::size_t>(shape.numel()));
  for (std::int64_t i = 0; i < shape.numel(); ++i) {
    const auto size = static_cast<int>(i / shape.cols % 7 + i % shape.cols % 5);
    values[i] = std::ldexp(static_cast<float>(static_cast<std::int32_t>(random())), size - 31);
  }
  return values;
}

// A run of many tasks has factors and sums of its own for each; cut into runs of less than `most` elements, one task
// each, there are none to mistake. The second step goes on from the momentum of the first.
void expect_same_in_pieces(const std::string& name, const Settings& settings, MatrixShape shape, std::int64_t most,
                           int steps) {
  Random random(62);
  const auto rule = make_rule(name, settings);
  ThreadPool one(1), three(3);
  const std::vector<float> weight = random_values(random, shape);
  std::vector<std::int64_t> cuts;
  for (std::int64_t at = most / 3 + 11; at < shape.numel(); at += most - 7) cuts.push_back(at);
  RuleRun tasks(*rule, shape, weight), threads(*rule, shape, weight), pieces(*rule, shape, weight);
  for (int step = 0; step < steps; ++step) {
    const std::vector<float> grad = random_values(random, shape);
    tasks.step(grad, 0.02 + step, one, {}, false);
    threads.step(grad, 0.02 + step, three, {}, step == 0);
    pieces.step(grad, 0.02 + step, one, cuts, false);
  }
  const std::string what =
      rule->settings_text() + " on " + std::to_string(shape.rows) + " x " + std::to_string(shape.cols);
  EXPECT_TRUE(tasks.weight == pieces.weight) << what;
  EXPECT_TRUE(tasks.momentum == pieces.momentum) << what;
  EXPECT_TRUE(threads.weight == pieces.weight) << what << " by three threads";
  EXPECT_TRUE(threads.momentum == pieces.momentum) << what << " by three threads";
  EXPECT_EQ(tasks.health.largest_norm, pieces.health.largest_norm) << what;
}

TEST(SweepTasks, ManyTasksHaveTheBitsOfOne) {
  const MatrixShape rows{line_task_numel / 480 + 90, 480}, long_rows{2, line_task_numel + 77};
  for (const char* p : {"1", "inf"})
    expect_same_in_pieces("reg", {{"p", p}, {"passes", "2"}}, rows, line_task_numel, 2);
  expect_same_in_pieces("reg", {{"passes", "3"}}, rows, line_task_numel, 1);
  for (const char* rule : {"row_norm", "column_norm"}) expect_same_in_pieces(rule, {}, rows, line_task_numel, 2);
  expect_same_in_pieces("reg", {{"p", "1"}, {"passes", "2"}}, long_rows, line_task_numel, 1);
  expect_same_in_pieces("row_norm", {}, long_rows, line_task_numel, 1);
  expect_same_in_pieces("reg", {{"p", "1"}, {"passes", "3"}}, {column_task_numel / 1000 + 20, 1000}, column_task_numel,
                        1);
  expect_same_in_pieces("centred_row_norm", {}, {190, 701}, 60000, 2);  // tasks of 2^16
}

}  // namespace
}  // namespace regatta::testing
