// Reduction of gradients and casts, against the CPU table.

#include "kernels/cuda/tiles.h"
#include "tests/kernels/cuda/device_case.h"

namespace regatta::testing {
namespace {

using kernels::cpu_kernels;

TEST_F(CudaKernels, ReduceTreeOfAnyNumberOfPieces) {
  int shift = -1;
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    std::vector<std::vector<Array>> pieces;
    std::vector<Array> outs;
    std::vector<cuda::ReduceSegment> segments;
    std::vector<std::int64_t> counts;
    for (const int piece_count : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 33}) {
      const std::int64_t count = piece_count == 3 ? 20000 : static_cast<std::int64_t>(1 + random_() % 700);
      const auto place = [&] { return shift >= 0 ? shift : static_cast<int>(random_() % 5); };
      std::vector<const void*> pointers;
      pieces.emplace_back();
      for (int p = 0; p < piece_count; ++p) {
        Array& piece = pieces.back().emplace_back(dtype, count, place());
        piece.fill(random_, piece_count == 5 ? 120 : 4);
        if (piece_count == 7 && p == 2) piece.set(count / 2, std::numeric_limits<float>::infinity());
        if (piece_count == 7 && p == 4) piece.set(0, std::numeric_limits<float>::quiet_NaN());
        piece.upload(*machine_);
        pointers.push_back(piece.on_device());
      }
      outs.emplace_back(DType::f32, count, place());
      outs.back().upload(*machine_);
      float* out = static_cast<float*>(outs.back().on_device());
      if (piece_count == 8 && dtype == DType::f32) out = static_cast<float*>(pieces.back()[0].on_device());  // in place
      if (piece_count == 9) out = nullptr;  // figures only
      segments.push_back({count, to_machine(*machine_, pointers), piece_count, out});
      counts.push_back(count);
      shift = shift == 4 ? -1 : shift + 1;
    }
    const std::vector<cuda::Tile> tiles = cuda::flat_tiles(counts);
    auto* figures = static_cast<cuda::TileFigures*>(
        machine_->allocate(static_cast<std::int64_t>(tiles.size() * sizeof(cuda::TileFigures))));
    machine_->reduce_tree({to_machine(*machine_, segments), to_machine(*machine_, tiles),
                           static_cast<std::int64_t>(tiles.size()), dtype, figures});
    const std::vector<cuda::TileRange> ranges = cuda::blocks_of_segments(tiles, counts.size());
    std::vector<cuda::MergeItem> items;
    for (std::size_t i = 0; i < counts.size(); ++i) items.push_back({static_cast<std::int64_t>(i), 1});
    auto* results = to_machine(*machine_, std::vector<cuda::TileFigures>(counts.size()));
    machine_->merge_figures(to_machine(*machine_, items), static_cast<std::int64_t>(items.size()),
                            to_machine(*machine_, ranges), figures, results);
    const auto got = from_machine(*machine_, results, static_cast<std::int64_t>(counts.size()));
    for (std::size_t i = 0; i < counts.size(); ++i) {
      const auto piece_count = static_cast<int>(pieces[i].size());
      const std::string what = std::to_string(piece_count) + " pieces of " + std::to_string(counts[i]);
      Array expected = outs[i];
      if (segments[i].out == nullptr) expected = Array(DType::f32, counts[i]);
      std::vector<const void*> pointers;
      for (Array& piece : pieces[i]) pointers.push_back(piece.data());
      cuda::TileFigures want;
      cpu_kernels().reduce_tree(
          {pointers.data(), piece_count, dtype, counts[i], expected.floats(), &want.squares, &want.non_finite});
      EXPECT_TRUE(got[i].squares == want.squares) << what;
      EXPECT_EQ(got[i].non_finite, want.non_finite) << what;
      if (segments[i].out == outs[i].on_device()) {
        outs[i].expect(*machine_, expected, what);
      } else if (segments[i].out != nullptr) {
        Array in_place = pieces[i][0];
        for (std::int64_t k = 0; k < counts[i]; ++k) in_place.set(k, expected[k]);
        pieces[i][0].expect(*machine_, in_place, what);
      }
    }
    machine_->free_all();
  }
}

TEST_F(CudaKernels, CastsAndPlainAddition) {
  const std::int64_t counts[] = {1, 5, 130, 8192, 20003};
  int shift = -1;
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
    for (const int way : {0, 1, 2}) {  // to fp32, from fp32, added to fp32
      const DType from_type = way == 1 ? DType::f32 : dtype, to_type = way == 1 ? dtype : DType::f32;
      std::vector<Array> from, to;
      std::vector<cuda::CastSegment> segments;
      for (const std::int64_t count : counts) {
        from.emplace_back(from_type, count, shift >= 0 ? shift : static_cast<int>(random_() % 5));
        to.emplace_back(to_type, count, shift >= 0 ? shift : static_cast<int>(random_() % 5));
        shift = shift == 4 ? -1 : shift + 1;
        from.back().fill(random_, 30);
        to.back().fill(random_, 30);
      }
      // Every pattern of a NaN, a tie or a subnormal has a chance.
      for (std::int64_t i = 0; i < 20003; ++i) {
        const auto bits = static_cast<std::uint32_t>(random_());
        if (from_type == DType::f32) from[4].floats()[i] = std::bit_cast<float>(i % 2 ? bits : bits & 0xffff8000U);
      }
      for (int i = 0; i < 5; ++i) {
        from[i].upload(*machine_);
        to[i].upload(*machine_);
        segments.push_back({counts[i], from[i].on_device(), to[i].on_device()});
      }
      const std::vector<cuda::Tile> tiles = cuda::flat_tiles(counts);
      machine_->cast({to_machine(*machine_, segments), to_machine(*machine_, tiles),
                      static_cast<std::int64_t>(tiles.size()), from_type, to_type, way == 2});
      for (int i = 0; i < 5; ++i) {
        Array expected = to[i];
        if (way == 1) {
          cpu_kernels().from_f32(from[i].floats(), expected.data(), to_type, counts[i]);
        } else {
          cpu_kernels().accumulate(expected.floats(), from[i].data(), from_type, counts[i], way == 0);
        }
        to[i].expect(*machine_, expected, "cast " + std::to_string(way) + " of " + std::to_string(counts[i]));
      }
      machine_->free_all();
    }
}

}  // namespace
}  // namespace regatta::testing
