#pragma once
// From line sums to factors: merges parts, takes norms in fp64, counts lines, sums blocks; and the merging of the
// figures that blocks of all sweeps leave behind.

#include "kernels/cuda/block.cuh"

namespace regatta::kernels::cuda {

REGATTA_DEVICE ThreadSum merge_sources(const FinishItem& item, int statistic, std::int64_t line) {
  ThreadSum sum;
  for (int s = 0; s < item.source_count; ++s) {
    const LineSource source = item.sources[s];
    const LineSum* from = source.base + statistic * source.statistic_stride + line;
    for (std::int64_t part = 0; part < source.parts; ++part)
      merge_into(sum, from_line(from[part * source.part_stride]));
  }
  return sum;
}

/// Figures of lines, one per thread, added up by thread 0.
struct SharedLines {
  float smallest[block_warps], largest[block_warps];
  int zero[block_warps], clamped[block_warps], non_finite[block_warps];
};

REGATTA_DEVICE void write_lines(SharedLines& shared, const SweepHealth& mine, SweepHealth* to) {
  float smallest = mine.smallest_norm, largest = mine.largest_norm;
  int zero = static_cast<int>(mine.zero_lines), clamped = static_cast<int>(mine.clamped_lines),
      non_finite = static_cast<int>(mine.non_finite_lines);
  for (int mask = warp_lanes / 2; mask > 0; mask /= 2) {
    const float other_smallest = lane_xor(smallest, mask), other_largest = lane_xor(largest, mask);
    smallest = other_smallest < smallest ? other_smallest : smallest;
    largest = other_largest > largest ? other_largest : largest;
    zero += lane_xor(zero, mask);
    clamped += lane_xor(clamped, mask);
    non_finite += lane_xor(non_finite, mask);
  }
  const int thread = static_cast<int>(threadIdx.x), warp = thread / warp_lanes;
  if (thread % warp_lanes == 0) {
    shared.smallest[warp] = smallest;
    shared.largest[warp] = largest;
    shared.zero[warp] = zero;
    shared.clamped[warp] = clamped;
    shared.non_finite[warp] = non_finite;
  }
  block_sync();
  if (thread != 0) return;
  SweepHealth all;
  for (int w = 0; w < block_warps; ++w) {
    SweepHealth part;
    part.smallest_norm = shared.smallest[w];
    part.largest_norm = shared.largest[w];
    part.zero_lines = shared.zero[w];
    part.clamped_lines = shared.clamped[w];
    part.non_finite_lines = shared.non_finite[w];
    add_health(all, part);
  }
  *to = all;
}

REGATTA_KERNEL(block_threads, 2) finish_lines_kernel(FinishLines args) {
  REGATTA_SHARED(SharedLines, shared);
  const Tile tile = args.tiles[blockIdx.x];
  const FinishItem item = args.items[tile.segment];
  const RegScalars scalars = args.scalars[item.scalars];
  const std::int64_t line = tile.first + static_cast<int>(threadIdx.x);
  SweepHealth lines;
  if (line < item.count) {
    const ThreadSum squares = merge_sources(item, 0, line);
    ThreadSum sizes;
    if (item.merged != nullptr) item.merged[line] = to_line(squares);
    if (item.statistics > 1) {
      sizes = merge_sources(item, 1, line);
      if (item.merged != nullptr) item.merged[item.merged_stride + line] = to_line(sizes);
    }
    if (item.inverse != nullptr) {
      const double norm = item.norm == Norm::one   ? line_value(sizes)
                          : item.norm == Norm::two ? norm_two(squares)
                                                   : static_cast<double>(to_line(squares).largest);
      const float inverse = line_inverse(norm, scalars.eps);
      item.inverse[line] = inverse;
      if (item.term != nullptr) item.term[line] = line_term(line_value(squares), inverse);
      if (item.count_lines && scalars.skip == 0) count_norm(lines, norm, scalars.eps);
    }
  }
  if (args.tile_health != nullptr) write_lines(shared, lines, args.tile_health + blockIdx.x);
}

/// Sums of a block of threads, of which thread 0 gets the whole.
REGATTA_DEVICE ThreadSum merge_threads(SharedSums<block_warps>& shared, ThreadSum sum) {
  sum = merge_lanes(sum);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread % warp_lanes == 0) put_sum(shared, thread / warp_lanes, sum);
  block_sync();
  sum = get_sum(shared, 0);
  for (int w = 1; w < block_warps; ++w) merge_into(sum, get_sum(shared, w));
  return sum;
}

struct SumBlocks {
  const BlockItem* items = nullptr;
};
REGATTA_KERNEL(block_threads, 2) sum_blocks_kernel(SumBlocks args) {
  REGATTA_SHARED(SharedSums<block_warps>, shared);
  const BlockItem item = args.items[blockIdx.x];
  ThreadSum sum;
  for (std::int64_t i = static_cast<int>(threadIdx.x); i < item.count; i += block_threads)
    add_values<Term::magnitude, 1>(sum, item.terms + i);
  sum = merge_threads(shared, sum);
  if (threadIdx.x != 0) return;
  for (int k = 0; k < item.other_count; ++k) merge_into(sum, from_line(*item.others[k].base));
  LineSum line = to_line(sum);
  line.largest = 0;  // terms are not elements
  if (item.sum != nullptr) *item.sum = line;
  if (item.value != nullptr) *item.value = line_value(sum);
}

REGATTA_KERNEL(block_threads, 2) make_steps_kernel(MakeSteps args) {
  const Tile tile = args.tiles[blockIdx.x];
  const StepItem item = args.items[tile.segment];
  const RegScalars scalars = args.scalars[item.scalars];
  const std::int64_t line = tile.first + static_cast<int>(threadIdx.x);
  if (line >= item.count) return;
  const double scale = item.block_sum != nullptr ? measured_scale(scalars.lr_rho, *item.block_sum, item.numel)
                                                 : mul_rn(scalars.lr_rho, item.root);
  item.step[line] = line_step(item.inverse[line], scale);
}

struct CopyWords {
  const CopyItem* items = nullptr;
  const Tile* tiles = nullptr;
};
REGATTA_KERNEL(block_threads, 2) copy_words_kernel(CopyWords args) {
  const Tile tile = args.tiles[blockIdx.x];
  const CopyItem item = args.items[tile.segment];
  const std::uint32_t* from = static_cast<const std::uint32_t*>(item.from) + tile.first;
  std::uint32_t* to = static_cast<std::uint32_t*>(item.to) + tile.first;
  const std::int64_t count = item.words - tile.first < copy_tile ? item.words - tile.first : copy_tile;
  for (std::int64_t i = static_cast<int>(threadIdx.x); i < count; i += block_threads) to[i] = from[i];
}

/// Every result has one block; thread t adds tiles t, t + 256, ... of all ranges, and the threads' sums are added as a
/// binary tree: an order that depends on the tiles only.
template <class Figures>
struct MergeArgs {
  const MergeItem* items = nullptr;
  const TileRange* ranges = nullptr;
  const Figures* tiles = nullptr;
  Figures* results = nullptr;
};

REGATTA_DEVICE void add_figures(SweepHealth& sum, const SweepHealth& part) { add_health(sum, part); }
REGATTA_DEVICE void add_figures(TileFigures& sum, const TileFigures& part) {
  merge(sum.squares, part.squares);
  sum.non_finite += part.non_finite;
}
/// Trivial, so that it can lie in shared memory.
template <class Figures>
struct FigureBytes {
  alignas(8) unsigned char bytes[sizeof(Figures)];
  REGATTA_DEVICE Figures& get() { return *reinterpret_cast<Figures*>(bytes); }
};

template <class Figures>
REGATTA_KERNEL(block_threads, 2)
merge_figures_kernel(MergeArgs<Figures> args) {
  REGATTA_SHARED(FigureBytes<Figures>[block_threads], shared);
  const MergeItem item = args.items[blockIdx.x];
  const int thread = static_cast<int>(threadIdx.x);
  Figures sum;
  for (std::int64_t r = 0; r < item.range_count; ++r) {
    const TileRange range = args.ranges[item.first_range + r];
    for (std::int64_t tile = range.begin + thread; tile < range.end; tile += block_threads)
      add_figures(sum, args.tiles[tile]);
  }
  shared[thread].get() = sum;
  for (int half = block_threads / 2; half > 0; half /= 2) {
    block_sync();
    if (thread < half) add_figures(shared[thread].get(), shared[thread + half].get());
  }
  if (thread == 0) args.results[blockIdx.x] = shared[0].get();
}

}  // namespace regatta::kernels::cuda
