#pragma once
// Statistics of lines: each block writes the sums of its part of some lines; finish.cuh merges the parts.

#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/update_rows.cuh"

namespace regatta::kernels::cuda {

struct ObserveKernelArgs {
  RegLaunch common;
  int earlier_count = 0;
};

/// The part of row `row` (counted from the first the run touches) that starts in column `col`, cut to the run.
struct RowPart {
  std::int64_t offset;  // of its first element, from the run's
  std::int32_t col;     // of that element
  std::int32_t count;

  REGATTA_DEVICE RowPart(const MatrixRun& run, std::int64_t row, std::int64_t col_begin, std::int64_t most) {
    const std::int64_t row_begin = (run.begin / run.cols + row) * run.cols;
    std::int64_t begin = row_begin + col_begin;
    std::int64_t end = begin + most < row_begin + run.cols ? begin + most : row_begin + run.cols;
    if (begin < run.begin) begin = run.begin;
    if (end > run.end) end = run.end;
    offset = begin - run.begin;
    col = static_cast<std::int32_t>(begin - row_begin);
    count = end > begin ? static_cast<std::int32_t>(end - begin) : 0;
  }
};

template <class Types, bool update, bool magnitudes>
REGATTA_KERNEL(block_threads, 2)
observe_rows_kernel(ObserveKernelArgs args) {
  REGATTA_SHARED(SharedSums<2 * block_warps>, sums);
  const Types types(args.common.dtypes);
  const Tile tile = args.common.tiles[blockIdx.x];
  const RegSegment segment = args.common.segments[tile.segment];
  const RegScalars scalars = args.common.scalars[segment.scalars];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / warp_lanes;
  const int warps = warps_per_row(segment.run.cols);
  const std::int32_t capacity = static_cast<std::int32_t>(warp_row) * warps;
  const std::int64_t row = tile.first + warp / warps;
  RowPart part(segment.run, row, static_cast<std::int64_t>(tile.part) * capacity, capacity);
  if (scalars.skip != 0 || row >= segment.lines) part.count = 0;
  const Tensors tensors(types, segment, part.offset, update, false);
  const RowChunks chunks(part.count, tensors.phase, capacity);
  const auto quad_of = [&](int k) { return chunks.quad(k * warps + warp % warps); };

  float values[row_quads][4];
  RawQuad grads[row_quads], momenta[row_quads];
  REGATTA_UNROLL
  for (int k = 0; k < row_quads; ++k) {
    const Quad quad = quad_of(k);
    if constexpr (update) grads[k] = load_raw(types.grad, tensors.grad, quad);
    momenta[k] = load_raw(types.momentum, tensors.momentum, quad);
  }
  REGATTA_UNROLL
  for (int k = 0; k < row_quads; ++k) {
    const Quad quad = quad_of(k);
    if constexpr (update) {
      update_momentum(types.grad, types.momentum, scalars, grads[k], momenta[k], quad, tensors.momentum, values[k]);
    } else {
      decode(types.momentum, momenta[k], values[k]);
      scale_quad(segment.passes, args.earlier_count, quad, static_cast<std::int32_t>(row), part.col + quad.first,
                 static_cast<std::int32_t>(segment.run.cols), values[k]);
    }
  }
  ThreadSum squares, sizes;
  add_values<Term::square, 4 * row_quads>(squares, values[0]);
  squares = merge_lanes(squares);
  if (thread % warp_lanes == 0) put_sum(sums, warp, squares);
  if constexpr (magnitudes) {
    add_values<Term::magnitude, 4 * row_quads>(sizes, values[0]);
    sizes = merge_lanes(sizes);
    if (thread % warp_lanes == 0) put_sum(sums, block_warps + warp, sizes);
  }
  block_sync();
  if (thread % (warps * warp_lanes) != 0 || row >= segment.lines) return;
  for (int s = 0; s < (magnitudes ? 2 : 1); ++s) {
    ThreadSum sum = get_sum(sums, s * block_warps + warp);
    for (int w = 1; w < warps; ++w) merge_into(sum, get_sum(sums, s * block_warps + warp + w));
    segment.partials[(s * segment.parts + tile.part) * segment.lines + row] = to_line(sum);
  }
}

template <class Types, bool update, bool magnitudes>
REGATTA_KERNEL(block_threads, 2)
observe_columns_kernel(ObserveKernelArgs args) {
  REGATTA_SHARED(SharedSums<observe_strip>, sums);
  constexpr int column_rows = magnitudes ? 2 : 4;  // that a warp has in flight; two sums per column need the registers
  const Types types(args.common.dtypes);
  const Tile tile = args.common.tiles[blockIdx.x];
  const RegSegment segment = args.common.segments[tile.segment];
  const RegScalars scalars = args.common.scalars[segment.scalars];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / warp_lanes, lane = thread % warp_lanes;
  const MatrixRun run = segment.run;
  const std::int64_t first_row = run.begin / run.cols;
  const auto touched = static_cast<std::int32_t>((run.end + run.cols - 1) / run.cols - first_row);
  const auto parts = static_cast<std::int32_t>(segment.parts);
  const std::int32_t rows_of_part = (touched + parts - 1) / parts, row_begin = tile.part * rows_of_part;
  std::int32_t row_end = row_begin + rows_of_part < touched ? row_begin + rows_of_part : touched;
  if (scalars.skip != 0) row_end = row_begin;
  const bool neighbours =
      run.cols % 4 == 0 && Tensors(types, segment, first_row * run.cols - run.begin, update, false).phase == 0;

  ThreadSum squares[4], sizes[4];
  for (std::int32_t batch = row_begin + warp; batch < row_end; batch += column_rows * block_warps) {
    float columns[4][column_rows];
    RawQuad grads[column_rows], momenta[column_rows];
    const auto quad_of = [&](std::int32_t row) {
      const std::int64_t at = (first_row + row) * run.cols;
      const std::int64_t begin = run.begin > at ? run.begin - at : 0;
      const std::int64_t end = row >= row_end ? 0 : run.end - at < run.cols ? run.end - at : run.cols;
      return make_quad(static_cast<std::int32_t>(tile.first), neighbours, lane, warp_lanes,
                       static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end));
    };
    const auto tensors_of = [&](std::int32_t row) {
      return Tensors(types, segment, (first_row + row) * run.cols - run.begin, update, false);
    };
    REGATTA_UNROLL
    for (int k = 0; k < column_rows; ++k) {
      const std::int32_t row = batch + k * block_warps;
      const Quad quad = quad_of(row);
      const Tensors tensors = tensors_of(row);
      if constexpr (update) grads[k] = load_raw(types.grad, tensors.grad, quad);
      momenta[k] = load_raw(types.momentum, tensors.momentum, quad);
    }
    REGATTA_UNROLL
    for (int k = 0; k < column_rows; ++k) {
      const std::int32_t row = batch + k * block_warps;
      const Quad quad = quad_of(row);
      float values[4];
      if constexpr (update) {
        update_momentum(types.grad, types.momentum, scalars, grads[k], momenta[k], quad, tensors_of(row).momentum,
                        values);
      } else {
        decode(types.momentum, momenta[k], values);
        scale_quad(segment.passes, args.earlier_count, quad, row, quad.first, static_cast<std::int32_t>(run.cols),
                   values);
      }
      REGATTA_UNROLL
      for (int j = 0; j < 4; ++j) columns[j][k] = values[j];
    }
    REGATTA_UNROLL
    for (int j = 0; j < 4; ++j) {
      add_values<Term::square, column_rows>(squares[j], columns[j]);
      if constexpr (magnitudes) add_values<Term::magnitude, column_rows>(sizes[j], columns[j]);
    }
  }

  const auto index_of = [&](int j) { return neighbours ? 4 * lane + j : lane + warp_lanes * j; };
  const auto write = [&](ThreadSum* mine, int statistic) {
    merge_columns<true>(sums, observe_strip, mine, index_of, true);
    const std::int64_t col = tile.first + thread;
    if (thread < observe_strip && col < run.cols)
      segment.partials[(statistic * segment.parts + tile.part) * segment.lines + col] = to_line(get_sum(sums, thread));
  };
  write(squares, 0);
  if constexpr (magnitudes) {
    block_sync();
    write(sizes, 1);
  }
}

}  // namespace regatta::kernels::cuda
