// Figures that several ranges of blocks leave, copies of many tiles, sums of as many pieces as there may be, and steps
// that are skipped.

#include <limits>

#include "kernels/cuda/layout.h"
#include "kernels/cuda/tiles.h"
#include "tests/kernels/cuda/device_case.h"

namespace regatta::testing {
namespace {

using kernels::SweepHealth;

// Results of no, one and several ranges, of fewer and of more tiles than a block has threads. Small whole numbers, so
// that no order of the sums shows.
TEST_F(CudaKernels, FiguresOfSeveralRanges) {
  constexpr int tiles = 5 * cuda::block_threads + 7;
  std::vector<SweepHealth> health(tiles);
  std::vector<cuda::TileFigures> figures(tiles);
  for (int t = 0; t < tiles; ++t) {
    const auto any = [&] { return static_cast<std::int64_t>(random_() % 1000); };
    health[t] = {static_cast<double>(any()),
                 static_cast<double>(any()),
                 0.5F + static_cast<float>(any()),
                 static_cast<float>(any()),
                 any(),
                 any(),
                 any()};
    if (t % 5 == 0) health[t].smallest_norm = std::numeric_limits<float>::infinity();
    for (int k = 0; k < 3; ++k)
      kernels::add(figures[t].squares, std::ldexp(1.0 + static_cast<double>(any()), static_cast<int>(t * 7 % 90) - 40));
    figures[t].non_finite = any();
  }
  const std::vector<cuda::TileRange> ranges = {
      {0, 1}, {3, 3}, {1, cuda::block_threads + 1}, {300, 301}, {400, tiles}, {310, 320}, {330, 330}};
  const std::vector<cuda::MergeItem> items = {{0, 1}, {1, 1}, {2, 3}, {5, 2}, {4, 1}, {6, 0}, {0, 7}};
  const auto count = static_cast<std::int64_t>(items.size());
  std::vector<SweepHealth> junk(items.size());  // results are overwritten
  for (SweepHealth& result : junk) result.zero_lines = 1000;
  auto* healths = to_machine(*machine_, junk);
  auto* sums = to_machine(*machine_, std::vector<cuda::TileFigures>(items.size(), {{}, 1000}));
  const auto* device_items = to_machine(*machine_, items);
  const auto* device_ranges = to_machine(*machine_, ranges);
  machine_->merge_health(device_items, count, device_ranges, to_machine(*machine_, health), healths);
  machine_->merge_figures(device_items, count, device_ranges, to_machine(*machine_, figures), sums);
  const auto got = from_machine(*machine_, healths, count);
  const auto got_figures = from_machine(*machine_, sums, count);
  for (std::size_t i = 0; i < items.size(); ++i) {
    SweepHealth expected;
    cuda::TileFigures expected_figures;
    for (std::int64_t r = items[i].first_range; r < items[i].first_range + items[i].range_count; ++r)
      for (std::int64_t t = ranges[r].begin; t < ranges[r].end; ++t) {
        expected.add(health[t]);
        kernels::merge(expected_figures.squares, figures[t].squares);
        expected_figures.non_finite += figures[t].non_finite;
      }
    EXPECT_EQ(got[i].update_squares, expected.update_squares) << i;
    EXPECT_EQ(got[i].weight_squares, expected.weight_squares) << i;
    expect_same_lines(got[i], expected, std::to_string(i));
    EXPECT_TRUE(got_figures[i].squares == expected_figures.squares) << i;
    EXPECT_EQ(got_figures[i].non_finite, expected_figures.non_finite) << i;
  }
}

TEST_F(CudaKernels, CopiesOfManyTiles) {
  std::vector<Array> from, to;
  std::vector<cuda::CopyItem> items;
  std::vector<std::int64_t> words;
  for (const std::int64_t count :
       {std::int64_t{1}, cuda::copy_tile - 1, cuda::copy_tile, cuda::copy_tile + 1, 3 * cuda::copy_tile + 300}) {
    from.emplace_back(DType::f32, count, static_cast<int>(random_() % 5));
    to.emplace_back(DType::f32, count, static_cast<int>(random_() % 5));
    from.back().fill(random_, 20);
    words.push_back(count);
  }
  for (std::size_t i = 0; i < words.size(); ++i) {
    from[i].upload(*machine_);
    to[i].upload(*machine_);
    items.push_back({from[i].on_device(), to[i].on_device(), words[i]});
  }
  const std::vector<cuda::Tile> tiles = cuda::word_tiles(words);
  machine_->copy_words(to_machine(*machine_, items), to_machine(*machine_, tiles),
                       static_cast<std::int64_t>(tiles.size()));
  for (std::size_t i = 0; i < words.size(); ++i) {
    Array expected = to[i];
    for (std::int64_t k = 0; k < words[i]; ++k) expected.set(k, from[i][k]);
    to[i].expect(*machine_, expected, "copy of " + std::to_string(words[i]));
  }
}

TEST_F(CudaKernels, AsManyPiecesAsThereMayBe) {
  for (const int piece_count : {511, 512, cuda::most_pieces - 1, cuda::most_pieces}) {
    constexpr std::int64_t count = 9;
    std::vector<Array> pieces;
    std::vector<const void*> there, here;
    for (int p = 0; p < piece_count; ++p) {
      pieces.emplace_back(DType::f32, count, p % 4);
      pieces.back().fill(random_, 12);
    }
    for (Array& piece : pieces) {
      piece.upload(*machine_);
      there.push_back(piece.on_device());
      here.push_back(piece.data());
    }
    Array out(DType::f32, count);
    out.upload(*machine_);
    const std::vector<cuda::Tile> tiles = cuda::flat_tiles(std::vector<std::int64_t>{count});
    auto* figures = to_machine(*machine_, std::vector<cuda::TileFigures>(1));
    machine_->reduce_tree(
        {to_machine(*machine_, std::vector<cuda::ReduceSegment>{{count, to_machine(*machine_, there), piece_count,
                                                                 static_cast<float*>(out.on_device())}}),
         to_machine(*machine_, tiles), 1, DType::f32, figures});
    Array expected = out;
    cuda::TileFigures want;
    scalar_reduce_tree(
        {here.data(), piece_count, DType::f32, count, expected.floats(), &want.squares, &want.non_finite});
    out.expect(*machine_, expected, std::to_string(piece_count) + " pieces");
    EXPECT_TRUE(from_machine(*machine_, figures, 1)[0].squares == want.squares) << piece_count;
    machine_->free_all();
  }
}

// A step that all ranks skip leaves the momentum as it was, in the sweep of open lines too, and counts nothing.
TEST_F(CudaKernels, SkippedObservationsLeaveEverything) {
  for (const Line line : {Line::row, Line::column})
    for (const bool magnitudes : {false, true}) {
      std::vector<cuda::RegScalars> scalars = two_groups();
      scalars[0].skip = 1;
      std::vector<RegRun> runs;
      std::vector<MatrixRun> shapes = {whole(40, 70), {30, 2100, 2000, 60001}, whole(3, 4097)};
      for (const MatrixRun& shape : shapes) runs.emplace_back(random_, shape, cuda::Dtypes{}, -1);
      const cuda::ObserveTiles tiles = cuda::observe_tiles(shapes, line);
      std::vector<cuda::RegSegment> segments;
      std::vector<cuda::FinishItem> items;
      for (std::size_t i = 0; i < runs.size(); ++i) {
        cuda::RegSegment segment = runs[i].upload(*machine_, 0);
        segment.lines = tiles.lines[i];
        segment.parts = tiles.parts[i];
        segment.partials = static_cast<LineSum*>(machine_->allocate(tiles.partials(i, 2) * sizeof(LineSum)));
        segments.push_back(segment);
        cuda::FinishItem item;
        item.count = tiles.lines[i];
        item.sources =
            to_machine(*machine_, std::vector<cuda::LineSource>{{segment.partials, segment.parts, segment.lines, 0}});
        item.source_count = 1;
        item.inverse = static_cast<float*>(machine_->allocate(item.count * 4));
        item.count_lines = true;
        items.push_back(item);
      }
      const auto* device_scalars = to_machine(*machine_, scalars);
      machine_->observe({{to_machine(*machine_, segments),
                          to_machine(*machine_, tiles.tiles),
                          static_cast<std::int64_t>(tiles.tiles.size()),
                          device_scalars,
                          {},
                          nullptr},
                         line,
                         0,
                         magnitudes});
      for (RegRun& run : runs) run.expect(*machine_, RegRun(run), text(run.run));
      const std::vector<cuda::Tile> finish_tiles = cuda::line_tiles(tiles.lines);
      auto* blocks = to_machine(*machine_, std::vector<SweepHealth>(finish_tiles.size()));
      machine_->finish_lines({to_machine(*machine_, items), to_machine(*machine_, finish_tiles),
                              static_cast<std::int64_t>(finish_tiles.size()), device_scalars, blocks});
      for (const SweepHealth& health : from_machine(*machine_, blocks, static_cast<std::int64_t>(finish_tiles.size())))
        expect_same_lines(health, SweepHealth{}, "skipped");
      machine_->free_all();
    }
}

}  // namespace
}  // namespace regatta::testing
