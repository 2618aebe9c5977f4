// Stand-in: this build has no BLAS.

#include <stdexcept>

#include "kernels/matmul.h"

namespace regatta::kernels {

void matmul(const MatmulArgs&) { throw std::logic_error("matmul was called in a build without a BLAS"); }
bool has_matmul() { return false; }
std::string matmul_name() { return "install libopenblas-openmp-dev and configure again"; }

}  // namespace regatta::kernels
