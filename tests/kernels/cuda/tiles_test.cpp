// Every element, line and part has exactly one tile. Needs no CUDA.

#include "kernels/cuda/tiles.h"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <stdexcept>
#include <tuple>

#include "kernels/cuda/layout.h"

namespace regatta::testing {
namespace {

namespace cuda = kernels::cuda;

const cuda::DeviceLimits with_clusters{90, 8, 232448, 132}, without{80, 1, 166912, 108};

MatrixRun whole(std::int64_t rows, std::int64_t cols) { return {rows, cols, 0, rows * cols}; }

TEST(CudaTiles, FlatTilesCoverEachCountOnce) {
  const std::vector<std::int64_t> counts = {0, 1, 8191, 8192, 8193, 0, 100000};
  std::vector<std::int64_t> seen(counts.size());
  for (const cuda::Tile& tile : cuda::flat_tiles(counts)) {
    EXPECT_EQ(tile.first, seen[tile.segment]);
    seen[tile.segment] += std::min(cuda::flat_tile, counts[tile.segment] - tile.first);
  }
  EXPECT_EQ(seen, counts);
  EXPECT_EQ(cuda::line_tiles(std::vector<std::int64_t>{257}).size(), 2U);
  EXPECT_EQ(cuda::word_tiles(std::vector<std::int64_t>{4097, 4096}).size(), 3U);
}

TEST(CudaTiles, RowsOfAllWidthsOnce) {
  std::vector<MatrixRun> runs;
  for (const std::int64_t cols : {1, 512, 513, 1024, 1025, 2048, 2049, 4096, 4097, 8192, 16384, 16385, 32768, 32769})
    runs.push_back(whole(19, cols));
  runs.push_back({100, 7, 70, 70});
  runs.push_back({100, 7, 70, 140});
  for (const cuda::DeviceLimits& limits : {with_clusters, without}) {
    std::vector<std::set<std::int64_t>> rows(runs.size());
    std::set<int> clusters;
    for (const cuda::RowTiles& launch : cuda::update_rows_tiles(runs, limits)) {
      EXPECT_TRUE(clusters.insert(launch.cluster).second);
      EXPECT_LE(launch.cluster, limits.largest_cluster);
      for (const cuda::Tile& tile : launch.tiles) {
        const MatrixRun& run = runs[tile.segment];
        if (launch.cluster > 0) {
          EXPECT_LE(run.cols, cuda::longest_row(launch.cluster));
        } else {
          EXPECT_GT(run.cols, cuda::longest_row(limits.largest_cluster));
        }
        const std::int64_t count = launch.cluster == 1 ? cuda::rows_per_block(run.cols) : 1;
        for (std::int64_t row = tile.first; row < std::min(tile.first + count, run.numel() / run.cols); ++row)
          EXPECT_TRUE(rows[tile.segment].insert(row).second);
      }
    }
    for (std::size_t i = 0; i < runs.size(); ++i)
      EXPECT_EQ(static_cast<std::int64_t>(rows[i].size()), runs[i].numel() / runs[i].cols) << i;
  }
}

TEST(CudaTiles, EveryPartOfEveryLineIsWrittenOnce) {
  std::mt19937 random(5);
  std::vector<MatrixRun> runs = {whole(1, 1), whole(11008, 4096), {9, 50, 75, 76}, {3, 5, 7, 7}, whole(3, 50000)};
  for (int i = 0; i < 40; ++i) {
    const std::int64_t rows = 1 + random() % 900, cols = 1 + random() % 9000;
    const std::int64_t a = random() % (rows * cols + 1), b = random() % (rows * cols + 1);
    runs.push_back({rows, cols, std::min(a, b), std::max(a, b)});
  }
  for (const Line line : {Line::row, Line::column}) {
    const cuda::ObserveTiles tiles = cuda::observe_tiles(runs, line);
    std::vector<std::set<std::pair<int, std::int64_t>>> written(runs.size());
    for (const cuda::Tile& tile : tiles.tiles) {
      const std::int64_t count =
          line == Line::row ? cuda::rows_per_block(runs[tile.segment].cols) : cuda::observe_strip;
      for (std::int64_t l = tile.first; l < std::min(tile.first + count, tiles.lines[tile.segment]); ++l)
        EXPECT_TRUE(written[tile.segment].insert({tile.part, l}).second);
    }
    for (std::size_t i = 0; i < runs.size(); ++i) {
      EXPECT_EQ(static_cast<std::int64_t>(written[i].size()), tiles.partials(i, 1));
      if (line == Line::row && runs[i].empty()) continue;
      EXPECT_EQ(tiles.lines[i], line == Line::row ? runs[i].touched_rows().size() : runs[i].cols);
      EXPECT_LE(tiles.parts[i], std::max<std::int64_t>(cuda::most_observe_parts, runs[i].cols / 4096 + 1));
    }
  }
}

TEST(CudaTiles, StripsOfColumnsFitTheirMemory) {
  // The tall matrices of decoders take one sweep where there are clusters.
  EXPECT_TRUE(cuda::fits_update_columns(whole(11008, 4096), DType::f32, with_clusters));
  EXPECT_TRUE(cuda::fits_update_columns(whole(14336, 4096), DType::f32, with_clusters));
  EXPECT_TRUE(cuda::fits_update_columns(whole(28672, 8192), DType::f32, with_clusters));
  EXPECT_TRUE(cuda::fits_update_columns(whole(50000, 8192), DType::bf16, with_clusters));
  EXPECT_FALSE(cuda::fits_update_columns(whole(151936, 4096), DType::f32, with_clusters));
  EXPECT_FALSE(cuda::fits_update_columns(whole(11008, 4096), DType::f32, without));
  EXPECT_FALSE(cuda::fits_update_columns({100, 10, 10, 1000}, DType::f32, with_clusters));
  // 128 bytes of each row at a time.
  const std::vector<MatrixRun> tall = {whole(16384, 4096)};
  EXPECT_EQ(cuda::update_columns_tiles(tall, DType::f32, with_clusters)[0].strip, 32);
  const std::vector<MatrixRun> runs = {whole(11008, 100), whole(28672, 33), whole(100, 32)};
  std::vector<std::int64_t> columns(runs.size());
  for (const cuda::ColumnTiles& launch : cuda::update_columns_tiles(runs, DType::f32, with_clusters)) {
    EXPECT_LE(launch.shared_bytes + cuda::strip_static_bytes, with_clusters.shared_bytes);
    for (const cuda::Tile& tile : launch.tiles) {
      EXPECT_EQ(tile.first, columns[tile.segment]);
      columns[tile.segment] += std::min<std::int64_t>(launch.strip, runs[tile.segment].cols - tile.first);
      EXPECT_LE(cuda::strip_bytes(runs[tile.segment].rows, launch.cluster, launch.strip, DType::f32),
                launch.shared_bytes);
    }
  }
  EXPECT_EQ(columns, (std::vector<std::int64_t>{100, 33, 32}));
}

TEST(CudaTiles, BlocksOfSegments) {
  const std::vector<std::int64_t> counts = {20000, 0, 8192, 1};
  const std::vector<cuda::Tile> tiles = cuda::flat_tiles(counts);
  const std::vector<cuda::TileRange> ranges = cuda::blocks_of_segments(tiles, 4, 2, 100);
  const std::vector<std::pair<std::int64_t, std::int64_t>> expected = {{100, 106}, {100, 100}, {106, 108}, {108, 110}};
  for (int i = 0; i < 4; ++i) EXPECT_EQ(std::pair(ranges[i].begin, ranges[i].end), expected[i]) << i;
}

TEST(CudaTiles, WrongRunsAreNamed) {
  const std::vector<MatrixRun> partial = {{9, 50, 75, 100}}, outside = {{9, 50, 0, 451}}, huge = {whole(1, 1 << 24)},
                               tall = {whole(151936, 4096)};
  EXPECT_THROW(cuda::update_rows_tiles(partial, with_clusters), std::invalid_argument);
  EXPECT_THROW(cuda::observe_tiles(outside, Line::row), std::invalid_argument);
  EXPECT_THROW(cuda::observe_tiles(huge, Line::column), std::invalid_argument);
  try {
    cuda::update_columns_tiles(tall, DType::f32, with_clusters);
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("151936 x 4096"), std::string::npos);
  }
}

}  // namespace
}  // namespace regatta::testing
