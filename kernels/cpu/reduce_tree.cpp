// Sums pieces as a balanced binary tree, with the exact sum of squares of the result and its non-finite elements.
//
// Done in tiles that stay in the first-level cache. Pieces are taken in order and kept on a stack of subtrees, as a
// binary counter: piece i closes as many subtrees as i+1 has trailing zero bits; what is left at the end is added from
// the smallest up. That is the tree that pairs neighbours level by level.

#include "kernels/cpu/line_sums.h"
#include "kernels/cpu/table.h"
#include "kernels/cpu/values.h"

namespace regatta::kernels::REGATTA_ISA {
namespace {

constexpr int deepest = 33;  // subtrees open at once, for any int count

struct WholeBlock {
  std::uint64_t hi, mid, lo;
};

// The squares of `count` values at `bin`; with `masked`, values that are not finite count as zero.
template <bool masked>
WholeBlock sum_squares(const float* values, std::int64_t count, std::int32_t bin) {
  const double m0 = bin_magic<WholeSum::bits>(bin), m1 = bin_magic<WholeSum::bits>(bin - 1),
               m2 = bin_magic<WholeSum::bits>(bin - 2);
  const F64 magic0 = splat64(m0), magic1 = splat64(m1), both = splat64(m1 + m2);
  U64 hi{}, mid{}, lo{};
  const auto add_half = [&](F64 x) {
    const F64 upper = square_plus(x, magic0);
    const F64 rest = square_plus(x, magic0 - upper);
    const F64 middle = rest + magic1;
    hi += bits_as<U64>(upper);
    mid += bits_as<U64>(middle);
    lo += bits_as<U64>(rest + (both - middle));
  };
  const auto add = [&](F32 a) {
    if constexpr (masked) a = magnitude_bits(a) < infinity_bits ? a : F32{};
    const Wide x = widen(a);
    add_half(x.low);
    add_half(x.high);
  };
  std::int64_t i = 0, added = (count + width - 1) / width * width;
  for (; i + width <= count; i += width) add(load<DType::f32, false>(values + i, width));
  if (i < count) add(load<DType::f32, true>(values + i, count - i));
  const auto lanes = static_cast<std::uint64_t>(added);
  return {sum_of_lanes(hi) - lanes * bits_as<std::uint64_t>(m0), sum_of_lanes(mid) - lanes * bits_as<std::uint64_t>(m1),
          sum_of_lanes(lo) - lanes * bits_as<std::uint64_t>(m2)};
}

std::uint32_t largest_bits(const float* values, std::int64_t count) {
  U32 largest{};
  std::int64_t i = 0;
  for (; i + width <= count; i += width)
    largest = larger(largest, magnitude_bits(load<DType::f32, false>(values + i, width)));
  if (i < count) largest = larger(largest, magnitude_bits(load<DType::f32, true>(values + i, count - i)));
  return largest_lane(largest);
}

// Adds the tile's figures.
void add_figures(const float* values, std::int64_t count, WholeSum& sum, std::int64_t& non_finite) {
  std::uint32_t largest = largest_bits(values, count);
  const bool masked = largest >= infinity_bits;
  if (masked) {
    largest = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::uint32_t bits = bits_as<std::uint32_t>(values[i]) & 0x7fffffffU;
      if (bits >= infinity_bits) {
        ++non_finite;
      } else if (bits > largest) {
        largest = bits;
      }
    }
  }
  if (largest == 0) return;
  const double x = bits_as<float>(largest);
  raise(sum, bin_of<WholeSum::bits>(x * x));
  const WholeBlock block =
      masked ? sum_squares<true>(values, count, sum.bin) : sum_squares<false>(values, count, sum.bin);
  sum.hi += static_cast<std::int64_t>(block.hi);
  sum.mid += static_cast<std::int64_t>(block.mid);
  sum.lo += static_cast<std::int64_t>(block.lo);
}

template <DType D>
void load_tile(float* tile, const void* piece, std::int64_t offset, std::int64_t count) {
  to_f32(static_cast<const Storage<D>*>(piece) + offset, D, tile, count);
}

template <DType D>
void reduce(const ReduceTreeArgs& args) {
  alignas(64) float tiles[deepest][reduce_tile];
  for (std::int64_t offset = 0; offset < args.count; offset += reduce_tile) {
    const std::int64_t count = args.count - offset < reduce_tile ? args.count - offset : reduce_tile;
    const float* result = tiles[0];
    if (args.piece_count == 1 && D == DType::f32) {
      result = static_cast<const float*>(args.pieces[0]) + offset;
    } else {
      int open = 0;
      for (int piece = 0; piece < args.piece_count; ++piece) {
        load_tile<D>(tiles[open++], args.pieces[piece], offset, count);
        for (int done = piece + 1; done % 2 == 0; done /= 2, --open)
          accumulate(tiles[open - 2], tiles[open - 1], DType::f32, count, false);
      }
      for (; open > 1; --open) accumulate(tiles[open - 2], tiles[open - 1], DType::f32, count, false);
    }
    if (args.out && args.out + offset != result) to_f32(result, DType::f32, args.out + offset, count);
    if (args.squares || args.non_finite) {
      WholeSum unwanted_sum;
      std::int64_t unwanted_count = 0;
      add_figures(result, count, args.squares ? *args.squares : unwanted_sum,
                  args.non_finite ? *args.non_finite : unwanted_count);
    }
  }
}

}  // namespace

void reduce_tree(const ReduceTreeArgs& args) {
  if (args.piece_count < 1) return;
  with_grad_dtype(args.dtype, [&]<DType D>() { reduce<D>(args); });
}

}  // namespace regatta::kernels::REGATTA_ISA
