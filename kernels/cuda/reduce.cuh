#pragma once
// Sums of gradients from several ranks, with their figures; casts and plain addition.

#include "kernels/cuda/flat.cuh"

namespace regatta::kernels::cuda {

/// Subtrees open at once: as many as most_pieces has bits.
inline constexpr int tree_depth = 10;
/// Pieces whose quads a thread has in flight.
inline constexpr int tree_loads = 4;

/// The sum of `count` pieces, neighbours first, taken in order as a binary counter: subtree l holds 2^l pieces.
REGATTA_DEVICE void tree_quad(DType dtype, const void* const* pieces, int count, std::int64_t offset, const Quad& quad,
                              float* sum) {
  float open[tree_depth][4];
  for (int first = 0; first < count; first += tree_loads) {
    RawQuad raws[tree_loads];
    REGATTA_UNROLL
    for (int i = 0; i < tree_loads; ++i)
      if (first + i < count) raws[i] = load_raw(dtype, advance(dtype, pieces[first + i], offset), quad);
    REGATTA_UNROLL
    for (int i = 0; i < tree_loads; ++i) {
      const int piece = first + i;
      if (piece >= count) continue;
      decode(dtype, raws[i], sum);
      bool done = false;
      REGATTA_UNROLL
      for (int level = 0; level < tree_depth; ++level) {
        const bool closes = (piece >> level & 1) != 0;
        REGATTA_UNROLL
        for (int j = 0; j < 4; ++j) {
          if (!done && closes) sum[j] = add_rn(open[level][j], sum[j]);
          if (!done && !closes) open[level][j] = sum[j];
        }
        done = done || !closes;
      }
    }
  }
  // What is left, from the smallest up. `count` has a bit for every open subtree.
  bool any = false;
  REGATTA_UNROLL
  for (int level = 0; level < tree_depth; ++level) {
    if ((count >> level & 1) == 0) continue;
    REGATTA_UNROLL
    for (int j = 0; j < 4; ++j) sum[j] = any ? add_rn(open[level][j], sum[j]) : open[level][j];
    any = true;
  }
}

struct SharedWhole {
  std::int64_t hi[block_warps], mid[block_warps], lo[block_warps], non_finite[block_warps];
  std::int32_t bin[block_warps];
};

REGATTA_DEVICE void write_figures(SharedWhole& shared, WholeSum sum, std::int64_t non_finite, TileFigures* to) {
  for (int mask = warp_lanes / 2; mask > 0; mask /= 2) {
    WholeSum other;
    other.hi = lane_xor(sum.hi, mask);
    other.mid = lane_xor(sum.mid, mask);
    other.lo = lane_xor(sum.lo, mask);
    other.bin = lane_xor(sum.bin, mask);
    merge(sum, other);
    non_finite += lane_xor(non_finite, mask);
  }
  const int thread = static_cast<int>(threadIdx.x), warp = thread / warp_lanes;
  if (thread % warp_lanes == 0) {
    shared.hi[warp] = sum.hi;
    shared.mid[warp] = sum.mid;
    shared.lo[warp] = sum.lo;
    shared.bin[warp] = sum.bin;
    shared.non_finite[warp] = non_finite;
  }
  block_sync();
  if (thread != 0) return;
  TileFigures all;
  for (int w = 0; w < block_warps; ++w) {
    WholeSum part;
    part.hi = shared.hi[w];
    part.mid = shared.mid[w];
    part.lo = shared.lo[w];
    part.bin = shared.bin[w];
    merge(all.squares, part);
    all.non_finite += shared.non_finite[w];
  }
  *to = all;
}

REGATTA_KERNEL(block_threads, 2) reduce_tree_kernel(ReduceTree args) {
  REGATTA_SHARED(SharedWhole, shared);
  const Tile tile = args.tiles[blockIdx.x];
  const ReduceSegment segment = args.segments[tile.segment];
  const std::int32_t count = flat_count(segment.count, tile.first);
  const int pieces = static_cast<int>(segment.piece_count);
  float* out = segment.out == nullptr ? nullptr : segment.out + tile.first;
  Phase phase;
  for (int i = 0; i < pieces; ++i) phase.add(args.dtype, advance(args.dtype, segment.pieces[i], tile.first));
  phase.add(DType::f32, out);
  WholeSum sum;
  std::int64_t non_finite = 0;
  const auto take = [&](const Quad& quad, const float* values) {
    if (out != nullptr) store_quad(DType::f32, out, quad, values);
    if (args.tile_figures != nullptr) non_finite += add_squares<4>(sum, values);
  };
  if (pieces == 1) {  // nobody else has any: only figures, or a cast
    const void* piece = advance(args.dtype, segment.pieces[0], tile.first);
    RawQuad raws[flat_quads];
    for_each_quad<flat_quads>(
        count, phase.value, [&](int k, const Quad& quad) { raws[k] = load_raw(args.dtype, piece, quad); },
        [&](int k, const Quad& quad) {
          float values[4];
          decode(args.dtype, raws[k], values);
          take(quad, values);
        },
        [] {});
  } else {
    // The quad after next could be asked for here as well; four pieces in flight are what it has.
    for_each_quad<1>(
        count, phase.value, [](int, const Quad&) {},
        [&](int, const Quad& quad) {
          float values[4];
          tree_quad(args.dtype, segment.pieces, pieces, tile.first, quad, values);
          take(quad, values);
        },
        [] {});
  }
  if (args.tile_figures != nullptr) write_figures(shared, sum, non_finite, args.tile_figures + blockIdx.x);
}

REGATTA_KERNEL(block_threads, 2) cast_kernel(Cast args) {
  const Tile tile = args.tiles[blockIdx.x];
  const CastSegment segment = args.segments[tile.segment];
  const std::int32_t count = flat_count(segment.count, tile.first);
  const void* from = advance(args.from, segment.from, tile.first);
  void* to = advance(args.to, segment.to, tile.first);
  Phase phase;
  phase.add(args.from, from);
  phase.add(args.to, to);
  RawQuad raws[flat_quads], sums[flat_quads];
  for_each_quad<flat_quads>(
      count, phase.value,
      [&](int k, const Quad& quad) {
        raws[k] = load_raw(args.from, from, quad);
        if (args.add) sums[k] = load_raw(DType::f32, to, quad);
      },
      [&](int k, const Quad& quad) {
        float values[4];
        decode(args.from, raws[k], values);
        if (args.add) {
          REGATTA_UNROLL
          for (int j = 0; j < 4; ++j) values[j] = add_rn(float_of(sums[k].word[j]), values[j]);
        }
        store_quad(args.to, to, quad, values);
      },
      [] {});
}

}  // namespace regatta::kernels::cuda
