// Products through OpenBLAS, each on the calling thread alone.

#include <cblas.h>
#include <omp.h>

#include "kernels/matmul.h"

namespace regatta::kernels {
namespace {

// Variants of OpenBLAS count threads differently: with OpenMP it asks the calling thread's setting, which is put back
// afterwards; with threads of its own the count belongs to the process.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) {
    if (before_ != 1) omp_set_num_threads(1);
    static const bool of_process = [] {
      const bool own_threads = openblas_get_parallel() == OPENBLAS_THREAD;
      if (own_threads) openblas_set_num_threads(1);
      return own_threads;
    }();
    (void)of_process;
  }
  ~OneThread() {
    if (before_ != 1) omp_set_num_threads(before_);
  }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

template <class Number, class Gemm>
void multiply(const MatmulArgs<Number>& args, const Gemm& gemm) {
  if (args.rows == 0 || args.cols == 0) return;
  const OneThread one;
  const auto size = [](std::int64_t value) { return static_cast<blasint>(value); };
  gemm(CblasRowMajor, args.a_transposed ? CblasTrans : CblasNoTrans, args.b_transposed ? CblasTrans : CblasNoTrans,
       size(args.rows), size(args.cols), size(args.inner), args.alpha, args.a, size(args.a_stride), args.b,
       size(args.b_stride), args.beta, args.c, size(args.c_stride));
}

}  // namespace

void matmul(const MatmulArgs<float>& args) { multiply(args, cblas_sgemm); }
void matmul(const MatmulArgs<double>& args) { multiply(args, cblas_dgemm); }

bool has_matmul() { return true; }
std::string matmul_name() { return openblas_get_config(); }

}  // namespace regatta::kernels
