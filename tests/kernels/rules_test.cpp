#include <gtest/gtest.h>

#include <random>

#include "runtime/error.h"
#include "runtime/rules/line_sweeps.h"
#include "tests/kernels/rule_run.h"
#include "tests/support/reference.h"
#include "tests/support/scalar_kernels.h"

namespace regatta::testing {
namespace {

using Random = std::mt19937_64;
using Settings = std::vector<std::pair<std::string, std::string>>;

std::vector<double> doubles(const std::vector<float>& x) { return {x.begin(), x.end()}; }

// Normal gradients with rows spread over four decades, and some rows and columns of zeros.
std::vector<float> random_grad(Random& random, MatrixShape shape) {
  std::normal_distribution<float> normal;
  std::vector<float> grad(static_cast<std::size_t>(shape.numel()));
  for (std::int64_t i = 0; i < shape.rows; ++i) {
    const double scale = std::pow(10.0, static_cast<double>((i * 7919) % 5) - 2);
    for (std::int64_t j = 0; j < shape.cols; ++j)
      grad[i * shape.cols + j] = i % 11 == 5 || j % 17 == 8 ? 0 : static_cast<float>(normal(random) * scale);
  }
  return grad;
}

std::vector<float> random_weight(Random& random, MatrixShape shape) {
  std::normal_distribution<float> normal;
  std::vector<float> weight(static_cast<std::size_t>(shape.numel()));
  for (float& w : weight) w = normal(random);
  return weight;
}

// Relative to the largest of the values, as the update of a weight near zero is.
void expect_close(const std::vector<float>& got, const std::vector<double>& expected, double tolerance) {
  double largest = 0;
  for (const double x : expected) largest = std::max(largest, std::fabs(x));
  for (std::size_t i = 0; i < got.size(); ++i)
    ASSERT_NEAR(got[i], expected[i], tolerance * std::max(std::fabs(expected[i]), 0.1 * largest)) << "element " << i;
}

const MatrixShape shapes[] = {{24, 60}, {60, 24}, {1, 300}, {300, 1}, {1, 1}, {32, 32}, {7, 1500}, {700, 3}};

TEST(Reg, CloseToTheFormulas) {
  Random random(31);
  ThreadPool pool(2);
  for (const char* p : {"1", "2", "inf"})
    for (const char* passes : {"1", "2", "3"})
      for (const char* zero_line : {"keep", "count"})
        for (const MatrixShape& shape : shapes) {
          const auto rule = make_rule("reg", Settings{{"p", p}, {"passes", passes}, {"zero_line", zero_line}});
          RegSettings settings;
          settings.p = *p == '1' ? RegSettings::Norm::one : *p == '2' ? RegSettings::Norm::two : RegSettings::Norm::inf;
          settings.passes = *passes - '0';
          settings.zero_line = *zero_line == 'k' ? RegSettings::ZeroLine::keep : RegSettings::ZeroLine::count;
          const std::vector<float> weight = random_weight(random, shape);
          RuleRun run(*rule, shape, weight);
          ReferenceReg reference{settings, {shape.rows, shape.cols}, {shape.rows, shape.cols, doubles(weight)}};
          for (int step = 0; step < 3; ++step) {
            const std::vector<float> grad = random_grad(random, shape);
            run.step(grad, 0.02, pool);
            reference.step({shape.rows, shape.cols, doubles(grad)}, 0.02);
          }
          SCOPED_TRACE(rule->settings_text() + ", " + std::to_string(shape.rows) + " x " + std::to_string(shape.cols));
          expect_close(run.weight, reference.weight.values, 2e-6);
          expect_close(run.momentum, reference.momentum.values, 2e-6);
        }
}

TEST(Reg, SameBitsForEveryCutThreadCountAndSweep) {
  Random random(32);
  ThreadPool one(1), three(3);
  for (const char* p : {"1", "2", "inf"})
    for (const char* passes : {"1", "2", "3"})
      for (const MatrixShape& shape : shapes) {
        const auto rule = make_rule("reg", Settings{{"p", p}, {"passes", passes}});
        const std::vector<float> weight = random_weight(random, shape), grad = random_grad(random, shape);
        RuleRun whole(*rule, shape, weight);
        whole.step(grad, 0.02, one);
        for (int round = 0; round < 6; ++round) {
          std::vector<std::int64_t> cuts;
          for (int k = 0; k < round; ++k) cuts.push_back(static_cast<std::int64_t>(random() % (shape.numel() + 1)));
          std::sort(cuts.begin(), cuts.end());
          RuleRun parts(*rule, shape, weight);
          parts.step(grad, 0.02, round % 2 ? three : one, cuts, round % 3 != 0);
          ASSERT_EQ(parts.weight, whole.weight) << rule->settings_text() << ' ' << shape.rows << " x " << shape.cols;
          ASSERT_EQ(parts.momentum, whole.momentum);
        }
      }
}

// Enough elements for several tasks, and rows longer than one task.
TEST(Reg, SameBitsAndFiguresForEveryThreadCount) {
  Random random(33);
  ThreadPool one(1), four(4);
  for (const MatrixShape shape : {MatrixShape{3, 700'001}, {1500, 700}, {40'000, 30}, {1, 900'000}})
    for (const bool one_sweep : {true, false}) {
      const auto rule = make_rule("reg", {});
      const std::vector<float> weight = random_weight(random, shape), grad = random_grad(random, shape);
      RuleRun alone(*rule, shape, weight), together(*rule, shape, weight);
      alone.step(grad, 0.02, one, {}, one_sweep);
      together.step(grad, 0.02, four, {}, one_sweep);
      EXPECT_EQ(alone.weight, together.weight);
      EXPECT_EQ(alone.momentum, together.momentum);
      EXPECT_EQ(alone.health.update_squares, together.health.update_squares);
      EXPECT_EQ(alone.health.weight_squares, together.health.weight_squares);
      EXPECT_EQ(alone.health.zero_lines, together.health.zero_lines);
    }
}

// Tasks of one run find their own lines' factors in every pass: as runs that are one task each.
TEST(Reg, SeveralTasksHaveTheBitsOfSeveralRuns) {
  Random random(35);
  ThreadPool pool(2);
  // Tall and wide: of three passes two are over columns, or over rows.
  for (const MatrixShape shape :
       {MatrixShape{3 * line_task_numel / 512 + 1, 512}, {512, 3 * line_task_numel / 512 + 1}}) {
    std::vector<std::int64_t> cuts;
    for (std::int64_t at = line_task_numel / 2; at < shape.numel(); at += line_task_numel / 2) cuts.push_back(at);
    for (const char* passes : {"1", "2", "3"}) {
      const auto rule = make_rule("reg", Settings{{"passes", passes}});
      const std::vector<float> weight = random_weight(random, shape), grad = random_grad(random, shape);
      RuleRun whole(*rule, shape, weight), parts(*rule, shape, weight);
      whole.step(grad, 0.02, pool, {}, false);
      parts.step(grad, 0.02, pool, cuts, false);
      EXPECT_EQ(whole.weight, parts.weight) << passes << " passes";
      EXPECT_EQ(whole.momentum, parts.momentum) << passes << " passes";
    }
  }
}

// Rows longer than a task, each written into its own place.
TEST(Reg, LongRowsOf16BitParametersAreAllWritten) {
  Random random(36);
  ThreadPool pool(2);
  const MatrixShape shape{2, line_task_numel + 3};
  const auto rule = make_rule("reg", {});
  std::vector<float> weight = random_weight(random, shape), momentum(weight.size());
  const std::vector<float> grad = random_grad(random, shape);
  std::vector<std::uint16_t> param(weight.size());
  void* const state[] = {momentum.data()};
  RunTensors run;
  run.run = {shape.rows, shape.cols, 0, shape.numel()};
  run.grad = grad.data();
  run.state = state;
  run.weight = weight.data();
  run.param = param.data();
  run.param_dtype = DType::bf16;
  kernels::SweepHealth health;
  rule->update(run, shape, {0.02, 1, 1}, DType::f32, pool, health);
  for (std::size_t i = 0; i < param.size(); ++i)
    ASSERT_NEAR(read(DType::bf16, param.data(), static_cast<std::int64_t>(i)), weight[i], std::fabs(weight[i]) / 256)
        << i;
}

// With momentum 0 the momentum is the gradient, and without decay minus the weight's change over lr is the update.
std::vector<double> update_of(const Settings& more, MatrixShape shape, const std::vector<float>& matrix) {
  ThreadPool pool(1);
  Settings settings = {{"momentum", "0"}, {"weight_decay", "0"}};
  settings.insert(settings.end(), more.begin(), more.end());
  const auto rule = make_rule("reg", settings);
  RuleRun run(*rule, shape, std::vector<float>(matrix.size()));
  run.step(matrix, 1, pool);
  std::vector<double> update;
  for (const float w : run.weight) update.push_back(-w);
  return update;
}

void expect_near(const std::vector<double>& got, const std::vector<double>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-7) << i;
}

TEST(Reg, WorkedExamples) {
  expect_near(update_of({}, {2, 3}, {3, 4, 0, 0, 0, 0}), {.20784610, .27712813, 0, 0, 0, 0});
  const double tall = .34641016;
  expect_near(update_of({}, {3, 2}, {3, 0, 4, 0, 0, 5}), {.6 * tall, 0, .8 * tall, 0, 0, tall});
  const double scale = 0.2 * std::sqrt(3.0), large = .81649658 * scale, small = .57735027 * scale;
  expect_near(update_of({{"passes", "2"}}, {2, 3}, {3, 4, 0, 0, 4, 5}), {large, small, 0, 0, small, large});
}

TEST(Reg, ZeroGradientLeavesZeroMomentumAndOnlyDecays) {
  ThreadPool pool(1);
  for (const char* zero_line : {"keep", "count"}) {
    const auto rule = make_rule("reg", Settings{{"weight_decay", "0.5"}, {"zero_line", zero_line}});
    RuleRun run(*rule, {4, 6}, std::vector<float>(24, 1));
    run.step(std::vector<float>(24), 0.5, pool);
    EXPECT_EQ(run.weight, std::vector<float>(24, 0.75F));
    EXPECT_EQ(run.health.zero_lines, 4);
  }
}

// A row whose norm is the smallest normal number or less is dead, the next larger one is not, whatever eps is.
TEST(Rules, LinesNearTheSmallestNumber) {
  ThreadPool pool(1);
  const MatrixShape shape{5, 9};
  std::vector<float> grad(static_cast<std::size_t>(shape.numel()));
  const float sizes[] = {0x1p-126F, 0x1.000002p-126F, 0x1p-127F, 0x1p-149F, 1};
  for (int row = 0; row < 5; ++row) grad[row * 9 + row] = row % 2 ? -sizes[row] : sizes[row];
  for (const auto& [rule, settings] : std::vector<std::pair<const char*, Settings>>{{"reg", {{"p", "2"}}},
                                                                                    {"reg", {{"p", "1"}}},
                                                                                    {"reg", {{"p", "inf"}}},
                                                                                    {"reg", {{"zero_line", "count"}}},
                                                                                    {"row_norm", {{"guard", "add"}}},
                                                                                    {"row_norm", {{"guard", "clamp"}}}})
    for (const char* eps : {"0", "1e-12", "0.001"})
      for (const bool one_sweep : {true, false}) {
        Settings all = settings;
        for (const auto& more : Settings{{"momentum", "0"}, {"weight_decay", "0"}, {"eps", eps}}) all.push_back(more);
        const auto made = make_rule(rule, all);
        RuleRun run(*made, shape, std::vector<float>(grad.size()));
        run.step(grad, 1, pool, {}, one_sweep);
        SCOPED_TRACE(made->settings_text());
        for (std::int64_t i = 0; i < shape.numel(); ++i) {
          const bool alive = i == 1 * 9 + 1 || i == 4 * 9 + 4;
          EXPECT_EQ(run.weight[i] != 0, alive) << "row " << i / 9;
          if (alive) {
            EXPECT_EQ(run.weight[i]<0, grad[i]> 0);
          }
        }
        EXPECT_EQ(run.health.zero_lines, 3);
        EXPECT_EQ(run.health.clamped_lines, std::string(eps) == "0" ? 0 : 1);
        EXPECT_EQ(run.health.smallest_norm, sizes[1]);
        EXPECT_EQ(run.health.largest_norm, 1);
        // With eps 0 every live row has the whole size.
        if (std::string(eps) == "0") {
          EXPECT_FLOAT_EQ(run.weight[10], -run.weight[40]);
        }
      }
}

TEST(Reg, ViewFollowsTheShape) {
  using sharding::View;
  const auto rule = make_rule("reg", {});
  EXPECT_TRUE(rule->view({3, 3}).one_sweep_rows());
  EXPECT_EQ(rule->view({4, 3}).passes, std::vector<Line>{Line::column});
  const auto twice = make_rule("reg", Settings{{"passes", "2"}});
  EXPECT_EQ(twice->view({3, 4}).passes, (std::vector<Line>{Line::column, Line::row}));
  EXPECT_EQ(twice->view({4, 3}).passes, (std::vector<Line>{Line::row, Line::column}));
  EXPECT_FALSE(make_rule("reg", Settings{{"p", "inf"}})->view({3, 4}).one_sweep_rows());
  EXPECT_THROW(rule->view({1, std::int64_t{1} << 25}), Error);
}

TEST(Adamw, CloseToTheFormulas) {
  Random random(34);
  ThreadPool pool(2);
  const MatrixShape shape{61, 37};
  const auto rule = make_rule("adamw", {});
  const std::vector<float> weight = random_weight(random, shape);
  RuleRun run(*rule, shape, weight);
  const std::vector<double> zeros(weight.size());
  ReferenceAdamw reference{{}, zeros, zeros, doubles(weight)};
  for (int step = 0; step < 5; ++step) {
    const std::vector<float> grad = random_grad(random, shape);
    run.step(grad, 0.01, pool);
    reference.step(doubles(grad), 0.01);
  }
  expect_close(run.weight, reference.weight, 2e-6);
}

TEST(Adamw, SameBitsForEveryCutAndThreadCount) {
  Random random(35);
  ThreadPool one(1), three(3);
  const MatrixShape shape{1000, 777};
  const auto rule = make_rule("adamw", {});
  const std::vector<float> weight = random_weight(random, shape), grad = random_grad(random, shape);
  RuleRun whole(*rule, shape, weight), parts(*rule, shape, weight), threads(*rule, shape, weight);
  whole.step(grad, 0.01, one);
  parts.step(grad, 0.01, one, {1, 5, 70'000, 600'001});
  threads.step(grad, 0.01, three);
  EXPECT_EQ(parts.weight, whole.weight);
  EXPECT_EQ(parts.second, whole.second);
  EXPECT_EQ(threads.weight, whole.weight);
  EXPECT_EQ(threads.health.update_squares, whole.health.update_squares);
}

void expect_refused(std::string_view rule, const Settings& settings, const std::string& sentence) {
  try {
    make_rule(rule, settings);
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::invalid_argument);
    EXPECT_EQ(std::string(error.what()), sentence);
  }
}

TEST(MakeRule, SaysWhatIsWrong) {
  std::string names;
  for (const std::string& name : rule_names()) names += (names.empty() ? "" : ", ") + name;
  expect_refused("adam", {}, "there is no rule \"adam\"; expected one of " + names);
  expect_refused("muon", {{"variant", "jax"}},
                 "setting variant of rule muon is \"jax\"; expected moonlight, keller_jordan or torch");
  expect_refused("adamw", {{"momentum", "0.9"}},
                 "rule adamw has no setting \"momentum\"; expected one of beta1, beta2, eps, weight_decay");
  expect_refused("reg", {{"p", "3"}}, "setting p of rule reg is \"3\"; expected 1, 2 or inf");
  expect_refused("reg", {{"momentum", "1"}}, "setting momentum of rule reg is \"1\"; expected a number in [0, 1)");
  expect_refused("reg", {{"rho", "nan"}}, "setting rho of rule reg is \"nan\"; expected a number of at least 0");
  expect_refused("reg", {{"passes", "2.5"}},
                 "setting passes of rule reg is \"2.5\"; expected a whole number from 1 to 16");
  expect_refused("reg", {{"eps", ""}}, "setting eps of rule reg is \"\"; expected a number of at least 0");
}

TEST(MakeRule, AVariantSetsWhatIsNotGiven) {
  const auto value = [](const Settings& given, std::string_view name) {
    for (const auto& [known, text] : settings_of(*make_rule("muon", given)))
      if (known == name) return text;
    return std::string();
  };
  EXPECT_EQ(value({}, "weight_decay"), "0.1");
  EXPECT_EQ(value({{"variant", "keller_jordan"}}, "weight_decay"), "0");
  EXPECT_EQ(value({{"weight_decay", "0.3"}, {"variant", "torch"}}, "weight_decay"), "0.3");
  EXPECT_EQ(value({{"variant", "torch"}}, "scale"), "original");
  const auto rule = make_rule("muon", Settings{{"variant", "torch"}, {"scale", "match_rms"}});
  EXPECT_EQ(
      changed_rule(*rule, Settings{{"momentum", "0.8"}})->settings_text(),
      make_rule("muon", Settings{{"variant", "torch"}, {"scale", "match_rms"}, {"momentum", "0.8"}})->settings_text());
}

TEST(MakeRule, SettingsTextNamesEverySetting) {
  for (const std::string& name : rule_names()) {
    const std::string text = make_rule(name, {})->settings_text();
    EXPECT_EQ(text.rfind(name, 0), 0U);
    for (const std::string& setting : rule_setting_names(name))
      EXPECT_NE(text.find(" " + setting + "="), std::string::npos);
  }
}

}  // namespace
}  // namespace regatta::testing
