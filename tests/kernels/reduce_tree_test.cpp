#include <gtest/gtest.h>

#include <limits>

#include "kernels/cpu/blocking.h"
#include "tests/kernels/kernel_case.h"

namespace regatta::testing {
namespace {

struct Figures {
  WholeSum squares;
  std::int64_t non_finite = 0;
  bool operator==(const Figures&) const = default;
};

std::vector<Elements> random_pieces(Random& random, DType dtype, int pieces, std::int64_t count) {
  std::vector<Elements> result;
  for (int k = 0; k < pieces; ++k) {
    result.emplace_back(dtype, count, k % 5);
    result.back().fill(random, 1, 6);
  }
  return result;
}

Figures reduce(const kernels::KernelTable& table, const std::vector<Elements>& pieces, DType dtype, float* out) {
  std::vector<const void*> pointers;
  for (const Elements& piece : pieces) pointers.push_back(piece.data());
  Figures figures;
  table.reduce_tree({pointers.data(), static_cast<int>(pieces.size()), dtype, pieces[0].count(), out, &figures.squares,
                     &figures.non_finite});
  return figures;
}

TEST(ReduceTree, MatchesTheTreeBitForBit) {
  Random random(7);
  for (const kernels::KernelTable* table : kernels::all_cpu_kernels())
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
      for (const int pieces : {1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 64})
        for (const std::int64_t count : {1, 15, 511, 512, 1300}) {
          const std::vector<Elements> input = random_pieces(random, dtype, pieces, count);
          Elements out(DType::f32, count, 2), expected(DType::f32, count, 2);
          EXPECT_EQ(reduce(*table, input, dtype, out.floats()),
                    reduce(scalar_kernels, input, dtype, expected.floats()));
          EXPECT_SAME_BITS(out, expected);
        }
}

TEST(ReduceTree, ManyPieces) {
  Random random(8);
  const std::vector<Elements> input = random_pieces(random, DType::f32, 1024, 40);
  Elements out(DType::f32, 40), expected(DType::f32, 40);
  EXPECT_EQ(reduce(kernels::cpu_kernels(), input, DType::f32, out.floats()),
            reduce(scalar_kernels, input, DType::f32, expected.floats()));
  EXPECT_SAME_BITS(out, expected);
}

TEST(ReduceTree, IntoOneOfThePieces) {
  Random random(9);
  for (const kernels::KernelTable* table : kernels::all_cpu_kernels())
    for (const int pieces : {1, 2, 3, 5})
      for (int target = 0; target < pieces; ++target) {
        std::vector<Elements> input = random_pieces(random, DType::f32, pieces, 1200);
        Elements expected(DType::f32, 1200, target % 5);
        const Figures figures = reduce(scalar_kernels, input, DType::f32, expected.floats());
        EXPECT_EQ(reduce(*table, input, DType::f32, input[target].floats()), figures);
        EXPECT_SAME_BITS(input[target], expected);
      }
}

TEST(ReduceTree, CountsNonFiniteAndLeavesThemOutOfTheSum) {
  Random random(10);
  const float infinity = std::numeric_limits<float>::infinity();
  for (const kernels::KernelTable* table : kernels::all_cpu_kernels()) {
    std::vector<Elements> input = random_pieces(random, DType::f32, 2, 1100);
    input[0].set(3, infinity);
    input[0].set(600, infinity);
    input[1].set(600, -infinity);  // NaN
    input[1].set(1099, std::numeric_limits<float>::quiet_NaN());
    const Figures figures = reduce(*table, input, DType::f32, nullptr);
    EXPECT_EQ(figures.non_finite, 3);
    EXPECT_EQ(figures, reduce(scalar_kernels, input, DType::f32, nullptr));
    EXPECT_GT(kernels::value(figures.squares), 0);
  }
}

TEST(ReduceTree, SquaresDoNotDependOnTheSplit) {
  Random random(11);
  Elements all(DType::f32, 5000);
  all.fill(random, 1, 40);
  for (const kernels::KernelTable* table : kernels::all_cpu_kernels()) {
    const void* whole = all.data();
    WholeSum expected, sum;
    table->reduce_tree({&whole, 1, DType::f32, 5000, nullptr, &expected, nullptr});
    for (std::int64_t begin = 0; begin < 5000;) {
      const std::int64_t count = std::min<std::int64_t>(5000 - begin, 1 + random() % 900);
      const void* part = all.at(begin);
      WholeSum partial;
      table->reduce_tree({&part, 1, DType::f32, count, nullptr, &partial, nullptr});
      kernels::merge(sum, partial);
      begin += count;
    }
    EXPECT_EQ(sum, expected);
  }
}

// Tiles of very different sizes, some all zero, some with nothing finite; figures are added to those of earlier calls.
TEST(ReduceTree, FiguresOfTilesAndCallsAddUp) {
  Random random(12);
  constexpr std::int64_t tile = kernels::reduce_tile;
  for (const std::int64_t count : {tile - 1, tile, tile + 1, 7 * tile + 5}) {
    Elements values(DType::f32, count, 1), small(DType::f32, count);
    small.fill(random, 1e-12, 1);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t t = i / tile;
      const float x = std::ldexp(1 + static_cast<float>(random() % 1000) / 1001, static_cast<int>(t * 37 % 250) - 130);
      values.set(i, t % 4 == 2 ? 0 : t % 4 == 3 ? std::numeric_limits<float>::quiet_NaN() : random() % 2 ? x : -x);
      if (i == count - 1) values.set(i, -std::numeric_limits<float>::infinity());
    }
    const void* const pieces[] = {values.data(), small.data()};
    Figures expected;
    std::int64_t broken = 0;
    for (int call = 0; call < 2; ++call)
      for (std::int64_t i = 0; i < count; ++i) {
        const float sum = call == 0 ? small[i] : values[i] + small[i];
        if (std::isfinite(sum)) {
          kernels::add(expected.squares, static_cast<double>(sum) * sum);
        } else {
          ++broken;
        }
      }
    for (const kernels::KernelTable* table : kernels::all_cpu_kernels()) {
      Figures got;
      got.non_finite = 3;
      std::int64_t only_count = 0;
      WholeSum only_squares;
      table->reduce_tree({pieces + 1, 1, DType::f32, count, nullptr, &got.squares, &got.non_finite});
      table->reduce_tree({pieces, 2, DType::f32, count, nullptr, &got.squares, &got.non_finite});
      EXPECT_EQ(got.squares, expected.squares) << table->isa << ' ' << count;
      EXPECT_EQ(got.non_finite, 3 + broken) << table->isa << ' ' << count;
      table->reduce_tree({pieces, 2, DType::f32, count, nullptr, nullptr, &only_count});
      EXPECT_EQ(only_count, broken) << table->isa;
      table->reduce_tree({pieces + 1, 1, DType::f32, count, nullptr, &only_squares, nullptr});
      table->reduce_tree({pieces, 2, DType::f32, count, nullptr, &only_squares, nullptr});
      EXPECT_EQ(only_squares, expected.squares) << table->isa;
    }
  }
}

}  // namespace
}  // namespace regatta::testing
