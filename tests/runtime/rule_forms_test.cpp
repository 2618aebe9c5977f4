// Every rule with settings that all differ, over several steps with gradients, learning rates and clip factors that
// change, against its formulas in fp64 (tests/support/rule_formulas.h): weights and states.

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "kernels/matmul.h"
#include "runtime/engine/engine.h"
#include "runtime/transport/transport.h"
#include "tests/support/rule_formulas.h"
#include "tests/support/spmd.h"

namespace regatta {
namespace {

using testing::FormulaRule;
using testing::ReferenceMatrix;
using Settings = std::vector<std::pair<std::string, std::string>>;

struct Matrix {
  const char* name;
  std::int64_t rows, cols;
  double size = 1;  // of its gradients
};
// Odd and even lengths, one of several tiles, one whose norms are near the guards, one that gets no gradient at first.
const Matrix matrices[] = {{"column", 9, 1}, {"late", 6, 10},       {"row", 1, 9},   {"square", 8, 8},
                           {"tall", 19, 5},  {"tiny", 7, 12, 2e-8}, {"wide", 3, 700}};
constexpr double lrs[] = {0.05, 0.9, 0, 0.4, 2};

std::vector<float> gradient(std::mt19937_64& random, const Matrix& matrix, int step) {
  std::normal_distribution<float> normal;
  std::vector<float> grad(static_cast<std::size_t>(matrix.rows * matrix.cols));
  for (std::int64_t i = 0; i < std::ssize(grad); ++i) {
    const std::int64_t row = i / matrix.cols, col = i % matrix.cols;
    const bool dead = (row == 4 || col == 6) && matrix.rows > 1 && matrix.cols > 1;  // in all steps
    const bool pauses = (step == 0 && matrix.name == std::string("late")) || (step == 3 && row == 2);
    const double scale = matrix.size * std::pow(4.0, static_cast<double>((row * 5 + col * 3 + step) % 4));
    grad[i] = dead || pauses ? 0 : static_cast<float>(normal(random) * scale);
  }
  return grad;
}

class RuleForms : public ::testing::Test {
 protected:
  void check(const std::string& rule, Settings settings, double clip = 0, DType momentum_dtype = DType::f32) {
    const auto made = make_rule(rule, settings);
    std::map<std::string, std::string> all;
    for (const auto& [name, text] : settings_of(*made)) all[name] = text;
    std::mt19937_64 random(std::hash<std::string>{}(rule) % 1000);
    testing::run_ranks(1, [&](Transport& transport) {
      SCOPED_TRACE(made->settings_text() + " clip " + std::to_string(clip));
      std::vector<Param> params;
      for (const Matrix& matrix : matrices)
        params.push_back({matrix.name, {matrix.rows, matrix.cols}, DType::f32, {}, {}, {}, 0});
      EngineOptions options;
      options.clip = clip;
      options.momentum_dtype = momentum_dtype;
      Engine engine(params, {{"all", made, 1}}, sharding::Mesh({{"dp", 1}}), transport, options);
      std::vector<FormulaRule> formulas;
      std::normal_distribution<float> normal;
      for (int p = 0; p < static_cast<int>(std::size(matrices)); ++p) {
        const Matrix& matrix = matrices[p];
        FormulaRule& formula = formulas.emplace_back(rule, all, ReferenceMatrix(matrix.rows, matrix.cols));
        formula.momentum_dtype = momentum_dtype;
        auto* const data = static_cast<float*>(engine.param(p).data);
        for (std::size_t i = 0; i < formula.weight.values.size(); ++i)
          formula.weight.values[i] = data[i] = normal(random);
      }
      engine.publish_params();
      for (int step = 0; step < static_cast<int>(std::size(lrs)); ++step) {
        std::vector<std::vector<float>> grads;
        double squares = 0;
        for (const Matrix& matrix : matrices) {
          grads.push_back(gradient(random, matrix, step));
          for (const float g : grads.back()) squares += static_cast<double>(g) * g;
        }
        const double factor = clip > 0 ? std::min(1.0, clip / (std::sqrt(squares) + 1e-6)) : 1;
        for (int p = static_cast<int>(std::size(matrices)) - 1; p >= 0; --p)
          engine.add_grad(p, grads[p].data(), DType::f32);
        engine.step(lrs[step]);
        for (std::size_t p = 0; p < std::size(matrices); ++p) {
          ReferenceMatrix grad(matrices[p].rows, matrices[p].cols);
          for (std::size_t i = 0; i < grads[p].size(); ++i) grad.values[i] = grads[p][i] * static_cast<float>(factor);
          const ReferenceMatrix before = formulas[p].weight;
          formulas[p].step(grad, lrs[step]);
          expect_figures(engine.param_reports()[p], formulas[p], before,
                         made->view({2, 2}).kind == sharding::View::Kind::matrix
                             ? 1e-7
                             : std::stod(all.count("eps") ? all.at("eps") : "0"));
        }
        for (std::size_t p = 0; p < std::size(matrices); ++p)
          expect_close(static_cast<const float*>(engine.param(static_cast<int>(p)).data), formulas[p].weight,
                       std::string(matrices[p].name) + " after step " + std::to_string(step));
      }
      std::vector<std::size_t> states(std::size(matrices));
      for (const StatePart& part : engine.state_parts()) {
        FormulaRule& formula = formulas[part.param];
        const auto found = formula.states.find(part.state);
        ASSERT_NE(found, formula.states.end()) << part.state;
        EXPECT_EQ(part.shape, (MatrixShape{found->second.rows, found->second.cols})) << part.state;
        EXPECT_EQ(part.dtype, part.state == "momentum" ? momentum_dtype : DType::f32);
        std::vector<float> values(found->second.values.size());
        for (std::size_t i = 0; i < values.size(); ++i)
          values[i] = testing::read(part.dtype, part.data, static_cast<std::int64_t>(i));
        expect_close(values.data(), found->second, part.state + " of " + matrices[part.param].name);
        ++states[part.param];
      }
      for (std::size_t p = 0; p < states.size(); ++p) EXPECT_EQ(states[p], formulas[p].states.size());
    });
  }

  // Sizes of the step and of what came of it, and the lines that it counted.
  static void expect_figures(const ParamReport& report, const FormulaRule& formula, const ReferenceMatrix& before,
                             double eps) {
    double change = 0;
    for (std::size_t i = 0; i < before.values.size(); ++i)
      change += std::pow(formula.weight.values[i] - before.values[i], 2);
    const auto numel = static_cast<double>(before.values.size());
    // A weight moves by whole steps of its own rounding.
    EXPECT_NEAR(report.update_rms, std::sqrt(change / numel), 1e-5 * report.update_rms + 2e-7 * report.weight_rms)
        << report.name;
    EXPECT_NEAR(report.weight_rms, std::sqrt(testing::squares_of(formula.weight) / numel), 1e-5 * report.weight_rms)
        << report.name;
    if (formula.norms.empty()) return;
    std::int64_t zero = 0, clamped = 0;
    double smallest = 0, largest = 0;
    for (const double norm : formula.norms) {
      zero += norm == 0;
      clamped += norm > 0 && norm < eps;
      if (norm > 0 && (smallest == 0 || norm < smallest)) smallest = norm;
      largest = std::max(largest, norm);
    }
    EXPECT_EQ(report.zero_lines, zero) << report.name;
    EXPECT_EQ(report.clamped_lines, clamped) << report.name;
    EXPECT_EQ(report.non_finite_lines, 0) << report.name;
    EXPECT_NEAR(report.smallest_line_norm, smallest, 1e-5 * smallest) << report.name;
    EXPECT_NEAR(report.largest_line_norm, largest, 1e-5 * largest) << report.name;
  }

  // Of an element, or of a twentieth of the largest where terms cancel.
  static void expect_close(const float* got, const ReferenceMatrix& expected, const std::string& what) {
    double largest = 0;
    for (const double x : expected.values) largest = std::max(largest, std::fabs(x));
    for (std::size_t i = 0; i < expected.values.size(); ++i) {
      const double e = expected.values[i];
      ASSERT_NEAR(got[i], e, 5e-6 * std::max(std::fabs(e), 0.05 * largest)) << what << ", element " << i;
    }
  }
};

TEST_F(RuleForms, Adamw) {
  check("adamw", {});
  check("adamw", {{"beta1", "0.7"}, {"beta2", "0.8"}, {"eps", "0.4"}, {"weight_decay", "0.3"}}, 3);
  check("adamw", {{"beta1", "0"}, {"beta2", "0.5"}, {"eps", "1e-7"}, {"weight_decay", "0"}});
}

TEST_F(RuleForms, Reg) {
  double clip = 0;
  for (const char* p : {"1", "2", "inf"})
    for (const char* passes : {"1", "2", "5"})
      for (const char* zero_line : {"keep", "count"}) {
        const Settings form = {{"p", p}, {"passes", passes}, {"zero_line", zero_line}};
        Settings other = form;
        for (const auto& setting :
             Settings{{"momentum", "0.7"}, {"rho", "0.6"}, {"weight_decay", "0.3"}, {"eps", "0.4"}})
          other.push_back(setting);
        check("reg", form, clip);
        check("reg", other, clip = clip == 0 ? 3 : 0);
      }
}

class MatrixRuleForms : public RuleForms {
 protected:
  void SetUp() override {
    if (!kernels::has_matmul()) GTEST_SKIP() << "no BLAS in this build";
  }
  void check_all(const std::string& rule, const std::vector<Settings>& forms) {
    double clip = 0;
    for (Settings settings : forms) {
      settings.emplace_back("precision", "fp32");
      check(rule, settings, clip);
      clip = clip == 0 ? 3 : 0;
    }
    Settings settings = forms.back();
    settings.emplace_back("precision", "fp32");
    check(rule, settings, clip, DType::bf16);
  }
};

TEST_F(RuleForms, LineNorms) {
  for (const char* rule : {"row_norm", "column_norm", "centred_row_norm"})
    for (const char* guard : {"add", "clamp"}) {
      check(rule, {{"guard", guard}});
      check(rule, {{"guard", guard}, {"momentum", "0.7"}, {"weight_decay", "0.3"}, {"eps", "0.4"}}, 3);
      check(rule, {{"guard", guard}, {"momentum", "0"}, {"weight_decay", "0.1"}, {"eps", "1e-7"}}, 500);
    }
}

TEST_F(MatrixRuleForms, Muon) {
  check_all(
      "muon",
      {{},
       {{"variant", "moonlight"},
        {"scale", "original"},
        {"momentum", "0.8"},
        {"nesterov", "off"},
        {"weight_decay", "0.3"},
        {"steps", "3"},
        {"coefficients", "quintic"}},
       {{"variant", "torch"}, {"scale", "match_rms"}, {"momentum", "0.6"}, {"weight_decay", "0.2"}, {"steps", "2"}},
       {{"variant", "torch"}},
       {{"coefficients", "quintic"}, {"steps", "8"}},
       {{"coefficients", "polar_express"}, {"steps", "10"}},
       {{"variant", "keller_jordan"}, {"momentum", "0"}, {"steps", "1"}, {"coefficients", "polar_express"}}});
}

TEST_F(MatrixRuleForms, Normuon) {
  check_all("normuon",
            {{},
             {{"momentum", "0.6"}, {"beta2", "0.8"}, {"eps", "0.03"}, {"weight_decay", "0.3"}, {"steps", "3"}},
             {{"scale", "code"}, {"momentum", "0.8"}, {"beta2", "0.3"}, {"nesterov", "off"}, {"eps", "1e-4"}},
             {{"scale", "code"}, {"weight_decay", "0.2"}, {"steps", "2"}, {"coefficients", "quintic"}}});
}

TEST_F(MatrixRuleForms, Adamuon) {
  check_all("adamuon", {{},
                        {{"momentum", "0.6"}, {"eps", "0.03"}, {"weight_decay", "0.3"}, {"steps", "2"}},
                        {{"momentum", "0.8"}, {"nesterov", "off"}, {"eps", "1e-3"}, {"steps", "3"}}});
}

TEST_F(MatrixRuleForms, Trasmuon) {
  check_all("trasmuon",
            {{},
             {{"momentum", "0.6"},
              {"beta2", "0.8"},
              {"eps", "0.03"},
              {"alpha", "2.5"},
              {"trigger", "1.7"},
              {"damping_min", "0.4"},
              {"damping_beta", "0.5"},
              {"energy_beta", "0.7"},
              {"weight_decay", "0.3"}},
             {{"alpha", "0.5"}, {"trigger", "0.3"}, {"damping_min", "0"}, {"damping_beta", "0"}, {"nesterov", "on"}},
             {{"damping", "smooth"}, {"alpha", "3"}, {"damping_min", "0.35"}, {"energy_beta", "0.4"}, {"steps", "3"}},
             {{"damping", "smooth"}, {"damping_min", "1"}, {"energy_beta", "0"}}});
}

// Learning rates of this test are far enough apart that steps and decays reach their limits of 1 and 0, and do not.
TEST_F(MatrixRuleForms, Namo) {
  check_all("namo", {{},
                     {{"momentum", "0.6"}, {"beta2", "0.7"}, {"eps", "0.5"}, {"weight_decay", "0.3"}, {"steps", "2"}},
                     {{"form", "paper"}, {"momentum", "0.8"}, {"beta2", "0.5"}, {"eps", "0.02"}, {"nesterov", "off"}},
                     {{"form", "paper"}, {"weight_decay", "0.2"}}});
}

TEST_F(MatrixRuleForms, NamoD) {
  check_all(
      "namo_d",
      {{},
       {{"c", "0.6"}},
       {{"weight_decay", "1.5"}},
       {{"momentum", "0.6"}, {"beta2", "0.7"}, {"eps", "0.5"}, {"weight_decay", "1.5"}, {"c", "0.3"}, {"steps", "2"}},
       {{"momentum", "0.8"}, {"beta2", "0.5"}, {"eps", "0.02"}, {"nesterov", "off"}, {"c", "0"}},
       {{"form", "paper"}, {"weight_decay", "0.2"}, {"c", "1"}},
       {{"form", "paper"}, {"c", "0.9"}, {"beta2", "0.9"}}});
}

}  // namespace
}  // namespace regatta
