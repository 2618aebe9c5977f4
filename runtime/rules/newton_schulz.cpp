#include "runtime/rules/newton_schulz.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/matmul.h"
#include "runtime/device/thread_pool.h"

namespace regatta {
namespace {

struct Step {
  float a, b, c;
};
constexpr Step classic[] = {{3.4445F, -4.7750F, 2.0315F}};
constexpr Step quintic[] = {{4.0848F, -6.8946F, 2.9270F},
                            {3.9505F, -6.3029F, 2.6377F},
                            {3.7418F, -5.5913F, 2.3037F},
                            {2.8769F, -3.1427F, 1.2046F},
                            {2.8366F, -3.0525F, 1.2012F}};
constexpr Step polar_express[] = {{8.2051F, -22.9019F, 16.4607F}, {4.0664F, -2.8612F, 0.5184F},
                                  {3.9096F, -2.8234F, 0.5250F},   {3.2856F, -2.4153F, 0.4853F},
                                  {2.2779F, -1.6198F, 0.3985F},   {1.8726F, -1.2307F, 0.3585F},
                                  {1.8564F, -1.2132F, 0.3568F},   {1.8750F, -1.2500F, 0.3750F}};

// Lists that were fitted as a cycle start again; Polar Express converges, so its last step goes on.
Step coefficients(NewtonSchulz::Coefficients set, int step) {
  switch (set) {
    case NewtonSchulz::Coefficients::classic: return classic[0];
    case NewtonSchulz::Coefficients::quintic: return quintic[step % std::ssize(quintic)];
    case NewtonSchulz::Coefficients::polar_express: break;
  }
  return polar_express[std::min<int>(step, static_cast<int>(std::ssize(polar_express)) - 1)];
}

// Lines of a result that one task computes.
constexpr std::int64_t panel = 256;
std::int64_t panels(std::int64_t lines) { return (lines + panel - 1) / panel; }
Range lines_of(std::int64_t task, std::int64_t lines) { return {task * panel, std::min(lines, (task + 1) * panel)}; }

class Iteration {
 public:
  Iteration(const NewtonSchulz& settings, MatrixShape shape, float* x, std::span<float> scratch, ThreadPool& pool)
      : bf16_(settings.bf16),
        wide_(shape.rows <= shape.cols),
        k_(std::min(shape.rows, shape.cols)),
        l_(std::max(shape.rows, shape.cols)),
        stride_(shape.cols),
        x_(x),
        next_(scratch.data()),
        gram_(next_ + shape.numel()),
        poly_(gram_ + k_ * k_),
        pool_(pool) {}

  void step(Step s) {
    gram();
    polynomial(s);
    update(s);
    std::swap(x_, next_);
  }
  const float* result() const { return x_; }

 private:
  void round_rows(float* from, std::int64_t rows, std::int64_t cols, std::int64_t stride) const {
    if (!bf16_) return;
    for (std::int64_t i = 0; i < rows; ++i) round_to_bf16(from + i * stride, cols);
  }
  // Symmetric results are computed from their diagonal blocks on to the right, and mirrored.
  void mirror(float* matrix) {
    pool_.run(panels(k_), [&](std::int64_t task, int) {
      const Range rows = lines_of(task, k_);
      for (std::int64_t i = rows.begin; i < rows.end; ++i)
        for (std::int64_t j = 0; j < rows.begin; ++j) matrix[i * k_ + j] = matrix[j * k_ + i];
    });
  }
  void gram() {
    pool_.run(panels(k_), [&](std::int64_t task, int) {
      const Range rows = lines_of(task, k_);
      float* const to = gram_ + rows.begin * k_ + rows.begin;
      const float* const from = x_ + rows.begin * (wide_ ? stride_ : 1);
      kernels::matmul({rows.size(), k_ - rows.begin, l_, from, stride_, !wide_, from, stride_, wide_, to, k_});
      round_rows(to, rows.size(), k_ - rows.begin, k_);
    });
    mirror(gram_);
  }
  void polynomial(Step s) {
    pool_.run(panels(k_), [&](std::int64_t task, int) {
      const Range rows = lines_of(task, k_);
      const std::int64_t cols = k_ - rows.begin;
      float* const to = poly_ + rows.begin * k_ + rows.begin;
      for (std::int64_t i = 0; i < rows.size(); ++i)
        std::memcpy(to + i * k_, gram_ + (rows.begin + i) * k_ + rows.begin, cols * sizeof(float));
      kernels::matmul(
          {rows.size(), cols, k_, gram_ + rows.begin * k_, k_, false, gram_ + rows.begin, k_, false, to, k_, s.c, s.b});
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
      float* const to = next_ + at;
      for (std::int64_t i = 0; i < rows; ++i)
        std::memcpy(to + i * stride_, x_ + at + i * stride_, cols * sizeof(float));
      if (wide_)
        kernels::matmul({rows, cols, k_, poly_, k_, false, x_ + at, stride_, false, to, stride_, 1, s.a});
      else
        kernels::matmul({rows, cols, k_, x_ + at, stride_, false, poly_, k_, false, to, stride_, 1, s.a});
      round_rows(to, rows, cols, stride_);
    });
  }

  bool bf16_, wide_;
  std::int64_t k_, l_, stride_;
  float *x_, *next_, *gram_, *poly_;
  ThreadPool& pool_;
};

}  // namespace

std::int64_t newton_schulz_scratch(MatrixShape shape) {
  const std::int64_t k = std::min(shape.rows, shape.cols);
  return shape.numel() + 2 * k * k;
}

double newton_schulz(const NewtonSchulz& settings, MatrixShape shape, float* x, std::span<float> scratch,
                     ThreadPool& pool) {
  const double norm = frobenius_norm(x, shape.numel());
  const double divisor =
      settings.guard == NewtonSchulz::Guard::add ? norm + settings.eps : std::max(norm, settings.eps);
  const auto inverse = static_cast<float>(1 / divisor);
  for (std::int64_t i = 0; i < shape.numel(); ++i) x[i] *= inverse;
  if (settings.bf16) round_to_bf16(x, shape.numel());
  Iteration iteration(settings, shape, x, scratch, pool);
  for (int step = 0; step < settings.steps; ++step) iteration.step(coefficients(settings.coefficients, step));
  if (iteration.result() != x) std::memcpy(x, iteration.result(), shape.numel() * sizeof(float));
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
