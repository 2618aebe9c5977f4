#include "kernels/cuda/tiles.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "kernels/cuda/layout.h"

namespace regatta::kernels::cuda {
namespace {

std::string text(const MatrixRun& run) {
  return "elements [" + std::to_string(run.begin) + ", " + std::to_string(run.end) + ") of a matrix of " +
         std::to_string(run.rows) + " x " + std::to_string(run.cols);
}

void check(const MatrixRun& run) {
  if (run.cols < 1 || run.rows < 0 || run.begin < 0 || run.end > run.rows * run.cols)
    throw std::invalid_argument(text(run) + "; expected a run within its matrix");
  if (std::max(run.rows, run.cols) > LineSum::max_count)
    throw std::invalid_argument(text(run) + "; expected lines of at most " + std::to_string(LineSum::max_count) +
                                " elements");
}

// Tiles of `size` of each count.
std::vector<Tile> tiles_of(std::span<const std::int64_t> counts, std::int64_t size) {
  std::vector<Tile> tiles;
  for (std::size_t i = 0; i < counts.size(); ++i)
    for (std::int64_t first = 0; first < counts[i]; first += size) tiles.push_back({static_cast<int>(i), 0, first});
  return tiles;
}

// The entry of `list` that `same` accepts, made if there is none.
template <class List, class Same, class Entry>
typename List::value_type& entry_of(List& list, const Same& same, Entry entry) {
  const auto found = std::find_if(list.begin(), list.end(), same);
  return found != list.end() ? *found : list.emplace_back(std::move(entry));
}

int cluster_of_row(std::int64_t cols, const DeviceLimits& limits) {
  for (int cluster = 1; cluster <= limits.largest_cluster; cluster *= 2)
    if (cols <= longest_row(cluster)) return cluster;
  return 0;
}

// How update_columns() takes a matrix: the widest strip, then the smallest cluster. Zero columns if it does not.
ColumnTiles way_of_columns(const MatrixRun& run, DType momentum, const DeviceLimits& limits) {
  for (int strip = widest_strip; strip >= narrowest_strip; strip /= 2)
    for (int cluster = 1; cluster <= limits.largest_cluster; cluster *= 2) {
      const std::int64_t bytes = strip_bytes(run.rows, cluster, strip, momentum);
      if (bytes + strip_static_bytes <= limits.shared_bytes) return {cluster, strip, bytes, {}};
    }
  return {0, 0, 0, {}};
}

}  // namespace

std::vector<RowTiles> update_rows_tiles(std::span<const MatrixRun> runs, const DeviceLimits& limits) {
  std::vector<RowTiles> launches;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const MatrixRun& run = runs[i];
    check(run);
    if (run.begin % run.cols != 0 || run.end % run.cols != 0)
      throw std::invalid_argument(text(run) + "; expected a run of whole rows");
    const int cluster = cluster_of_row(run.cols, limits);
    if (run.empty()) continue;
    RowTiles& launch = entry_of(
        launches, [&](const RowTiles& l) { return l.cluster == cluster; }, RowTiles{cluster, {}});
    const std::int64_t step = cluster == 1 ? rows_per_block(run.cols) : 1;
    for (std::int64_t row = 0; row < run.numel() / run.cols; row += step)
      launch.tiles.push_back({static_cast<int>(i), 0, row});
  }
  return launches;
}

bool fits_update_columns(const MatrixRun& run, DType momentum, const DeviceLimits& limits) {
  check(run);
  return !run.empty() && run.begin == 0 && run.end == run.rows * run.cols &&
         way_of_columns(run, momentum, limits).strip > 0;
}

std::vector<ColumnTiles> update_columns_tiles(std::span<const MatrixRun> runs, DType momentum,
                                              const DeviceLimits& limits) {
  std::vector<ColumnTiles> launches;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    if (!fits_update_columns(runs[i], momentum, limits))
      throw std::invalid_argument(text(runs[i]) + "; expected a whole matrix whose strips of columns fit a cluster");
    const ColumnTiles way = way_of_columns(runs[i], momentum, limits);
    ColumnTiles& launch = entry_of(
        launches, [&](const ColumnTiles& l) { return l.cluster == way.cluster && l.strip == way.strip; }, way);
    launch.shared_bytes = std::max(launch.shared_bytes, way.shared_bytes);
    for (std::int64_t col = 0; col < runs[i].cols; col += way.strip)
      launch.tiles.push_back({static_cast<int>(i), 0, col});
  }
  return launches;
}

ObserveTiles observe_tiles(std::span<const MatrixRun> runs, Line line) {
  ObserveTiles result;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const MatrixRun& run = runs[i];
    check(run);
    const std::int64_t rows = run.empty() ? 0 : run.touched_rows().size();
    if (line == Line::row) {
      const std::int64_t part = warp_row * warps_per_row(run.cols), parts = (run.cols + part - 1) / part;
      for (std::int64_t row = 0; row < rows; row += rows_per_block(run.cols))
        for (std::int64_t p = 0; p < parts; ++p)
          result.tiles.push_back({static_cast<int>(i), static_cast<int>(p), row});
      result.lines.push_back(rows);
      result.parts.push_back(parts);
    } else {
      const std::int64_t parts =
          std::clamp<std::int64_t>((rows + observe_rows - 1) / observe_rows, 1, most_observe_parts);
      for (std::int64_t p = 0; p < parts; ++p)
        for (std::int64_t col = 0; col < run.cols; col += observe_strip)
          result.tiles.push_back({static_cast<int>(i), static_cast<int>(p), col});
      result.lines.push_back(run.cols);
      result.parts.push_back(parts);
    }
  }
  return result;
}

std::vector<Tile> flat_tiles(std::span<const std::int64_t> counts) { return tiles_of(counts, flat_tile); }
std::vector<Tile> line_tiles(std::span<const std::int64_t> counts) { return tiles_of(counts, line_tile); }
std::vector<Tile> word_tiles(std::span<const std::int64_t> counts) { return tiles_of(counts, copy_tile); }

std::vector<TileRange> blocks_of_segments(std::span<const Tile> tiles, std::size_t segments, int cluster,
                                          std::int64_t first_block) {
  std::vector<TileRange> ranges(segments, {first_block, first_block});
  for (std::size_t t = 0; t < tiles.size(); ++t) {
    TileRange& range = ranges[tiles[t].segment];
    const std::int64_t block = first_block + static_cast<std::int64_t>(t) * cluster;
    if (range.begin == range.end) range.begin = block;
    range.end = block + cluster;
  }
  return ranges;
}

}  // namespace regatta::kernels::cuda
