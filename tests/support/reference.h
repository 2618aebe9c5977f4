#pragma once
// One rank, fp64, whole matrices, the formulas as they stand in the specification: REG for every p and number of
// passes, and AdamW. No blocks, no bins, no splits.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "runtime/rules/adamw.h"
#include "runtime/rules/reg.h"

namespace regatta::testing {

struct ReferenceMatrix {
  std::int64_t rows = 0, cols = 0;
  std::vector<double> values;

  ReferenceMatrix(std::int64_t m, std::int64_t n) : rows(m), cols(n), values(static_cast<std::size_t>(m * n)) {}
  ReferenceMatrix(std::int64_t m, std::int64_t n, std::vector<double> v) : rows(m), cols(n), values(std::move(v)) {}
  double& at(std::int64_t i, std::int64_t j) { return values[i * cols + j]; }
  double at(std::int64_t i, std::int64_t j) const { return values[i * cols + j]; }
};

/// p-norm of row or column k.
inline double reference_norm(const ReferenceMatrix& a, Line line, std::int64_t k, RegSettings::Norm p) {
  double norm = 0;
  const std::int64_t length = line == Line::row ? a.cols : a.rows;
  for (std::int64_t j = 0; j < length; ++j) {
    const double x = std::fabs(line == Line::row ? a.at(k, j) : a.at(j, k));
    if (p == RegSettings::Norm::one) norm += x;
    if (p == RegSettings::Norm::two) norm += x * x;
    if (p == RegSettings::Norm::inf) norm = std::max(norm, x);
  }
  return p == RegSettings::Norm::two ? std::sqrt(norm) : norm;
}

/// normal(m; p), `passes` times, the primary direction last.
inline ReferenceMatrix reference_direction(ReferenceMatrix a, const RegSettings& settings) {
  const Line primary = a.rows <= a.cols ? Line::row : Line::column;
  const Line secondary = a.rows <= a.cols ? Line::column : Line::row;
  for (int pass = 0; pass < settings.passes; ++pass) {
    const Line line = (settings.passes - 1 - pass) % 2 == 0 ? primary : secondary;
    const ReferenceMatrix before = a;
    for (std::int64_t i = 0; i < a.rows; ++i)
      for (std::int64_t j = 0; j < a.cols; ++j) a.at(i, j) = 0;
    for (std::int64_t k = 0; k < (line == Line::row ? a.rows : a.cols); ++k) {
      const double norm = reference_norm(before, line, k, settings.p);
      if (norm <= std::numeric_limits<float>::min()) continue;
      for (std::int64_t j = 0; j < (line == Line::row ? a.cols : a.rows); ++j) {
        const std::int64_t row = line == Line::row ? k : j, col = line == Line::row ? j : k;
        a.at(row, col) = before.at(row, col) / std::max(norm, settings.eps);
      }
    }
  }
  return a;
}

struct ReferenceReg {
  RegSettings settings;
  ReferenceMatrix momentum, weight;

  void step(const ReferenceMatrix& grad, double lr) {
    for (std::size_t i = 0; i < grad.values.size(); ++i)
      momentum.values[i] = settings.momentum * momentum.values[i] + (1 - settings.momentum) * grad.values[i];
    const ReferenceMatrix a = reference_direction(momentum, settings);
    const auto m = static_cast<double>(grad.rows), n = static_cast<double>(grad.cols);
    double rms = 0;
    for (const double x : a.values) rms += x * x;
    rms = std::sqrt(rms / (m * n));
    if (settings.p == RegSettings::Norm::two && settings.zero_line == RegSettings::ZeroLine::keep)
      rms = std::sqrt(1 / std::max(m, n));
    for (std::size_t i = 0; i < grad.values.size(); ++i) {
      const double update = rms == 0 ? 0 : settings.rho / rms * a.values[i];
      weight.values[i] = weight.values[i] * (1 - lr * settings.weight_decay) - lr * update;
    }
  }
};

struct ReferenceAdamw {
  AdamwSettings settings;
  std::vector<double> moment1, moment2, weight;
  int step_count = 0;

  void step(const std::vector<double>& grad, double lr) {
    ++step_count;
    const double correction1 = 1 - std::pow(settings.beta1, step_count),
                 correction2 = 1 - std::pow(settings.beta2, step_count);
    for (std::size_t i = 0; i < grad.size(); ++i) {
      weight[i] *= 1 - lr * settings.weight_decay;
      moment1[i] = settings.beta1 * moment1[i] + (1 - settings.beta1) * grad[i];
      moment2[i] = settings.beta2 * moment2[i] + (1 - settings.beta2) * grad[i] * grad[i];
      weight[i] -= lr / correction1 * moment1[i] / (std::sqrt(moment2[i] / correction2) + settings.eps);
    }
  }
};

}  // namespace regatta::testing
