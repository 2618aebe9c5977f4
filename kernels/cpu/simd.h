#pragma once
// Vectors of the instruction set this file is compiled for. Included once per instruction set, each in its own
// namespace (REGATTA_ISA), so that nothing compiled for one can be linked into another. All functions are inlined.
//
// The results are the same bits for every instruction set: where there is no fused multiply-add it is computed in
// double and rounded once.

#include <cstdint>
#include <cstring>

#include "kernels/cpu/blocking.h"
#include "sharding/dtype.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define REGATTA_INLINE [[gnu::always_inline]] inline

namespace regatta::kernels::REGATTA_ISA {

#if defined(__AVX512F__) && defined(__AVX512DQ__)
inline constexpr int width = 16;
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
inline constexpr int width = 8;
#else
inline constexpr int width = 4;
#endif
/// Elements that a sweep takes at a time: the lanes of fp64 figures, the same on every instruction set.
inline constexpr int step_width = 16;
inline constexpr int parts = step_width / width;

using F32 [[gnu::vector_size(4 * width)]] = float;
using U32 [[gnu::vector_size(4 * width)]] = std::uint32_t;
using I32 [[gnu::vector_size(4 * width)]] = std::int32_t;
using U16 [[gnu::vector_size(2 * width)]] = std::uint16_t;
using F64 [[gnu::vector_size(4 * width)]] = double;         // half as many lanes
using U64 [[gnu::vector_size(4 * width)]] = std::uint64_t;  // half as many lanes

struct Wide {  // an F32's values as doubles
  F64 low, high;
};

template <class To, class From>
REGATTA_INLINE To bits_as(From from) {
  return __builtin_bit_cast(To, from);
}
REGATTA_INLINE F32 splat(float x) { return F32{} + x; }
REGATTA_INLINE F64 splat64(double x) { return F64{} + x; }
REGATTA_INLINE U32 magnitude_bits(F32 a) { return bits_as<U32>(a) & 0x7fffffffU; }
REGATTA_INLINE F32 magnitude(F32 a) { return bits_as<F32>(magnitude_bits(a)); }
REGATTA_INLINE U32 larger(U32 a, U32 b) { return a > b ? a : b; }

REGATTA_INLINE std::uint32_t largest_lane(U32 a) {
  std::uint32_t lanes[width];
  std::memcpy(lanes, &a, sizeof lanes);
  for (int half = width / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  return lanes[0];
}
REGATTA_INLINE std::uint64_t sum_of_lanes(U64 a) {
  std::uint64_t lanes[width / 2];
  std::memcpy(lanes, &a, sizeof lanes);
  for (int half = width / 4; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}
/// In a fixed order.
REGATTA_INLINE double sum_of_lanes(const double* lanes) {
  double sum[step_width];
  for (int i = 0; i < step_width; ++i) sum[i] = lanes[i];
  for (int half = step_width / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
  return sum[0];
}

#if defined(__AVX512F__) && defined(__AVX512DQ__)

REGATTA_INLINE Wide widen(F32 a) {
  return {(F64)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)a)),
          (F64)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)a, 1))};
}
REGATTA_INLINE F32 fma(F32 a, F32 b, F32 c) { return (F32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
REGATTA_INLINE F32 square_root(F32 a) { return (F32)_mm512_sqrt_ps((__m512)a); }
/// a * a + c. Requires that a came from an F32: then the product is exact.
REGATTA_INLINE F64 square_plus(F64 a, F64 c) { return (F64)_mm512_fmadd_pd((__m512d)a, (__m512d)a, (__m512d)c); }
REGATTA_INLINE bool any(I32 mask) { return _mm512_movepi32_mask((__m512i)mask) != 0; }
REGATTA_INLINE F32 from_f16(U16 h) { return (F32)_mm512_cvtph_ps((__m256i)h); }
REGATTA_INLINE U16 to_f16(F32 a) {
  return (U16)_mm512_cvtps_ph((__m512)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

REGATTA_INLINE Wide widen(F32 a) {
  return {(F64)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)a)),
          (F64)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)a, 1))};
}
REGATTA_INLINE F32 fma(F32 a, F32 b, F32 c) { return (F32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
REGATTA_INLINE F32 square_root(F32 a) { return (F32)_mm256_sqrt_ps((__m256)a); }
REGATTA_INLINE F64 square_plus(F64 a, F64 c) { return (F64)_mm256_fmadd_pd((__m256d)a, (__m256d)a, (__m256d)c); }
REGATTA_INLINE bool any(I32 mask) { return _mm256_movemask_ps((__m256)mask) != 0; }
REGATTA_INLINE F32 from_f16(U16 h) { return (F32)_mm256_cvtph_ps((__m128i)h); }
REGATTA_INLINE U16 to_f16(F32 a) { return (U16)_mm256_cvtps_ph((__m256)a, _MM_FROUND_TO_NEAREST_INT); }

#else

REGATTA_INLINE Wide widen(F32 a) {
  return {__builtin_convertvector(__builtin_shufflevector(a, a, 0, 1), F64),
          __builtin_convertvector(__builtin_shufflevector(a, a, 2, 3), F64)};
}

#if defined(__SSE2__) && !defined(__FMA__)
// The product of two floats is exact in double. The sum is rounded to odd there (what is left over, found as in Knuth's
// two-sum, sets the last bit), so that the rounding to float, 29 bits shorter, is the only one.
REGATTA_INLINE F64 add_to_odd(F64 p, F64 c) {
  const F64 s = p + c;
  const F64 back = s - p;
  const F64 rest = (p - (s - back)) + (c - back);
  const U64 s_bits = bits_as<U64>(s);
  const U64 inexact = bits_as<U64>((rest < 0) | (rest > 0));
  const U64 toward_zero = bits_as<U64>((rest < 0) != (s < 0));  // s was rounded away from zero
  const U64 even = bits_as<U64>((s_bits & 1) == 0);
  const U64 move = inexact & even;
  return bits_as<F64>(s_bits + (move & ((toward_zero & ~U64{}) | (~toward_zero & (U64{} + 1)))));
}
REGATTA_INLINE F32 fma(F32 a, F32 b, F32 c) {
  const Wide x = widen(a), y = widen(b), z = widen(c);
  const F64 low = add_to_odd(x.low * y.low, z.low), high = add_to_odd(x.high * y.high, z.high);
  // Written as intrinsics: g++ 12 takes a round trip through float, in vectors of its own, for nothing.
  return (F32)_mm_movelh_ps(_mm_cvtpd_ps((__m128d)low), _mm_cvtpd_ps((__m128d)high));
}
#else
REGATTA_INLINE F32 fma(F32 a, F32 b, F32 c) {
  F32 r;
  for (int i = 0; i < width; ++i) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return r;
}
#endif
REGATTA_INLINE F32 square_root(F32 a) {
  F32 r;
  for (int i = 0; i < width; ++i) r[i] = __builtin_sqrtf(a[i]);
  return r;
}
REGATTA_INLINE F64 square_plus(F64 a, F64 c) { return a * a + c; }
REGATTA_INLINE bool any(I32 mask) {
  std::int32_t result = 0;
  for (int i = 0; i < width; ++i) result |= mask[i];
  return result != 0;
}
REGATTA_INLINE F32 from_f16(U16 h) {
  const U32 x = __builtin_convertvector(h, U32);
  const U32 sign = (x & 0x8000U) << 16, rest = x & 0x7fffU, mantissa = rest & 0x3ffU;
  const U32 normal = (rest << 13) + ((127U - 15U) << 23);
  const U32 special = 0x7f800000U | (mantissa << 13) | (mantissa != 0U ? U32{} + 0x400000U : U32{});
  // A subnormal is mantissa * 2^-24.
  const U32 subnormal = bits_as<U32>(__builtin_convertvector(bits_as<I32>(mantissa), F32) * 0x1p-24F);
  return bits_as<F32>(sign | (rest >= 0x7c00U ? special : rest >= 0x400U ? normal : subnormal));
}
REGATTA_INLINE U16 to_f16(F32 a) {
  const U32 bits = bits_as<U32>(a), sign = (bits >> 16) & 0x8000U, rest = bits & 0x7fffffffU;
  const U32 nan = 0x7e00U | ((rest >> 13) & 0x3ffU);
  const U32 normal = (rest - ((127U - 15U) << 23) + 0xfffU + ((rest >> 13) & 1U)) >> 13;
  // Adding 0.5 leaves a multiple of 2^-24 in the low bits, rounded to nearest even.
  const U32 subnormal = bits_as<U32>(bits_as<F32>(rest) + 0.5F) - 0x3f000000U;
  const U32 infinity = U32{} + 0x7c00U;
  const U32 finite = rest < 0x38800000U ? subnormal : normal;
  const U32 result = rest > 0x7f800000U ? nan : rest >= 0x47800000U ? infinity : finite;
  return __builtin_convertvector(sign | result, U16);
}

#endif

REGATTA_INLINE F32 from_bf16(U16 h) { return bits_as<F32>(__builtin_convertvector(h, U32) << 16); }
REGATTA_INLINE U16 to_bf16(F32 a) {
  const U32 bits = bits_as<U32>(a);
  const U32 rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
  const U32 nan = (bits >> 16) | 0x40U;
  return __builtin_convertvector((bits & 0x7fffffffU) > 0x7f800000U ? nan : rounded, U16);
}

/// Asks for what a stream will read soon: a core's own prefetchers leave part of the memory's speed unused when a sweep
/// follows several streams. The best distances differ by sweep and were measured. An address past the end does no harm.
template <int bytes>
REGATTA_INLINE void prefetch_ahead(const void* from) {
  __builtin_prefetch(static_cast<const char*>(from) + bytes, 0, 2);
}

/// How elements of a dtype lie in memory.
template <DType D>
struct StorageOf {
  using Type = std::uint16_t;
};
template <>
struct StorageOf<DType::f32> {
  using Type = float;
};
template <DType D>
using Storage = typename StorageOf<D>::Type;

/// A vector's worth of elements; with `tail` only the first `count`, the others read as zero.
template <DType D, bool tail>
REGATTA_INLINE F32 load(const Storage<D>* from, std::int64_t count) {
  using Raw [[gnu::vector_size(sizeof(Storage<D>) * width)]] = Storage<D>;
  Raw raw{};
  if constexpr (tail) {
    Storage<D> buffer[width] = {};
    for (std::int64_t i = 0; i < count; ++i) buffer[i] = from[i];
    std::memcpy(&raw, buffer, sizeof raw);
  } else {
    std::memcpy(&raw, from, sizeof raw);
  }
  if constexpr (D == DType::f32) return raw;
  if constexpr (D == DType::bf16) return from_bf16(raw);
  if constexpr (D == DType::f16) return from_f16(raw);
}

/// Writes what load() reads; returns the values as they read back.
template <DType D, bool tail>
REGATTA_INLINE F32 store(Storage<D>* to, F32 a, std::int64_t count) {
  using Raw [[gnu::vector_size(sizeof(Storage<D>) * width)]] = Storage<D>;
  Raw raw;
  F32 read_back = a;
  if constexpr (D == DType::f32) raw = a;
  if constexpr (D == DType::bf16) read_back = from_bf16(raw = to_bf16(a));
  if constexpr (D == DType::f16) read_back = from_f16(raw = to_f16(a));
  if constexpr (tail) {
    Storage<D> buffer[width];
    std::memcpy(buffer, &raw, sizeof raw);
    for (std::int64_t i = 0; i < count; ++i) to[i] = buffer[i];
  } else {
    std::memcpy(to, &raw, sizeof raw);
  }
  return read_back;
}

/// body(begin, end) for every block of [0, count).
template <class Body>
REGATTA_INLINE void for_each_block(std::int64_t count, const Body& body) {
  for (std::int64_t begin = 0; begin < count; begin += block_numel)
    body(begin, begin + block_numel < count ? begin + block_numel : count);
}

/// body.operator()<tail>(part, i, left) for every vector of [begin, end): `part` says which vector of a step it is,
/// `left` how many of its elements there are when it is the last and `tail` is true.
template <class Body>
REGATTA_INLINE void for_each_part(std::int64_t begin, std::int64_t end, const Body& body) {
  std::int64_t i = begin;
  for (; i + step_width <= end; i += step_width)
#pragma GCC unroll 4
    for (int part = 0; part < parts; ++part) body.template operator()<false>(part, i + part * width, width);
#pragma GCC unroll 4
  for (int part = 0; part < parts; ++part) {
    const std::int64_t left = end - (i + part * width);
    if (left >= width) {
      body.template operator()<false>(part, i + part * width, width);
    } else if (left > 0) {
      body.template operator()<true>(part, i + part * width, left);
    }
  }
}

}  // namespace regatta::kernels::REGATTA_ISA
