#pragma once
// Newton-Schulz orthogonalisation of one whole matrix, on the Gram matrix of its short side.
//
//     X <- D / (norm_F(D) + eps), or / max(norm_F(D), eps)
//     repeat: A = X X' (m <= n) or X' X;  B = b A + c A A;  X <- a X + B X (or X B)
//
// with coefficients (a, b, c) by step. What comes out is near the polar factor of D: singular values around 1, very
// small ones stay small; a zero matrix stays zero. Sources: KellerJordan/Muon (classic, five steps), the "quintic" and
// "polar_express" lists of NVIDIA-NeMo/Emerging-Optimizers (the latter arXiv 2505.16932 with a safety division of
// 1.01).
//
// Two precisions: bf16, where every product is rounded to bf16 as on hardware that computes so; and fp32, where what
// comes in and goes out is fp32 and all between is fp64: five steps would amplify the rounding of fp32 products by two
// orders.
//
// Products are cut into pieces of a fixed size, each computed on one thread, so the bits depend on the BLAS and the
// machine but not on the number of threads.

#include <cstddef>
#include <cstdint>
#include <span>

#include "sharding/geometry.h"

namespace regatta {

class ThreadPool;

struct NewtonSchulz {
  enum class Coefficients : std::uint8_t { classic, quintic, polar_express };
  enum class Guard : std::uint8_t { add, clamp };  ///< of the norm, with eps
  Coefficients coefficients = Coefficients::classic;
  int steps = 5;
  bool bf16 = true;  ///< otherwise fp32
  Guard guard = Guard::add;
  double eps = 1e-7;
};

/// Lines of a result that one task computes.
inline constexpr std::int64_t newton_schulz_panel = 256;

/// Bytes of scratch memory for a matrix of this shape.
std::int64_t newton_schulz_scratch(const NewtonSchulz&, MatrixShape);

/// In place on a row-major matrix; `scratch` as above, aligned for doubles. With bf16 the values come in and go out as
/// bf16 numbers. Returns norm_F of what came in. Requires kernels::has_matmul().
double newton_schulz(const NewtonSchulz&, MatrixShape, float* x, std::span<std::byte> scratch, ThreadPool&);

/// fp32 numbers rounded to the nearest bf16 ones, ties to even; NaN stays NaN.
void round_to_bf16(float* values, std::int64_t count);

/// Square root of the sum of squares, added in fp64 in index order.
double frobenius_norm(const float* values, std::int64_t count);

}  // namespace regatta
