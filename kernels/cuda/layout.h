#pragma once
// How the kernels divide their work: what the makers of tiles and the kernels must agree on. Plain C++.

#include <cstdint>

#include "kernels/exact_sum.h"
#include "sharding/dtype.h"

namespace regatta::kernels::cuda {

inline constexpr int warp_lanes = 32;
inline constexpr int block_threads = 256;
inline constexpr int block_warps = block_threads / warp_lanes;

/// Elements of a tile of a sweep that takes them one by one, lines of a tile that finishes them, words of one that
/// copies.
inline constexpr std::int64_t flat_tile = 8192;
inline constexpr std::int64_t line_tile = block_threads;
inline constexpr std::int64_t copy_tile = 16 * block_threads;

/// Quads of a row that a thread keeps, and the elements that a warp then has.
inline constexpr int row_quads = 4;
inline constexpr std::int64_t warp_row = row_quads * 4 * warp_lanes;
/// Warps of a block that share a row, and rows that a block takes.
REGATTA_HOST_DEVICE constexpr int warps_per_row(std::int64_t cols) {
  return cols <= warp_row ? 1 : cols <= 2 * warp_row ? 2 : cols <= 4 * warp_row ? 4 : block_warps;
}
REGATTA_HOST_DEVICE constexpr int rows_per_block(std::int64_t cols) { return block_warps / warps_per_row(cols); }
/// The longest row of a cluster.
constexpr std::int64_t longest_row(int cluster) { return warp_row * block_warps * cluster; }

/// Columns that a block of observe() takes.
inline constexpr int observe_strip = 4 * warp_lanes;
/// Parts of a column's rows: this many rows each, but no more parts than this.
inline constexpr std::int64_t observe_rows = 256, most_observe_parts = 64;

/// The one-sweep update of columns: threads of a block, columns of a strip, quads that a thread has in flight.
inline constexpr int strip_threads = 512;
inline constexpr int strip_warps = strip_threads / warp_lanes;
inline constexpr int widest_strip = 32, narrowest_strip = 16;
inline constexpr int strip_quads = 4;
/// Rows of a strip that a block takes at a time.
REGATTA_HOST_DEVICE constexpr std::int32_t strip_rows(int strip) { return 4 * strip_threads / strip; }
/// Shared memory of a block that holds 1 / `cluster` of the rows of a strip, the last of which (up to strip_quads of
/// each thread) stay in registers.
constexpr std::int64_t strip_bytes(std::int64_t rows, int cluster, int strip, DType momentum) {
  const std::int64_t share = (rows + cluster - 1) / cluster,
                     quads = (share + strip_rows(strip) - 1) / strip_rows(strip);
  return quads == 0 ? 0 : (quads - 1) / strip_quads * strip_quads * strip_threads * 4 * size_of(momentum);
}
/// What the kernel needs besides.
inline constexpr std::int64_t strip_static_bytes = 2048;

}  // namespace regatta::kernels::cuda
