// Lines of more than one block, strip or call: sums that start at one size and go on at another, and figures that are
// added to what is there.

#include <gtest/gtest.h>

#include <limits>

#include "kernels/cpu/blocking.h"
#include "tests/kernels/reg_case.h"

namespace regatta::testing {
namespace {

using kernels::block_numel;
using kernels::strip_columns;

// Every stretch of `rows` x `cols` elements is zero, or has an exponent of its own, anywhere in a float's range; now
// and then only one element of it has.
void scale_stretches(Random& random, Elements& values, const MatrixRun& run, std::int64_t rows, std::int64_t cols) {
  const std::int64_t across = (run.cols + cols - 1) / cols;
  std::vector<int> exponents(static_cast<std::size_t>((run.rows + rows - 1) / rows * across));
  for (int& exponent : exponents)
    exponent = random() % 4 == 0 ? std::numeric_limits<int>::min() : static_cast<int>(random() % 250) - 140;
  for (std::int64_t i = 0; i < run.numel(); ++i) {
    const std::int64_t row = (run.begin + i) / run.cols, col = (run.begin + i) % run.cols;
    const int exponent = exponents[row / rows * across + col / cols];
    const bool last = col % cols == cols - 1 || col == run.cols - 1;
    const bool alone = row % 3 == 1 && !last;
    const float x = std::ldexp(1 + static_cast<float>(random() % 1000) / 1001, exponent);
    values.set(i, exponent == std::numeric_limits<int>::min() || alone ? 0 : random() % 2 ? x : -x);
  }
}

RegCase stretched(Random& random, const MatrixRun& run, std::int64_t rows, std::int64_t cols,
                  DType momentum = DType::f32) {
  RegCase data(random, run, DType::f32, momentum, DType::f32);
  scale_stretches(random, data.momentum, run, rows, cols);
  for (std::int64_t i = 0; i < run.numel(); ++i) data.grad.set(i, data.momentum[i] * 0.5F);
  return data;
}

const std::int64_t lengths[] = {block_numel - 1, block_numel, block_numel + 1, 2 * block_numel, 4 * block_numel + 35};

TEST(RegBlocks, RowsWhoseSizeChangesFromBlockToBlock) {
  Random random(41);
  for (const std::int64_t cols : lengths)
    for (const DType momentum : {DType::f32, DType::bf16}) {
      RegCase start = stretched(random, whole(30, cols), 1, block_numel, momentum);
      start.momentum.set(4 * cols + cols - 1, std::numeric_limits<float>::infinity());
      start.momentum.set(9 * cols, std::numeric_limits<float>::quiet_NaN());
      RegCase expected = start;
      kernels::SweepHealth expected_health;
      scalar_update_rows({expected.tensors(), 0.02, 1e-12, &expected_health});
      for (const kernels::KernelTable* table : kernels::all_cpu_kernels()) {
        RegCase result = start;
        kernels::SweepHealth health;
        table->reg_update_rows({result.tensors(), 0.02, 1e-12, &health});
        EXPECT_SAME_BITS(result.momentum, expected.momentum) << table->isa;
        for (std::int64_t i = 0; i < start.run.numel(); ++i) {
          if (std::isnan(expected.weight[i])) {
            ASSERT_TRUE(std::isnan(result.weight[i])) << table->isa << ' ' << i / cols << ' ' << i % cols;
          } else {
            ASSERT_EQ(result.weight[i], expected.weight[i]) << table->isa << ' ' << i / cols << ' ' << i % cols;
          }
        }
        expect_same_counts(health, expected_health);
      }
    }
}

// Twice on the same sums, with other values the second time: partial sums of a line come from several runs.
void check_observe_twice(Random& random, const RegCase& first, const RegCase& second, Line line) {
  const std::int64_t rows = first.run.touched_rows().size(), lines = line == Line::row ? rows : first.run.cols;
  RegCase expected[2] = {first, second};
  std::vector<LineSum> squares(lines), magnitudes(lines);
  for (RegCase& data : expected) scalar_observe({data.tensors(), nullptr, 0, line, squares.data(), magnitudes.data()});
  for (const kernels::KernelTable* table : kernels::all_cpu_kernels()) {
    RegCase result[2] = {first, second};
    std::vector<LineSum> got_squares(lines), got_magnitudes(lines);
    for (RegCase& data : result)
      table->reg_observe({data.tensors(), nullptr, 0, line, got_squares.data(), got_magnitudes.data()});
    for (int k = 0; k < 2; ++k) EXPECT_SAME_BITS(result[k].momentum, expected[k].momentum);
    for (std::int64_t i = 0; i < lines; ++i) {
      ASSERT_EQ(got_squares[i], squares[i]) << table->isa << " line " << i << " of " << lines;
      ASSERT_EQ(got_magnitudes[i], magnitudes[i]) << table->isa << " line " << i << " of " << lines;
    }
    // Magnitudes alone, and a factor of each row.
    std::vector<float> factors(rows);
    for (float& factor : factors) factor = std::ldexp(1.0F, static_cast<int>(random() % 200) - 100);
    const LineFactors earlier{Line::row, factors.data()};
    std::vector<LineSum> alone(lines), expected_alone(lines);
    for (int k = 0; k < 2; ++k) {
      scalar_observe({expected[k].tensors(), &earlier, 1, line, nullptr, expected_alone.data()});
      table->reg_observe({result[k].tensors(), &earlier, 1, line, nullptr, alone.data()});
    }
    for (std::int64_t i = 0; i < lines; ++i) ASSERT_EQ(alone[i], expected_alone[i]) << table->isa << " line " << i;
  }
}

TEST(RegBlocks, SumsOfRowsOverBlocksAndCalls) {
  Random random(42);
  for (const std::int64_t cols : lengths) {
    const MatrixRun run{12, cols, cols / 2, 11 * cols + 3};
    check_observe_twice(random, stretched(random, run, 1, block_numel), stretched(random, run, 1, block_numel),
                        Line::row);
  }
}

// Columns on both sides of a strip's edge, whose sizes change from some rows to the next.
TEST(RegBlocks, SumsOfColumnsOverStripsAndCalls) {
  Random random(43);
  for (const std::int64_t cols : {strip_columns - 1, strip_columns, strip_columns + 1, 2 * strip_columns + 21})
    for (const std::int64_t rows : {3, 19}) {
      const MatrixRun run{rows, cols, cols - 7, rows * cols - 5};
      check_observe_twice(random, stretched(random, run, 2, 3), stretched(random, run, 5, 40), Line::column);
    }
  for (const std::int64_t rows : {1, 7, 8, 9, 33}) {
    const MatrixRun run = whole(rows, 21);
    for (int round = 0; round < 20; ++round)
      check_observe_twice(random, stretched(random, run, 1 + round % 4, 5), stretched(random, run, 1, 7), Line::column);
  }
}

// Magnitudes can lie half way between two units of the last bin: such ties go to the even one, in every table.
TEST(RegBlocks, TiesOfMagnitudesGoToEven) {
  Random random(45);
  for (const kernels::KernelTable* table : kernels::all_cpu_kernels())
    for (const Line line : {Line::row, Line::column})
      for (const int bin : {-1, 0, 1}) {
        constexpr std::int64_t count = 67;
        const std::int64_t rows = line == Line::row ? 1 : count, cols = line == Line::row ? count : 1;
        RegCase data(random, whole(rows, cols), DType::f32, DType::f32, DType::f32);
        std::int64_t units = 0;  // of 2^(40 (bin - 1))
        for (std::int64_t i = 0; i < count; ++i) {
          const std::int64_t whole_part = (i * 37) % 1000;
          data.momentum.set(i, std::ldexp(static_cast<float>(2 * whole_part + 1), 40 * (bin - 1) - 1));
          units += whole_part + whole_part % 2;
        }
        data.momentum.set(count - 1, std::ldexp(1.5F, 40 * bin));
        const std::int64_t last = ((count - 1) * 37) % 1000;
        units -= last + last % 2;
        const std::vector<float> ones(count, 1.0F);
        const LineFactors earlier{Line::row, ones.data()};
        LineSum sum;
        table->reg_observe({data.tensors(), &earlier, 1, line, nullptr, &sum});
        EXPECT_EQ(sum.bin, bin) << table->isa;
        EXPECT_EQ(sum.hi, 2) << table->isa;  // 1.5, which is a tie as well
        EXPECT_EQ(sum.lo, units - (std::int64_t{1} << 39)) << table->isa;
      }
}

// Kernels add to the figures; over several blocks they are the same bits in every table.
TEST(RegBlocks, FiguresAreAddedAndEqualOverTables) {
  Random random(44);
  const std::int64_t cols = 2 * block_numel + 77;
  const RegCase start(random, whole(3, cols), DType::f32, DType::f32, DType::bf16);
  std::vector<float> steps(cols, 0.01F);
  kernels::SweepHealth update_first, apply_first;
  for (const kernels::KernelTable* table : kernels::all_cpu_kernels()) {
    kernels::SweepHealth once, twice;
    twice.update_squares = 1e9;
    twice.weight_squares = 2e9;
    twice.zero_lines = 5;
    twice.clamped_lines = 6;
    twice.non_finite_lines = 7;
    twice.smallest_norm = 1e-9F;
    twice.largest_norm = 1e9F;
    for (kernels::SweepHealth* health : {&once, &twice}) {
      RegCase result = start;
      table->reg_update_rows({result.tensors(), 0.02, 1e6, health});
    }
    EXPECT_EQ(once.clamped_lines, 3);
    EXPECT_NEAR(twice.update_squares, 1e9 + once.update_squares, 1e-6);
    EXPECT_NEAR(twice.weight_squares, 2e9 + once.weight_squares, 1e-6);
    EXPECT_EQ(twice.zero_lines, 5);
    EXPECT_EQ(twice.clamped_lines, 9);
    EXPECT_EQ(twice.non_finite_lines, 7);
    EXPECT_EQ(twice.smallest_norm, 1e-9F);
    EXPECT_EQ(twice.largest_norm, 1e9F);

    kernels::SweepHealth applied, more{1e9, 2e9};
    for (kernels::SweepHealth* health : {&applied, &more}) {
      RegCase result = start;
      const LineFactors last{Line::column, steps.data()};
      table->reg_apply({result.tensors(), &last, 1, health});
    }
    EXPECT_NEAR(more.update_squares, 1e9 + applied.update_squares, 1e-6);
    EXPECT_NEAR(more.weight_squares, 2e9 + applied.weight_squares, 1e-6);
    if (table == kernels::all_cpu_kernels().front()) {
      update_first = once;
      apply_first = applied;
    }
    EXPECT_EQ(once.update_squares, update_first.update_squares) << table->isa;
    EXPECT_EQ(once.weight_squares, update_first.weight_squares) << table->isa;
    EXPECT_EQ(applied.update_squares, apply_first.update_squares) << table->isa;
    EXPECT_EQ(applied.weight_squares, apply_first.weight_squares) << table->isa;
  }
  RegCase result = start;
  kernels::SweepHealth expected;
  const LineFactors last{Line::column, steps.data()};
  scalar_apply({result.tensors(), &last, 1, &expected});
  EXPECT_NEAR(apply_first.update_squares, expected.update_squares, 2e-6 * expected.update_squares);
  EXPECT_NEAR(apply_first.weight_squares, expected.weight_squares, 2e-6 * expected.weight_squares);
}

}  // namespace
}  // namespace regatta::testing
