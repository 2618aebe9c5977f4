// Stand-in: this build has no BLAS.

#include <stdexcept>

#include "kernels/matmul.h"

namespace regatta::kernels {

namespace {
[[noreturn]] void no_blas() { throw std::logic_error("matmul was called in a build without a BLAS"); }
}  // namespace

void matmul(const MatmulArgs<float>&) { no_blas(); }
void matmul(const MatmulArgs<double>&) { no_blas(); }
bool has_matmul() { return false; }
std::string matmul_name() { return "install libopenblas-openmp-dev and configure again"; }

}  // namespace regatta::kernels
