#pragma once
// The tiles of launches, made on the host once per plan: plain values to be copied to the device. Tiles of a segment
// stand together, in the order of the segments. Throws std::invalid_argument for shapes that no kernel takes.

#include <span>
#include <vector>

#include "kernels/cuda/cuda_kernels.h"

namespace regatta::kernels::cuda {

/// Launches of the one-sweep update of rows. `cluster` is 0 for update_long_rows().
struct RowTiles {
  int cluster = 1;
  std::vector<Tile> tiles;
};
/// Runs of whole rows; empty runs get no tile. One entry per cluster size that occurs.
std::vector<RowTiles> update_rows_tiles(std::span<const MatrixRun> runs, const DeviceLimits& limits);

struct ColumnTiles {
  int cluster = 1;
  int strip = 32;
  std::int64_t shared_bytes = 0;
  std::vector<Tile> tiles;
};
/// Whether update_columns() takes a run: a whole matrix whose strips fit a cluster's shared memory. Others take two
/// sweeps.
bool fits_update_columns(const MatrixRun& run, DType momentum, const DeviceLimits& limits);
/// Requires fits_update_columns() of each. One entry per way to launch.
std::vector<ColumnTiles> update_columns_tiles(std::span<const MatrixRun> runs, DType momentum,
                                              const DeviceLimits& limits);

struct ObserveTiles {
  std::vector<Tile> tiles;
  std::vector<std::int64_t> lines, parts;  ///< by run: RegSegment::lines and parts
  /// LineSums that RegSegment::partials of run `i` must hold.
  std::int64_t partials(std::size_t i, int statistics) const { return lines[i] * parts[i] * statistics; }
};
/// Lines are the rows that a run touches, or all columns of its matrix.
ObserveTiles observe_tiles(std::span<const MatrixRun> runs, Line line);

/// For apply(), adamw(), reduce_tree() and cast(): counts of elements.
std::vector<Tile> flat_tiles(std::span<const std::int64_t> counts);
/// For finish_lines() and make_steps(): counts of lines.
std::vector<Tile> line_tiles(std::span<const std::int64_t> counts);
/// For copy_words(): counts of words.
std::vector<Tile> word_tiles(std::span<const std::int64_t> counts);

/// The figures that the blocks of each segment write, for merge_health() and merge_figures(): ranges of blocks, counted
/// from `first_block`, `cluster` of them to a tile.
std::vector<TileRange> blocks_of_segments(std::span<const Tile> tiles, std::size_t segments, int cluster = 1,
                                          std::int64_t first_block = 0);

}  // namespace regatta::kernels::cuda
