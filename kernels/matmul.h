#pragma once
// Matrix products on one thread, through a BLAS. Row-major. Its bits depend on the BLAS, the machine and the shapes,
// and not on how many threads the process has: the caller cuts work into pieces of fixed sizes and may run them at the
// same time. Without a BLAS in the build has_matmul() is false and matmul() must not be called.

#include <cstdint>
#include <string>

namespace regatta::kernels {

/// c (rows x cols) = alpha op(a) op(b) + beta c, where op(a) is rows x inner and op(b) inner x cols. `*_stride` counts
/// elements from one stored row to the next. beta 0: c is not read.
template <class Number>
struct MatmulArgs {
  std::int64_t rows = 0, cols = 0, inner = 0;
  const Number* a = nullptr;
  std::int64_t a_stride = 0;
  bool a_transposed = false;
  const Number* b = nullptr;
  std::int64_t b_stride = 0;
  bool b_transposed = false;
  Number* c = nullptr;
  std::int64_t c_stride = 0;
  Number alpha = 1, beta = 0;
};

void matmul(const MatmulArgs<float>&);
void matmul(const MatmulArgs<double>&);
bool has_matmul();
/// "OpenBLAS 0.3.21 ...", or how to get one.
std::string matmul_name();

}  // namespace regatta::kernels
