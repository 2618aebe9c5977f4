#pragma once
// REG over closed columns in one sweep. A cluster of blocks takes a strip of columns over all rows of the matrix and
// keeps its momentum, as stored, in shared memory until the columns' norms are known. 20 bytes move per fp32 element.

#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/quads.cuh"

namespace regatta::kernels::cuda {

struct UpdateColumnsArgs {
  RegLaunch common;
  int strip = 0;
};

template <class Types>
REGATTA_KERNEL(strip_threads, 1)
update_columns_kernel(UpdateColumnsArgs args) {
  REGATTA_DYNAMIC_SHARED(held);
  REGATTA_SHARED(SharedSums<widest_strip>, sums);
  REGATTA_SHARED(double[widest_strip], norms);
  REGATTA_SHARED(float[widest_strip], shared_steps);
  REGATTA_SHARED(SharedHealth<strip_warps>, shared_health);
  const Types types(args.common.dtypes);
  const int cluster = cluster_size(), rank = cluster_rank();
  const Tile tile = args.common.tiles[static_cast<int>(blockIdx.x) / cluster];
  const RegSegment segment = args.common.segments[tile.segment];
  const RegScalars scalars = args.common.scalars[segment.scalars];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % warp_lanes;
  const auto rows = static_cast<std::int32_t>(segment.run.rows), cols = static_cast<std::int32_t>(segment.run.cols);
  const std::int32_t share = (rows + cluster - 1) / cluster, row_begin = rank * share;
  std::int32_t row_end = row_begin + share < rows ? row_begin + share : rows;
  if (scalars.skip != 0) row_end = row_begin;
  const int row_lanes = args.strip / 4, my_row = thread / row_lanes, my_lane = thread % row_lanes;
  const std::int32_t rows_at_a_time = strip_rows(args.strip);
  const auto first_col = static_cast<std::int32_t>(tile.first);
  const std::int32_t last_col = cols < first_col + args.strip ? cols : first_col + args.strip;
  const bool neighbours = cols % 4 == 0 && Tensors(types, segment, 0, true, true).phase == 0;
  const bool wide_slots = types.momentum == DType::f32;

  const auto quad_of = [&](std::int32_t row) {
    return make_quad(first_col, neighbours, my_lane, row_lanes, 0, row < row_end ? last_col : 0);
  };
  const auto tensors_of = [&](std::int32_t row) {
    return Tensors(types, segment, static_cast<std::int64_t>(row) * cols, true, true);
  };

  ThreadSum squares[4];
  std::int32_t slot = thread;
  for (std::int32_t batch = row_begin + my_row; batch - my_row < row_end; batch += strip_quads * rows_at_a_time) {
    float columns[4][strip_quads];
    RawQuad grads[strip_quads], momenta[strip_quads];
    REGATTA_UNROLL
    for (int k = 0; k < strip_quads; ++k) {
      const std::int32_t row = batch + k * rows_at_a_time;
      const Quad quad = quad_of(row);
      const Tensors tensors = tensors_of(row);
      grads[k] = load_raw(types.grad, tensors.grad, quad);
      momenta[k] = load_raw(types.momentum, tensors.momentum, quad);
    }
    REGATTA_UNROLL
    for (int k = 0; k < strip_quads; ++k) {
      const std::int32_t row = batch + k * rows_at_a_time;
      float values[4];
      update_momentum(types.grad, types.momentum, scalars, grads[k], momenta[k], quad_of(row), tensors_of(row).momentum,
                      values);
      if (row - my_row < row_end) {  // else there is no slot
        const RawQuad raw = encode(types.momentum, values);
        if (wide_slots) {
          held[slot] = uint4{raw.word[0], raw.word[1], raw.word[2], raw.word[3]};
        } else {
          reinterpret_cast<uint2*>(held)[slot] = uint2{raw.word[0], raw.word[1]};
        }
        slot += strip_threads;
      }
      REGATTA_UNROLL
      for (int j = 0; j < 4; ++j) columns[j][k] = values[j];
    }
    REGATTA_UNROLL
    for (int j = 0; j < 4; ++j) add_values<Term::square, strip_quads>(squares[j], columns[j]);
  }

  const auto index_of = [&](int j) { return neighbours ? 4 * my_lane + j : my_lane + row_lanes * j; };
  REGATTA_UNROLL
  for (int j = 0; j < 4; ++j) squares[j] = merge_lanes(squares[j], row_lanes);
  merge_columns(sums, widest_strip, squares, index_of, lane < row_lanes);
  cluster_sync();
  if (thread < args.strip) {
    ThreadSum sum;
    for (int r = 0; r < cluster; ++r) merge_into(sum, get_sum(*of_peer(&sums, r), thread));
    norms[thread] = norm_two(sum);
    shared_steps[thread] = line_step(line_inverse(norms[thread], scalars.eps), mul_rn(scalars.lr_rho, segment.root));
  }
  block_sync();

  float steps[4];
  REGATTA_UNROLL
  for (int j = 0; j < 4; ++j) steps[j] = shared_steps[index_of(j)];
  ThreadHealth health;
  slot = thread;
  for (std::int32_t batch = row_begin + my_row; batch - my_row < row_end; batch += strip_quads * rows_at_a_time) {
    RawQuad weights[strip_quads];
    REGATTA_UNROLL
    for (int k = 0; k < strip_quads; ++k) {
      const std::int32_t row = batch + k * rows_at_a_time;
      weights[k] = load_raw(DType::f32, tensors_of(row).weight, quad_of(row));
    }
    REGATTA_UNROLL
    for (int k = 0; k < strip_quads; ++k) {
      const std::int32_t row = batch + k * rows_at_a_time;
      if (row - my_row >= row_end) continue;
      RawQuad raw;
      if (wide_slots) {
        const uint4 v = held[slot];
        raw.word[0] = v.x, raw.word[1] = v.y, raw.word[2] = v.z, raw.word[3] = v.w;
      } else {
        const uint2 v = reinterpret_cast<const uint2*>(held)[slot];
        raw.word[0] = v.x, raw.word[1] = v.y, raw.word[2] = raw.word[3] = 0;
      }
      slot += strip_threads;
      float values[4];
      decode(types.momentum, raw, values);
      const Tensors tensors = tensors_of(row);
      update_weights(types.param, scalars.decay, steps, values, weights[k], quad_of(row), tensors.weight, tensors.param,
                     health);
    }
    health.flush();
  }
  SweepHealth lines;
  if (thread == 0 && rank == 0 && scalars.skip == 0)
    for (int i = 0; first_col + i < last_col; ++i) count_norm(lines, norms[i], scalars.eps);
  write_health(shared_health, health, lines, args.common.tile_health + blockIdx.x);
  cluster_sync();  // nobody's sums go before all have read them
}

}  // namespace regatta::kernels::cuda
