#pragma once
// REG over closed columns in one sweep. A cluster of blocks takes a strip of columns over all rows of the matrix and
// keeps its momentum, as stored, in shared memory until the columns' norms are known; the rows that it read last stay
// in registers. 20 bytes move per fp32 element.

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

  const auto tensors_of = [&](std::int32_t row) {
    return Tensors(types, segment, static_cast<std::int64_t>(row) * cols, true, true);
  };
  const auto index_of = [&](int j) { return neighbours ? 4 * my_lane + j : my_lane + row_lanes * j; };
  const std::int32_t batch_rows = strip_quads * rows_at_a_time;

  const auto sweep = [&](const auto& quad_of) {
    // Each quad is asked for as soon as the one before it in its registers is done with, the first weights before the
    // block waits for the others. Odd matrices and dtypes that only the launch knows leave no registers for that.
    constexpr bool ahead = Types::known && std::is_same_v<decltype(quad_of(0)), WholeQuad>;
    ThreadSum squares[4];
    RawQuad grads[strip_quads], momenta[strip_quads], kept[strip_quads], weights[strip_quads];
    const auto load = [&](int k, std::int32_t row) {
      const auto quad = quad_of(row);
      const Tensors tensors = tensors_of(row);
      grads[k] = load_raw(types.grad, tensors.grad, quad);
      momenta[k] = load_raw(types.momentum, tensors.momentum, quad);
    };
    const auto load_weights = [&](int k, std::int32_t row) {
      weights[k] = load_raw(DType::f32, tensors_of(row).weight, quad_of(row));
    };

    std::int32_t batch = row_begin, slot = thread;
    const auto load_batch = [&] {
      REGATTA_UNROLL
      for (int k = 0; k < strip_quads; ++k) load(k, batch + my_row + k * rows_at_a_time);
    };
    if constexpr (ahead) load_batch();
    for (; batch < row_end; batch += batch_rows) {
      if constexpr (!ahead) load_batch();
      float columns[4][strip_quads];
      REGATTA_UNROLL
      for (int k = 0; k < strip_quads; ++k) {
        const std::int32_t row = batch + my_row + k * rows_at_a_time;
        float values[4];
        update_momentum(types.grad, types.momentum, scalars, grads[k], momenta[k], quad_of(row),
                        tensors_of(row).momentum, values);
        if constexpr (ahead) load(k, row + batch_rows);
        kept[k] = encode(types.momentum, values);
        if (batch + batch_rows < row_end) {
          if (wide_slots) {
            held[slot] = uint4{kept[k].word[0], kept[k].word[1], kept[k].word[2], kept[k].word[3]};
          } else {
            reinterpret_cast<uint2*>(held)[slot] = uint2{kept[k].word[0], kept[k].word[1]};
          }
          slot += strip_threads;
        }
        REGATTA_UNROLL
        for (int j = 0; j < 4; ++j) columns[j][k] = values[j];
      }
      REGATTA_UNROLL
      for (int j = 0; j < 4; ++j) add_values<Term::square, strip_quads>(squares[j], columns[j]);
    }
    batch -= batch_rows;
    if constexpr (ahead) {
      REGATTA_UNROLL
      for (int k = 0; k < strip_quads; ++k)
        if (batch >= row_begin) load_weights(k, batch + my_row + k * rows_at_a_time);
    }

    REGATTA_UNROLL
    for (int j = 0; j < 4; ++j) squares[j] = merge_lanes<false>(squares[j], row_lanes);
    merge_columns<false>(sums, widest_strip, squares, index_of, lane < row_lanes);
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
    for (; batch >= row_begin; batch -= batch_rows) {
      slot -= strip_quads * strip_threads;
      REGATTA_UNROLL
      for (int k = 0; k < strip_quads; ++k) {
        const std::int32_t row = batch + my_row + k * rows_at_a_time;
        float values[4];
        decode(types.momentum, kept[k], values);
        const Tensors tensors = tensors_of(row);
        if constexpr (!ahead) load_weights(k, row);
        update_weights(types.param, scalars.decay, steps, values, weights[k], quad_of(row), tensors.weight,
                       tensors.param, health);
        if (batch == row_begin) continue;
        if constexpr (ahead) load_weights(k, row - batch_rows);
        if (wide_slots) {
          const uint4 v = held[slot + k * strip_threads];
          kept[k].word[0] = v.x, kept[k].word[1] = v.y, kept[k].word[2] = v.z, kept[k].word[3] = v.w;
        } else {
          const uint2 v = reinterpret_cast<const uint2*>(held)[slot + k * strip_threads];
          kept[k].word[0] = v.x, kept[k].word[1] = v.y;
        }
      }
      health.flush();
    }
    write_health(shared_health, health, args.common.tile_health + blockIdx.x, [&](SweepHealth& lines) {
      if (rank != 0 || scalars.skip != 0) return;
      for (int i = 0; first_col + i < last_col; ++i) count_norm(lines, norms[i], scalars.eps);
    });
  };
  if (neighbours) {
    const std::int32_t first = first_col + 4 * my_lane;
    sweep([&](std::int32_t row) { return WholeQuad{first, row < row_end && first < last_col}; });
  } else {
    sweep([&](std::int32_t row) {
      return make_quad(first_col, false, my_lane, row_lanes, 0, row < row_end ? last_col : 0);
    });
  }
  cluster_leave();
}

}  // namespace regatta::kernels::cuda
