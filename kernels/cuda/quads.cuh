#pragma once
// Four elements per lane. A group of lanes takes 4 x lanes consecutive elements; where all tensors of a sweep are
// equally far from an access boundary, and the group starts on one, a lane takes four neighbours with one 16-byte
// access (8 bytes for 16-bit types); otherwise its elements lie `lanes` apart, so that single accesses still coalesce.

#include <type_traits>

#include "kernels/cuda/block.cuh"

namespace regatta::kernels::cuda {

/// The dtypes of a launch, known to the compiler or not.
template <DType G, DType M, DType P>
struct FixedTypes {
  static constexpr bool known = true;
  static constexpr DType grad = G, momentum = M, param = P;
  REGATTA_HOST_DEVICE explicit FixedTypes(Dtypes) {}
};
struct AnyTypes {
  static constexpr bool known = false;
  DType grad, momentum, param;
  REGATTA_HOST_DEVICE explicit AnyTypes(Dtypes d) : grad(d.grad), momentum(d.momentum), param(d.param) {}
};

template <class T>
REGATTA_DEVICE T* advance(DType dtype, T* p, std::int64_t elements) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return p == nullptr ? p : reinterpret_cast<Byte*>(p) + elements * (dtype == DType::f32 ? 4 : 2);
}

/// Elements between a pointer and the access boundary before it.
REGATTA_DEVICE int phase_of(DType dtype, const void* p) {
  return static_cast<int>(reinterpret_cast<std::uintptr_t>(p) / (dtype == DType::f32 ? 4U : 2U)) & 3;
}

/// How a sweep's tensors lie: the phase they share, or -1.
struct Phase {
  int value = 0;
  bool any = false;
  REGATTA_DEVICE void add(DType dtype, const void* p) {
    if (p == nullptr) return;
    const int phase = phase_of(dtype, p);
    if (any && phase != value) {
      value = -1;
    } else {
      value = phase;
    }
    any = true;
  }
};

/// A lane's four elements: first + j * stride, of which those in `mask` are there. They count from where a tile's
/// pointers point, so that 32 bits hold them.
struct Quad {
  std::int32_t first;
  std::int32_t stride;
  std::uint32_t mask;
  REGATTA_DEVICE std::int32_t at(int j) const { return first + j * stride; }
  REGATTA_DEVICE bool has(int j) const { return (mask >> j & 1U) != 0; }
  REGATTA_DEVICE bool whole() const { return stride == 1 && mask == 15U; }
};

/// Elements [begin, end) of those from `base` on, for one of `lanes` lanes.
REGATTA_DEVICE Quad make_quad(std::int32_t base, bool neighbours, int lane, int lanes, std::int32_t begin,
                              std::int32_t end) {
  Quad quad;
  quad.first = base + (neighbours ? 4 * lane : lane);
  quad.stride = neighbours ? 1 : lanes;
  quad.mask = 0;
  REGATTA_UNROLL
  for (int j = 0; j < 4; ++j)
    if (quad.at(j) >= begin && quad.at(j) < end) quad.mask |= 1U << j;
  return quad;
}

/// Four neighbours that are all there or none: what a Quad is where all tensors of a line start on a boundary and the
/// line's length is a multiple of four. Spares the masks.
struct WholeQuad {
  static constexpr std::int32_t stride = 1;
  std::int32_t first;
  bool there;
  REGATTA_DEVICE std::int32_t at(int j) const { return first + j; }
  REGATTA_DEVICE bool has(int) const { return there; }
  REGATTA_DEVICE bool whole() const { return there; }
};

/// Elements as they lie in memory; two to a word if they are of 16 bits.
struct RawQuad {
  std::uint32_t word[4];
};

template <class AQuad>
REGATTA_DEVICE RawQuad load_raw(DType dtype, const void* from, const AQuad& quad) {
  assume_global(from);
  RawQuad raw;
  REGATTA_UNROLL
  for (int j = 0; j < 4; ++j) raw.word[j] = 0;
  if (dtype == DType::f32) {
    const float* p = static_cast<const float*>(from) + quad.first;
    if (quad.whole()) {
      const uint4 v = *reinterpret_cast<const uint4*>(p);
      raw.word[0] = v.x, raw.word[1] = v.y, raw.word[2] = v.z, raw.word[3] = v.w;
    } else {
      REGATTA_UNROLL
      for (int j = 0; j < 4; ++j)
        if (quad.has(j)) raw.word[j] = bits_of(p[j * quad.stride]);
    }
  } else {
    const std::uint16_t* p = static_cast<const std::uint16_t*>(from) + quad.first;
    if (quad.whole()) {
      const uint2 v = *reinterpret_cast<const uint2*>(p);
      raw.word[0] = v.x, raw.word[1] = v.y;
    } else {
      REGATTA_UNROLL
      for (int j = 0; j < 4; ++j)
        if (quad.has(j)) raw.word[j / 2] |= static_cast<std::uint32_t>(p[j * quad.stride]) << (16 * (j % 2));
    }
  }
  return raw;
}

REGATTA_DEVICE void decode(DType dtype, const RawQuad& raw, float* values) {
  REGATTA_UNROLL
  for (int j = 0; j < 4; ++j)
    values[j] =
        dtype == DType::f32 ? float_of(raw.word[j]) : from_16(dtype, raw.word[j / 2] >> (16 * (j % 2)) & 0xffffU);
}

REGATTA_DEVICE void load_quad(DType dtype, const void* from, const Quad& quad, float* values) {
  decode(dtype, load_raw(dtype, from, quad), values);
}

REGATTA_DEVICE RawQuad encode(DType dtype, const float* values) {
  RawQuad raw;
  if (dtype == DType::f32) {
    REGATTA_UNROLL
    for (int j = 0; j < 4; ++j) raw.word[j] = bits_of(values[j]);
  } else {
    raw.word[0] = to_16(dtype, values[0]) | to_16(dtype, values[1]) << 16;
    raw.word[1] = to_16(dtype, values[2]) | to_16(dtype, values[3]) << 16;
    raw.word[2] = raw.word[3] = 0;
  }
  return raw;
}

template <class AQuad>
REGATTA_DEVICE void store_raw(DType dtype, void* to, const AQuad& quad, const RawQuad& raw) {
  assume_global(to);
  if (dtype == DType::f32) {
    float* p = static_cast<float*>(to) + quad.first;
    if (quad.whole()) {
      *reinterpret_cast<uint4*>(p) = uint4{raw.word[0], raw.word[1], raw.word[2], raw.word[3]};
    } else {
      REGATTA_UNROLL
      for (int j = 0; j < 4; ++j)
        if (quad.has(j)) p[j * quad.stride] = float_of(raw.word[j]);
    }
  } else {
    std::uint16_t* p = static_cast<std::uint16_t*>(to) + quad.first;
    if (quad.whole()) {
      *reinterpret_cast<uint2*>(p) = uint2{raw.word[0], raw.word[1]};
    } else {
      REGATTA_UNROLL
      for (int j = 0; j < 4; ++j)
        if (quad.has(j)) p[j * quad.stride] = static_cast<std::uint16_t>(raw.word[j / 2] >> (16 * (j % 2)));
    }
  }
}

template <class AQuad>
REGATTA_DEVICE void store_quad(DType dtype, void* to, const AQuad& quad, const float* values) {
  store_raw(dtype, to, quad, encode(dtype, values));
}

/// The tensors of a segment from element `offset` of its run on.
struct Tensors {
  const void* grad;
  void* momentum;
  float* weight;
  void* param;
  int phase;  ///< that all share, or -1

  template <class Types>
  REGATTA_DEVICE Tensors(const Types& types, const RegSegment& segment, std::int64_t offset, bool uses_grad,
                         bool uses_weights)
      : grad(advance(types.grad, segment.grad, offset)),
        momentum(advance(types.momentum, segment.momentum, offset)),
        weight(segment.weight == nullptr ? nullptr : segment.weight + offset),
        param(types.param == DType::f32 ? nullptr : advance(types.param, segment.param, offset)) {
    Phase all;
    if (uses_grad) all.add(types.grad, grad);
    all.add(types.momentum, momentum);
    if (uses_weights) {
      all.add(DType::f32, weight);
      all.add(types.param, param);
    }
    phase = all.value;
  }
};

/// Updates the momentum of a quad whose gradient and momentum were loaded; leaves the values as they read back, zero
/// where there is no element.
template <class AQuad>
REGATTA_DEVICE void update_momentum(DType grad_dtype, DType momentum_dtype, const RegScalars& scalars,
                                    const RawQuad& grad, const RawQuad& momentum, const AQuad& quad, void* to,
                                    float* values) {
  float g[4];
  decode(grad_dtype, grad, g);
  decode(momentum_dtype, momentum, values);
  REGATTA_UNROLL
  for (int j = 0; j < 4; ++j)
    values[j] = next_momentum(scalars.mu, scalars.one_minus_mu, scalars.grad_scale, g[j], values[j]);
  const RawQuad raw = encode(momentum_dtype, values);
  store_raw(momentum_dtype, to, quad, raw);
  decode(momentum_dtype, raw, values);
  REGATTA_UNROLL
  for (int j = 0; j < 4; ++j)
    if (!quad.has(j)) values[j] = 0;
}

/// Writes the weights of a quad. `weights` as loaded.
template <class AQuad>
REGATTA_DEVICE void update_weights(DType param_dtype, float decay, const float* steps, const float* values,
                                   const RawQuad& weights, const AQuad& quad, float* weight, void* param,
                                   ThreadHealth& health) {
  float updated[4];
  REGATTA_UNROLL
  for (int j = 0; j < 4; ++j) {
    const float old = float_of(weights.word[j]);
    updated[j] = next_weight(steps[j], values[j], old, decay);
    if (quad.has(j)) health.add(old, updated[j]);
  }
  store_quad(DType::f32, weight, quad, updated);
  if (param_dtype != DType::f32) store_quad(param_dtype, param, quad, updated);
}

/// The line factors of a quad that starts in column `col` of row `row`, wrapping over rows of `cols`; a column below
/// zero belongs to elements that are not there, and a quad with none may lie beyond the last row.
REGATTA_DEVICE void load_factors(const LineFactors& pass, const Quad& quad, std::int32_t row, std::int32_t col,
                                 std::int32_t cols, float* factors) {
  assume_global(pass.factor);
  if (quad.mask != 0 && col >= 0 && col + 3 * quad.stride < cols && pass.line == Line::row) {
    const float factor = pass.factor[row];
    factors[0] = factors[1] = factors[2] = factors[3] = factor;
    return;
  }
  REGATTA_UNROLL
  for (int j = 0; j < 4; ++j) {
    factors[j] = 0;
    if (quad.has(j)) factors[j] = pass.factor[pass.line == Line::row ? row : col];
    col += quad.stride;
    while (col >= cols) {
      col -= cols;
      ++row;
    }
  }
}

/// Scales values by earlier passes' factors, in their order.
REGATTA_DEVICE void scale_quad(const LineFactors* passes, int count, const Quad& quad, std::int32_t row,
                               std::int32_t col, std::int32_t cols, float* values) {
  for (int k = 0; k < count; ++k) {
    float factors[4];
    load_factors(passes[k], quad, row, col, cols, factors);
    REGATTA_UNROLL
    for (int j = 0; j < 4; ++j) values[j] = quad.has(j) ? mul_rn(values[j], factors[j]) : 0.0F;
  }
}

}  // namespace regatta::kernels::cuda
