#pragma once
// REG over closed rows in one sweep. A row belongs to 1 to 8 warps of a block, or to a cluster of blocks; each thread
// keeps 16 of its momenta in registers until the row's norm is known. 20 bytes move per fp32 element.

#include "kernels/cuda/quads.cuh"

namespace regatta::kernels::cuda {

/// The elements [begin, end) of a row that a group of warps with `capacity` places takes, as chunks of 128. They count
/// from where the row's pointers point.
struct RowChunks {
  std::int32_t base = 0;
  std::int32_t begin, end;
  bool neighbours;

  REGATTA_DEVICE RowChunks(std::int32_t row_end, int phase, std::int32_t capacity)
      : begin(0), end(row_end), neighbours(phase >= 0 && row_end + phase <= capacity) {
    if (neighbours) base = -phase;
  }
  REGATTA_DEVICE Quad quad(std::int32_t chunk) const {
    return make_quad(base + chunk * (4 * warp_lanes), neighbours, static_cast<int>(threadIdx.x) % warp_lanes,
                     warp_lanes, begin, end);
  }
  /// The same where begin, base and end % 4 are zero.
  REGATTA_DEVICE WholeQuad whole_quad(std::int32_t chunk) const {
    const std::int32_t first = 4 * (chunk * warp_lanes + static_cast<int>(threadIdx.x) % warp_lanes);
    return {first, first < end};
  }
};

template <class Types>
REGATTA_KERNEL(block_threads, Types::known ? 3 : 2)
update_rows_kernel(RegLaunch args) {
  REGATTA_SHARED(SharedSums<block_warps>, sums);
  REGATTA_SHARED(SharedSums<1>, block_sum);
  REGATTA_SHARED(double[block_warps], norms);
  REGATTA_SHARED(SharedHealth<block_warps>, shared_health);
  const Types types(args.dtypes);
  const int cluster = cluster_size(), rank = cluster_rank();
  const Tile tile = args.tiles[static_cast<int>(blockIdx.x) / cluster];
  const RegSegment segment = args.segments[tile.segment];
  const RegScalars scalars = args.scalars[segment.scalars];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / warp_lanes;
  const std::int64_t cols = segment.run.cols, numel = segment.run.end - segment.run.begin;
  const int warps = cluster > 1 ? block_warps : warps_per_row(cols);
  const int first_warp = warp / warps * warps;
  const std::int64_t begin = (tile.first + warp / warps) * cols;
  const bool there = begin < numel && scalars.skip == 0;
  const Tensors tensors(types, segment, begin, true, true);
  const RowChunks chunks(there ? static_cast<std::int32_t>(cols) : 0, tensors.phase,
                         static_cast<std::int32_t>(warp_row) * warps * cluster);
  // A warp's chunks are neighbours, at constant distances; warps take turns among the blocks, for rows that fill them
  // in part.
  const int first_chunk = ((warp - first_warp) * cluster + rank) * row_quads;

  const auto sweep = [&](const auto& quad_of) {
    // Odd lines have no registers left for that.
    constexpr bool early = std::is_same_v<decltype(quad_of(0)), WholeQuad>;
    float values[row_quads][4];
    RawQuad weights[row_quads];
    {
      RawQuad grads[row_quads], momenta[row_quads];
      REGATTA_UNROLL
      for (int k = 0; k < row_quads; ++k) {
        const auto quad = quad_of(k);
        grads[k] = load_raw(types.grad, tensors.grad, quad);
        momenta[k] = load_raw(types.momentum, tensors.momentum, quad);
      }
      REGATTA_UNROLL
      for (int k = 0; k < row_quads; ++k)
        update_momentum(types.grad, types.momentum, scalars, grads[k], momenta[k], quad_of(k), tensors.momentum,
                        values[k]);
    }
    // Asked for before the sum, so that memory has work while the block waits for itself.
    const auto load_weights = [&] {
      REGATTA_UNROLL
      for (int k = 0; k < row_quads; ++k) weights[k] = load_raw(DType::f32, tensors.weight, quad_of(k));
    };
    if constexpr (early) load_weights();
    ThreadSum sum;
    add_values<Term::square, 4 * row_quads>(sum, values[0]);
    sum = merge_lanes<false>(sum);
    if (thread % warp_lanes == 0) put_sum(sums, warp, sum);
    block_sync();
    sum = get_sum(sums, first_warp);
    for (int w = 1; w < warps; ++w) merge_into(sum, get_sum(sums, first_warp + w));
    if (cluster > 1) {
      if (thread == 0) put_sum(block_sum, 0, sum);
      cluster_sync();
      sum = ThreadSum();
      for (int r = 0; r < cluster; ++r) merge_into(sum, get_sum(*of_peer(&block_sum, r), 0));
    }

    const double norm = norm_two(sum);
    const float step = line_step(line_inverse(norm, scalars.eps), mul_rn(scalars.lr_rho, segment.root));
    const float steps[4] = {step, step, step, step};
    if constexpr (!early) load_weights();
    ThreadHealth health;
    REGATTA_UNROLL
    for (int k = 0; k < row_quads; ++k)
      update_weights(types.param, scalars.decay, steps, values[k], weights[k], quad_of(k), tensors.weight,
                     tensors.param, health);

    if (thread % (warps * warp_lanes) == 0) norms[warp] = norm;
    write_health(shared_health, health, args.tile_health + blockIdx.x, [&](SweepHealth& lines) {
      if (rank != 0 || scalars.skip != 0) return;
      for (int w = 0; w < block_warps; w += warps)
        if ((tile.first + w / warps) * cols < numel) count_norm(lines, norms[w], scalars.eps);
    });
  };
  if (tensors.phase == 0 && cols % 4 == 0) {  // of one row, then of all rows of the run
    sweep([&](int k) { return chunks.whole_quad(first_chunk + k); });
  } else {
    sweep([&](int k) { return chunks.quad(first_chunk + k); });
  }
  if (cluster > 1) cluster_leave();
}

/// Rows that fit no cluster: the block sweeps its row twice, and finds most of the momentum in the second-level cache.
template <class Types>
REGATTA_KERNEL(block_threads, 2)
update_long_rows_kernel(RegLaunch args) {
  REGATTA_SHARED(SharedSums<block_warps>, sums);
  REGATTA_SHARED(SharedHealth<block_warps>, shared_health);
  const Types types(args.dtypes);
  const Tile tile = args.tiles[blockIdx.x];
  const RegSegment segment = args.segments[tile.segment];
  const RegScalars scalars = args.scalars[segment.scalars];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / warp_lanes;
  const std::int64_t cols = segment.run.cols;
  const Tensors tensors(types, segment, tile.first * cols, true, true);
  const RowChunks chunks(scalars.skip == 0 ? static_cast<std::int32_t>(cols) : 0, tensors.phase,
                         static_cast<std::int32_t>(cols + 3));
  const std::int32_t count = (chunks.end - chunks.base + 4 * warp_lanes - 1) / (4 * warp_lanes);

  ThreadSum sum;
  for (std::int32_t chunk = warp; chunk < count; chunk += row_quads * block_warps) {
    RawQuad grads[row_quads], momenta[row_quads];
    float values[row_quads][4];
    REGATTA_UNROLL
    for (int k = 0; k < row_quads; ++k) {
      const Quad quad = chunks.quad(chunk + k * block_warps);
      grads[k] = load_raw(types.grad, tensors.grad, quad);
      momenta[k] = load_raw(types.momentum, tensors.momentum, quad);
    }
    REGATTA_UNROLL
    for (int k = 0; k < row_quads; ++k)
      update_momentum(types.grad, types.momentum, scalars, grads[k], momenta[k], chunks.quad(chunk + k * block_warps),
                      tensors.momentum, values[k]);
    add_values<Term::square, 4 * row_quads>(sum, values[0]);
  }
  sum = merge_lanes<false>(sum);
  if (thread % warp_lanes == 0) put_sum(sums, warp, sum);
  block_sync();
  sum = get_sum(sums, 0);
  for (int w = 1; w < block_warps; ++w) merge_into(sum, get_sum(sums, w));

  const double norm = norm_two(sum);
  const float step = line_step(line_inverse(norm, scalars.eps), mul_rn(scalars.lr_rho, segment.root));
  const float steps[4] = {step, step, step, step};
  ThreadHealth health;
  for (std::int32_t chunk = warp; chunk < count; chunk += row_quads * block_warps) {
    RawQuad momenta[row_quads], weights[row_quads];
    REGATTA_UNROLL
    for (int k = 0; k < row_quads; ++k) {
      // A thread reads again what it wrote itself.
      const Quad quad = chunks.quad(chunk + k * block_warps);
      momenta[k] = load_raw(types.momentum, tensors.momentum, quad);
      weights[k] = load_raw(DType::f32, tensors.weight, quad);
    }
    REGATTA_UNROLL
    for (int k = 0; k < row_quads; ++k) {
      float values[4];
      decode(types.momentum, momenta[k], values);
      update_weights(types.param, scalars.decay, steps, values, weights[k], chunks.quad(chunk + k * block_warps),
                     tensors.weight, tensors.param, health);
    }
    health.flush();
  }
  write_health(shared_health, health, args.tile_health + blockIdx.x, [&](SweepHealth& lines) {
    if (scalars.skip == 0) count_norm(lines, norm, scalars.eps);
  });
}

}  // namespace regatta::kernels::cuda
