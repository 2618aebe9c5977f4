#include "runtime/rules/newton_schulz.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels/matmul.h"
#include "runtime/device/thread_pool.h"

namespace regatta {
namespace {

struct Step {
  double a, b, c;
};
constexpr Step classic[] = {{3.4445, -4.7750, 2.0315}};
constexpr Step quintic[] = {{4.0848, -6.8946, 2.9270},
                            {3.9505, -6.3029, 2.6377},
                            {3.7418, -5.5913, 2.3037},
                            {2.8769, -3.1427, 1.2046},
                            {2.8366, -3.0525, 1.2012}};
constexpr Step polar_express[] = {{8.2051, -22.9019, 16.4607}, {4.0664, -2.8612, 0.5184}, {3.9096, -2.8234, 0.5250},
                                  {3.2856, -2.4153, 0.4853},   {2.2779, -1.6198, 0.3985}, {1.8726, -1.2307, 0.3585},
                                  {1.8564, -1.2132, 0.3568},   {1.8750, -1.2500, 0.3750}};

// Lists that were fitted as a cycle start again; Polar Express converges, so its last step goes on.
Step coefficients(NewtonSchulz::Coefficients set, int step) {
  switch (set) {
    case NewtonSchulz::Coefficients::classic: return classic[0];
    case NewtonSchulz::Coefficients::quintic: return quintic[step % std::ssize(quintic)];
    case NewtonSchulz::Coefficients::polar_express: break;
  }
  return polar_express[std::min<int>(step, static_cast<int>(std::ssize(polar_express)) - 1)];
}

constexpr std::int64_t panel = newton_schulz_panel;
std::int64_t panels(std::int64_t lines) { return (lines + panel - 1) / panel; }
Range lines_of(std::int64_t task, std::int64_t lines) { return {task * panel, std::min(lines, (task + 1) * panel)}; }

// In fp64, or on bf16 numbers in floats, whose products are rounded to bf16.
template <class Number>
class Iteration {
 public:
  Iteration(MatrixShape shape, Number* x, Number* scratch, ThreadPool& pool)
      : wide_(shape.rows <= shape.cols),
        k_(std::min(shape.rows, shape.cols)),
        l_(std::max(shape.rows, shape.cols)),
        stride_(shape.cols),
        x_(x),
        next_(scratch),
        gram_(next_ + shape.numel()),
        poly_(gram_ + k_ * k_),
        pool_(pool) {}

  void step(Step s) {
    gram();
    polynomial(s);
    update(s);
    std::swap(x_, next_);
  }
  const Number* result() const { return x_; }

 private:
  static Number number(double coefficient) { return static_cast<Number>(coefficient); }
  static void multiply(const kernels::MatmulArgs<Number>& args) { kernels::matmul(args); }
  static void round_rows(Number* from, std::int64_t rows, std::int64_t cols, std::int64_t stride) {
    if constexpr (std::is_same_v<Number, float>)
      for (std::int64_t i = 0; i < rows; ++i) round_to_bf16(from + i * stride, cols);
  }
  // Symmetric results are computed from their diagonal blocks on to the right, and mirrored.
  void mirror(Number* matrix) {
    pool_.run(panels(k_), [&](std::int64_t task, int) {
      const Range rows = lines_of(task, k_);
      for (std::int64_t i = rows.begin; i < rows.end; ++i)
        for (std::int64_t j = 0; j < rows.begin; ++j) matrix[i * k_ + j] = matrix[j * k_ + i];
    });
  }
  void gram() {
    pool_.run(panels(k_), [&](std::int64_t task, int) {
      const Range rows = lines_of(task, k_);
      Number* const to = gram_ + rows.begin * k_ + rows.begin;
      const Number* const from = x_ + rows.begin * (wide_ ? stride_ : 1);
      multiply({rows.size(), k_ - rows.begin, l_, from, stride_, !wide_, from, stride_, wide_, to, k_});
      round_rows(to, rows.size(), k_ - rows.begin, k_);
    });
    mirror(gram_);
  }
  void polynomial(Step s) {
    pool_.run(panels(k_), [&](std::int64_t task, int) {
      const Range rows = lines_of(task, k_);
      const std::int64_t cols = k_ - rows.begin;
      Number* const to = poly_ + rows.begin * k_ + rows.begin;
      for (std::int64_t i = 0; i < rows.size(); ++i)
        std::memcpy(to + i * k_, gram_ + (rows.begin + i) * k_ + rows.begin, cols * sizeof(Number));
      multiply({rows.size(), cols, k_, gram_ + rows.begin * k_, k_, false, gram_ + rows.begin, k_, false, to, k_,
                number(s.c), number(s.b)});
      round_rows(to, rows.size(), cols, k_);
    });
    mirror(poly_);
  }
  // Wide: columns of B X; tall: rows of X B.
  void update(Step s) {
    pool_.run(panels(l_), [&](std::int64_t task, int) {
      const Range lines = lines_of(task, l_);
      const std::int64_t rows = wide_ ? k_ : lines.size(), cols = wide_ ? lines.size() : k_;
      const std::int64_t at = lines.begin * (wide_ ? 1 : stride_);
      Number* const to = next_ + at;
      for (std::int64_t i = 0; i < rows; ++i)
        std::memcpy(to + i * stride_, x_ + at + i * stride_, cols * sizeof(Number));
      if (wide_)
        multiply({rows, cols, k_, poly_, k_, false, x_ + at, stride_, false, to, stride_, 1, number(s.a)});
      else
        multiply({rows, cols, k_, x_ + at, stride_, false, poly_, k_, false, to, stride_, 1, number(s.a)});
      round_rows(to, rows, cols, stride_);
    });
  }

  bool wide_;
  std::int64_t k_, l_, stride_;
  Number *x_, *next_, *gram_, *poly_;
  ThreadPool& pool_;
};

// Returns where the result is: at x, or in the scratch.
template <class Number>
const Number* iterate(const NewtonSchulz& settings, MatrixShape shape, Number* x, Number* scratch, ThreadPool& pool) {
  Iteration<Number> iteration(shape, x, scratch, pool);
  for (int step = 0; step < settings.steps; ++step) iteration.step(coefficients(settings.coefficients, step));
  return iteration.result();
}

}  // namespace

std::int64_t newton_schulz_scratch(const NewtonSchulz& settings, MatrixShape shape) {
  const std::int64_t k = std::min(shape.rows, shape.cols), numbers = shape.numel() + 2 * k * k;
  return settings.bf16 ? numbers * static_cast<std::int64_t>(sizeof(float))
                       : (shape.numel() + numbers) * static_cast<std::int64_t>(sizeof(double));
}

double newton_schulz(const NewtonSchulz& settings, MatrixShape shape, float* x, std::span<std::byte> scratch,
                     ThreadPool& pool) {
  const std::int64_t numel = shape.numel();
  const double norm = frobenius_norm(x, numel);
  const double divisor =
      settings.guard == NewtonSchulz::Guard::add ? norm + settings.eps : std::max(norm, settings.eps);
  if (settings.bf16) {
    const auto inverse = static_cast<float>(1 / divisor);
    for (std::int64_t i = 0; i < numel; ++i) x[i] *= inverse;
    round_to_bf16(x, numel);
    const float* const result = iterate(settings, shape, x, reinterpret_cast<float*>(scratch.data()), pool);
    if (result != x) std::memcpy(x, result, numel * sizeof(float));
  } else {
    auto* const exact = reinterpret_cast<double*>(scratch.data());
    for (std::int64_t i = 0; i < numel; ++i) exact[i] = x[i] / divisor;
    const double* const result = iterate(settings, shape, exact, exact + numel, pool);
    for (std::int64_t i = 0; i < numel; ++i) x[i] = static_cast<float>(result[i]);
  }
  return norm;
}

void round_to_bf16(float* values, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    const std::uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) & 0xffff0000U;
    bits = (bits & 0x7fffffffU) > 0x7f800000U ? (bits | 0x400000U) & 0xffff0000U : rounded;
    std::memcpy(values + i, &bits, sizeof bits);
  }
}

double frobenius_norm(const float* values, std::int64_t count) {
  double squares = 0;
  for (std::int64_t i = 0; i < count; ++i) squares += static_cast<double>(values[i]) * values[i];
  return std::sqrt(squares);
}

}  // namespace regatta
