#pragma once
// The tensors of a REG run for a kernel call, and comparisons of what two calls left.

#include "tests/kernels/kernel_case.h"

namespace regatta::testing {

struct RegCase {
  MatrixRun run;
  Elements grad, momentum, weight, param;

  RegCase(Random& random, MatrixRun run, DType grad_dtype, DType momentum_dtype, DType param_dtype, double spread = 3)
      : run(run),
        grad(grad_dtype, run.numel(), static_cast<int>(random() % 5)),
        momentum(momentum_dtype, run.numel(), static_cast<int>(random() % 5)),
        weight(DType::f32, run.numel(), static_cast<int>(random() % 5)),
        param(param_dtype, run.numel(), static_cast<int>(random() % 5)) {
    grad.fill(random, 1, spread);
    momentum.fill(random, 1, spread);
    weight.fill(random, 1, 2);
  }

  kernels::RegTensors tensors() { return tensors(run.begin, run.end); }
  kernels::RegTensors tensors(std::int64_t begin, std::int64_t end) {
    kernels::RegTensors t;
    t.run = {run.rows, run.cols, begin, end};
    t.grad = grad.at(begin - run.begin);
    t.grad_dtype = grad.dtype();
    t.momentum = momentum.at(begin - run.begin);
    t.momentum_dtype = momentum.dtype();
    t.weight = weight.floats() + (begin - run.begin);
    t.param = param.dtype() == DType::f32 ? nullptr : param.at(begin - run.begin);
    t.param_dtype = param.dtype();
    t.grad_scale = 0.83F;
    t.decay = 0.997F;
    return t;
  }
};

inline void expect_same(RegCase& result, RegCase& expected) {
  EXPECT_SAME_BITS(result.momentum, expected.momentum);
  EXPECT_SAME_BITS(result.weight, expected.weight);
  EXPECT_SAME_BITS(result.param, expected.param);
}

inline void expect_same_counts(const kernels::SweepHealth& a, const kernels::SweepHealth& b) {
  EXPECT_EQ(a.zero_lines, b.zero_lines);
  EXPECT_EQ(a.clamped_lines, b.clamped_lines);
  EXPECT_EQ(a.non_finite_lines, b.non_finite_lines);
  EXPECT_EQ(a.smallest_norm, b.smallest_norm);
  EXPECT_EQ(a.largest_norm, b.largest_norm);
}

inline MatrixRun whole(std::int64_t rows, std::int64_t cols) { return {rows, cols, 0, rows * cols}; }

}  // namespace regatta::testing
