#pragma once
// Every rule once more, as its file states it: one whole matrix, fp64, no tiles, no sums of bins. What travels or is
// stored in fp32 is rounded where the rule says so. For any settings, over any number of steps.

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "tests/support/reference.h"
#include "tests/support/scalar_kernels.h"

namespace regatta::testing {

/// Coefficients (a, b, c) of the steps, as the sources list them.
inline std::vector<std::array<double, 3>> formula_coefficients(const std::string& name) {
  if (name == "classic") return {{3.4445, -4.7750, 2.0315}};
  if (name == "quintic")
    return {{4.0848, -6.8946, 2.9270},
            {3.9505, -6.3029, 2.6377},
            {3.7418, -5.5913, 2.3037},
            {2.8769, -3.1427, 1.2046},
            {2.8366, -3.0525, 1.2012}};
  return {{8.2051, -22.9019, 16.4607}, {4.0664, -2.8612, 0.5184}, {3.9096, -2.8234, 0.5250}, {3.2856, -2.4153, 0.4853},
          {2.2779, -1.6198, 0.3985},   {1.8726, -1.2307, 0.3585}, {1.8564, -1.2132, 0.3568}, {1.8750, -1.2500, 0.3750}};
}

inline ReferenceMatrix transposed(const ReferenceMatrix& a) {
  ReferenceMatrix t(a.cols, a.rows);
  for (std::int64_t i = 0; i < a.rows; ++i)
    for (std::int64_t j = 0; j < a.cols; ++j) t.at(j, i) = a.at(i, j);
  return t;
}

inline ReferenceMatrix product(const ReferenceMatrix& a, const ReferenceMatrix& b) {
  ReferenceMatrix c(a.rows, b.cols);
  for (std::int64_t i = 0; i < a.rows; ++i)
    for (std::int64_t k = 0; k < a.cols; ++k) {
      const double factor = a.at(i, k);
      const double* const from = &b.values[k * b.cols];
      double* const to = &c.values[i * b.cols];
      for (std::int64_t j = 0; j < b.cols; ++j) to[j] += factor * from[j];
    }
  return c;
}

inline double squares_of(const ReferenceMatrix& a) {
  double sum = 0;
  for (const double x : a.values) sum += x * x;
  return sum;
}
inline double squares_of(const ReferenceMatrix& a, Line line, std::int64_t k) {
  return std::pow(reference_norm(a, line, k, RegSettings::Norm::two), 2);
}

/// On the rows' side, transposed first when tall; `divisor` is the guarded norm. `round` is applied to the start and to
/// every product.
template <class Round>
ReferenceMatrix formula_newton_schulz(const ReferenceMatrix& d, double divisor, const std::string& coefficients,
                                      int steps, const Round& round) {
  ReferenceMatrix x = d.rows > d.cols ? transposed(d) : d;
  for (double& v : x.values) v = round(v / divisor);
  const auto known = formula_coefficients(coefficients);
  const auto rounded = [&](ReferenceMatrix m) {
    for (double& v : m.values) v = round(v);
    return m;
  };
  for (int step = 0; step < steps; ++step) {
    const std::size_t at = coefficients == "polar_express" ? std::min<std::size_t>(step, known.size() - 1)
                                                           : static_cast<std::size_t>(step) % known.size();
    const auto [a, b, c] = known[at];
    const ReferenceMatrix gram = rounded(product(x, transposed(x)));
    ReferenceMatrix poly = product(gram, gram);
    for (std::size_t i = 0; i < poly.values.size(); ++i)
      poly.values[i] = round(b * gram.values[i] + c * poly.values[i]);
    const ReferenceMatrix more = product(poly, x);
    for (std::size_t i = 0; i < x.values.size(); ++i) x.values[i] = round(a * x.values[i] + more.values[i]);
  }
  return d.rows > d.cols ? transposed(x) : x;
}

/// A rule on one matrix. Settings that are not given have the rule's defaults, which are taken from `given`.
struct FormulaRule {
  std::string rule;
  std::map<std::string, std::string> settings;  ///< all of them
  ReferenceMatrix weight;
  std::map<std::string, ReferenceMatrix> states;  ///< zero at the start
  DType momentum_dtype = DType::f32;              ///< of rules that see whole matrices
  int steps = 0;
  std::vector<double> norms;  ///< of the lines that the last step counts; a whole matrix is one

  double number(const char* name) const { return std::stod(settings.at(name)); }
  const std::string& word(const char* name) const { return settings.at(name); }
  ReferenceMatrix& state(const char* name, std::int64_t rows, std::int64_t cols) {
    return states.try_emplace(name, ReferenceMatrix(rows, cols)).first->second;
  }

  void step(const ReferenceMatrix& grad, double lr) {
    ++steps;
    norms.clear();
    if (rule == "reg") return reg(grad, lr);
    if (rule == "adamw") return adamw(grad, lr);
    if (rule == "row_norm" || rule == "column_norm" || rule == "centred_row_norm") return line_norm(grad, lr);
    matrix_rule(grad, lr);
  }

 private:
  static float f32(double x) { return static_cast<float>(x); }
  float as_stored(double x) const {
    const float value = f32(x);
    if (momentum_dtype == DType::f32) return value;
    std::uint16_t half = 0;
    write(momentum_dtype, &half, 0, value);
    return read(momentum_dtype, &half, 0);
  }

  void decay_and_take(double decay, double factor, const ReferenceMatrix& update) {
    for (std::size_t i = 0; i < weight.values.size(); ++i)
      weight.values[i] = weight.values[i] * decay - factor * update.values[i];
  }

  void reg(const ReferenceMatrix& grad, double lr) {
    RegSettings all;
    all.momentum = number("momentum"), all.rho = number("rho"), all.eps = number("eps");
    all.weight_decay = number("weight_decay"), all.passes = std::stoi(word("passes"));
    all.p = word("p") == "1"   ? RegSettings::Norm::one
            : word("p") == "2" ? RegSettings::Norm::two
                               : RegSettings::Norm::inf;
    all.zero_line = word("zero_line") == "keep" ? RegSettings::ZeroLine::keep : RegSettings::ZeroLine::count;
    ReferenceReg whole{all, state("momentum", grad.rows, grad.cols), weight};
    whole.step(grad, lr);
    states.at("momentum") = whole.momentum;
    const Line line = grad.rows <= grad.cols ? Line::row : Line::column;
    for (std::int64_t k = 0; all.passes == 1 && k < std::min(grad.rows, grad.cols); ++k)
      norms.push_back(reference_norm(whole.momentum, line, k, all.p));
    weight = whole.weight;
  }

  void adamw(const ReferenceMatrix& grad, double lr) {
    ReferenceAdamw whole{{number("beta1"), number("beta2"), number("eps"), number("weight_decay")},
                         state("moment1", grad.rows, grad.cols).values,
                         state("moment2", grad.rows, grad.cols).values,
                         weight.values,
                         steps - 1};
    whole.step(grad.values, lr);
    states.at("moment1").values = whole.moment1;
    states.at("moment2").values = whole.moment2;
    weight.values = whole.weight;
  }

  static ReferenceMatrix centred(ReferenceMatrix a) {
    for (std::int64_t j = 0; j < a.cols; ++j) {
      double mean = 0;
      for (std::int64_t i = 0; i < a.rows; ++i) mean += a.at(i, j) / static_cast<double>(a.rows);
      for (std::int64_t i = 0; i < a.rows; ++i) a.at(i, j) -= mean;
    }
    return a;
  }

  void line_norm(const ReferenceMatrix& grad, double lr) {
    ReferenceMatrix& momentum = state("momentum", grad.rows, grad.cols);
    const double mu = number("momentum"), eps = number("eps");
    for (std::size_t i = 0; i < grad.values.size(); ++i)
      momentum.values[i] = f32(mu * momentum.values[i] + (1 - mu) * grad.values[i]);
    const bool centres = rule == "centred_row_norm";
    const Line line = rule == "column_norm" ? Line::column : Line::row;
    ReferenceMatrix a = centres ? centred(momentum) : momentum;
    const ReferenceMatrix before = a;
    for (std::int64_t k = 0; k < (line == Line::row ? a.rows : a.cols); ++k)
      norms.push_back(reference_norm(before, line, k, RegSettings::Norm::two));
    for (std::int64_t i = 0; i < a.rows; ++i)
      for (std::int64_t j = 0; j < a.cols; ++j) {
        const double norm = reference_norm(before, line, line == Line::row ? i : j, RegSettings::Norm::two);
        const double guarded = word("guard") == "add" ? norm + eps : std::max(norm, eps);
        a.at(i, j) = norm <= std::numeric_limits<float>::min() ? 0 : a.at(i, j) / guarded;
      }
    decay_and_take(1 - lr * number("weight_decay"), lr, centres ? centred(a) : a);
  }

  void matrix_rule(const ReferenceMatrix& grad, double lr) {
    const double m = static_cast<double>(grad.rows), n = static_cast<double>(grad.cols), mu = number("momentum"),
                 wd = number("weight_decay"), tall = std::sqrt(std::max(1.0, m / n)), longest = std::max(m, n);
    const bool muon = rule == "muon";
    const double gain = muon && word("variant") == "moonlight" ? 1 : 1 - mu;
    ReferenceMatrix& momentum = state("momentum", grad.rows, grad.cols);
    ReferenceMatrix d = momentum;
    for (std::size_t i = 0; i < grad.values.size(); ++i) {
      momentum.values[i] = as_stored(mu * momentum.values[i] + gain * grad.values[i]);
      d.values[i] =
          word("nesterov") == "on" ? f32(mu * momentum.values[i] + gain * grad.values[i]) : momentum.values[i];
      if (rule == "adamuon") d.values[i] = d.values[i] > 0 ? 1 : d.values[i] < 0 ? -1 : 0;
    }
    const double norm = std::sqrt(squares_of(d));
    norms.push_back(norm);
    const ReferenceMatrix o =
        formula_newton_schulz(d, muon && word("variant") == "torch" ? std::max(norm, 1e-7) : norm + 1e-7,
                              word("coefficients"), std::stoi(word("steps")), [](double x) { return x; });
    if (muon)
      return decay_and_take(1 - lr * wd, lr * (word("scale") == "match_rms" ? 0.2 * std::sqrt(longest) : tall), o);
    if (rule == "namo") return namo(grad, d, o, lr);
    if (rule == "namo_d") return namo_d(grad, d, o, lr);
    if (rule == "adamuon") {
      ReferenceMatrix &v = state("second_moment", grad.rows, grad.cols), a = o;
      for (std::size_t i = 0; i < a.values.size(); ++i) {
        v.values[i] = mu * v.values[i] + (1 - mu) * o.values[i] * o.values[i];
        const double divisor = std::sqrt(v.values[i]) + number("eps");
        a.values[i] = divisor == 0 ? 0 : o.values[i] / divisor;
      }
      return decay_and_take(1 - lr * wd, lr * 0.2 * std::sqrt(m * n) / (std::sqrt(squares_of(a)) + number("eps")), a);
    }
    // normuon and trasmuon
    const bool trasmuon = rule == "trasmuon";
    const double beta2 = number("beta2"), eps = number("eps");
    ReferenceMatrix &v = state("row_moment", grad.rows, 1), a = o;
    for (std::int64_t i = 0; i < a.rows; ++i) {
      v.at(i, 0) = beta2 * v.at(i, 0) + (1 - beta2) * squares_of(o, Line::row, i) / n;
      const double divisor = trasmuon ? std::sqrt(v.at(i, 0) + eps) : std::sqrt(v.at(i, 0)) + eps;
      for (std::int64_t j = 0; j < a.cols; ++j) a.at(i, j) = divisor == 0 ? 0 : o.at(i, j) / divisor;
    }
    const double size = std::sqrt(squares_of(a));
    if (trasmuon) {
      const double factor = size + eps == 0 ? 0 : lr * std::sqrt(m * n) / (size + eps);
      damp(a, d);
      return decay_and_take(1 - lr * wd, factor, a);
    }
    const double scale = word("scale") == "paper" ? (size == 0 ? 0 : 0.2 * std::sqrt(m * n) / size)
                                                  : tall * std::sqrt(squares_of(o)) / (size + 1e-10);
    decay_and_take(1 - lr * wd, lr * scale, a);
  }

  void damp(ReferenceMatrix& a, const ReferenceMatrix& direction) {
    ReferenceMatrix &reference = state("energy_reference", 1, 1), &damped = state("damped", 1, a.cols);
    std::vector<double> energies;
    for (std::int64_t j = 0; j < a.cols; ++j) energies.push_back(squares_of(direction, Line::column, j));
    std::vector<double> sorted = energies;
    std::sort(sorted.begin(), sorted.end());
    const double median = (sorted[sorted.size() / 2] + sorted[(sorted.size() - 1) / 2]) / 2,
                 beta = number("energy_beta");
    reference.at(0, 0) = steps == 1 ? median : beta * reference.at(0, 0) + (1 - beta) * median;
    for (std::int64_t j = 0; j < a.cols; ++j) {
      const double ratio = energies[j] / (reference.at(0, 0) + number("eps")), alpha = number("alpha");
      double factor = 1;
      if (word("damping") == "smooth") {
        factor = std::max(number("damping_min"), 1 / (1 + alpha * std::log1p(ratio)));
      } else {
        if (ratio > number("trigger"))
          factor = std::max(number("damping_min"), 1 / (1 + alpha * std::log1p(ratio / number("trigger"))));
        const double keep = number("damping_beta");
        factor = keep * (1 - damped.at(0, j)) + (1 - keep) * factor;
      }
      damped.at(0, j) = 1 - factor;
      for (std::int64_t i = 0; i < a.rows; ++i) a.at(i, j) *= factor;
    }
  }

  double correction() const {
    return std::sqrt(1 - std::pow(number("beta2"), steps)) / (1 - std::pow(number("momentum"), steps) + 1e-12);
  }

  void namo(const ReferenceMatrix& grad, const ReferenceMatrix& d, const ReferenceMatrix& o, double lr) {
    double& v = state("gradient_moment", 1, 1).at(0, 0);
    v = number("beta2") * v + (1 - number("beta2")) * squares_of(grad);
    const double divisor = std::sqrt(v) + number("eps"), wd = number("weight_decay"),
                 longest = static_cast<double>(std::max(grad.rows, grad.cols));
    const double a = divisor == 0 ? 0 : lr * correction() * std::sqrt(squares_of(d)) / divisor;
    if (word("form") == "paper") return decay_and_take(1 - wd * a, a, o);
    decay_and_take(1 - wd * std::min(a, 1.0), std::min(0.2 * std::sqrt(longest) * a, 1.0), o);
  }

  void namo_d(const ReferenceMatrix& grad, const ReferenceMatrix& d, const ReferenceMatrix& o, double lr) {
    ReferenceMatrix& v = state("gradient_moment", 1, grad.cols);
    std::vector<double> s;
    double mean = 0;
    for (std::int64_t j = 0; j < grad.cols; ++j) {
      v.at(0, j) = number("beta2") * v.at(0, j) + (1 - number("beta2")) * squares_of(grad, Line::column, j);
      const double divisor = std::sqrt(v.at(0, j)) + number("eps");
      s.push_back(divisor == 0 ? 0 : std::sqrt(squares_of(d, Line::column, j)) / divisor);
      mean += s.back() / static_cast<double>(grad.cols);
    }
    const double c = number("c"), b = lr * correction(), wd = number("weight_decay"),
                 scale = 0.2 * std::sqrt(static_cast<double>(std::max(grad.rows, grad.cols)));
    for (std::int64_t j = 0; j < grad.cols; ++j) {
      const double step = b * (c == 0 || mean == 0 ? s[j] : std::clamp(s[j], c * mean, mean / c));
      const bool paper = word("form") == "paper";
      const double decay = paper ? 1 - wd * step : std::max(0.0, 1 - wd * std::min(step, 1.0)),
                   factor = paper ? step : std::min(scale * step, 1.0);
      for (std::int64_t i = 0; i < grad.rows; ++i) weight.at(i, j) = weight.at(i, j) * decay - factor * o.at(i, j);
    }
  }
};

}  // namespace regatta::testing
