#include <gtest/gtest.h>

#include <limits>

#include "tests/kernels/reg_case.h"

namespace regatta::testing {
namespace {

const MatrixRun shapes[] = {whole(1, 1),      whole(1, 700),           whole(40, 1),    whole(9, 16),
                            whole(5, 3000),   whole(37, 131),          {9, 50, 75, 76}, {9, 50, 3, 21},
                            {9, 50, 33, 401}, {30, 2100, 2000, 60001}, {3, 5, 7, 7}};

TEST(Reg, UpdateRowsMatchesBitForBit) {
  Random random(21);
  for (const MatrixRun& shape : shapes) {
    if (shape.begin % shape.cols != 0 || shape.end % shape.cols != 0) continue;
    for (const DType grad : {DType::f32, DType::bf16, DType::f16})
      for (const DType momentum : {DType::f32, DType::bf16})
        for (const DType param : {DType::f32, DType::bf16, DType::f16}) {
          const RegCase start(random, shape, grad, momentum, param);
          RegCase expected = start;
          kernels::SweepHealth expected_health;
          scalar_update_rows({expected.tensors(), 0.02, 1e-12, &expected_health});
          for (const kernels::KernelTable* table : kernels::all_cpu_kernels()) {
            RegCase result = start;
            kernels::SweepHealth health;
            table->reg_update_rows({result.tensors(), 0.02, 1e-12, &health});
            expect_same(result, expected);
            expect_same_counts(health, expected_health);
            EXPECT_NEAR(health.update_squares, expected_health.update_squares, 2e-6 * expected_health.update_squares);
            EXPECT_NEAR(health.weight_squares, expected_health.weight_squares, 2e-6 * expected_health.weight_squares);
          }
        }
  }
}

// Zero rows, rows far below eps, subnormal momentum, and rows 2^40 apart, so that no neighbour's bin is the right
// guess.
TEST(Reg, UpdateRowsOverHugeRangesAndZeros) {
  Random random(22);
  RegCase start(random, whole(24, 1500), DType::f32, DType::f32, DType::f32, 30);
  const double scales[] = {1, 0, 0x1p60, 0x1p-60, 0x1p-130, 0x1p-20, 1e-14, 0x1p-141};
  for (std::int64_t i = 0; i < start.run.numel(); ++i) {
    const double scale = scales[i / 1500 % 8];
    start.grad.set(i, static_cast<float>(start.grad[i] * scale));
    start.momentum.set(i, static_cast<float>(start.momentum[i] * scale));
  }
  RegCase expected = start;
  kernels::SweepHealth expected_health;
  scalar_update_rows({expected.tensors(), 0.02, 1e-12, &expected_health});
  EXPECT_GT(expected_health.zero_lines, 0);
  for (const kernels::KernelTable* table : kernels::all_cpu_kernels()) {
    RegCase result = start;
    kernels::SweepHealth health;
    table->reg_update_rows({result.tensors(), 0.02, 1e-12, &health});
    expect_same(result, expected);
    expect_same_counts(health, expected_health);
  }
}

TEST(Reg, NonFiniteRowShowsAndLeavesOthersAlone) {
  Random random(23);
  RegCase start(random, whole(6, 1100), DType::f32, DType::f32, DType::f32);
  start.momentum.set(1100 + 1050, std::numeric_limits<float>::infinity());
  start.momentum.set(3 * 1100 + 2, std::numeric_limits<float>::quiet_NaN());
  for (const kernels::KernelTable* table : kernels::all_cpu_kernels()) {
    RegCase result = start;
    kernels::SweepHealth health;
    table->reg_update_rows({result.tensors(), 0.02, 1e-12, &health});
    EXPECT_EQ(health.non_finite_lines, 2);
    for (std::int64_t row = 0; row < 6; ++row)
      for (std::int64_t col = 0; col < 1100; ++col)
        ASSERT_EQ(std::isnan(result.weight[row * 1100 + col]), row == 1 || row == 3) << table->isa << ' ' << row;
  }
}

// One observe call per piece of the run; the pieces' sums merge to the scalar sums of the whole.
void observe_in_pieces(const kernels::KernelTable& table, RegCase& data, const std::vector<LineFactors>& earlier,
                       Line line, std::vector<LineSum>& squares, std::vector<LineSum>& magnitudes, std::int64_t piece) {
  const std::int64_t first_row = data.run.begin / data.run.cols;
  for (std::int64_t begin = data.run.begin; begin < data.run.end; begin += piece) {
    const std::int64_t row = begin / data.run.cols - first_row;
    std::vector<LineFactors> moved = earlier;
    for (LineFactors& factors : moved)
      if (factors.line == Line::row) factors.factor += row;
    const std::int64_t offset = line == Line::row ? row : 0;
    table.reg_observe({data.tensors(begin, std::min(begin + piece, data.run.end)), moved.data(),
                       static_cast<int>(moved.size()), line, squares.data() + offset,
                       magnitudes.empty() ? nullptr : magnitudes.data() + offset});
  }
}

void check_observe(Random& random, const RegCase& start, bool with_magnitudes) {
  const std::int64_t rows = start.run.empty() ? 0 : start.run.touched_rows().size(), cols = start.run.cols;
  std::vector<float> row_factors(rows), col_factors(cols);
  for (float& factor : row_factors) factor = std::exp2(static_cast<float>(random() % 1000) * 0.01F - 5);
  for (float& factor : col_factors) factor = std::exp2(static_cast<float>(random() % 1000) * 0.01F - 5);
  const LineFactors by_row{Line::row, row_factors.data()}, by_col{Line::column, col_factors.data()};
  const std::vector<std::vector<LineFactors>> earlier_passes = {{}, {by_row}, {by_col}, {by_col, by_row}};
  for (const std::vector<LineFactors>& earlier : earlier_passes)
    for (const Line line : {Line::row, Line::column}) {
      const std::int64_t lines = line == Line::row ? rows : cols;
      RegCase expected = start;
      std::vector<LineSum> squares(lines), magnitudes(with_magnitudes ? lines : 0);
      if (!start.run.empty())
        scalar_observe({expected.tensors(), earlier.data(), static_cast<int>(earlier.size()), line, squares.data(),
                        with_magnitudes ? magnitudes.data() : nullptr});
      for (const kernels::KernelTable* table : kernels::all_cpu_kernels())
        for (const std::int64_t piece : {start.run.numel(), std::int64_t{77}, std::int64_t{20000}}) {
          if (piece == 0 || (piece == 77 && start.run.numel() > 10000)) continue;
          RegCase result = start;
          std::vector<LineSum> got_squares(lines), got_magnitudes(magnitudes.size());
          observe_in_pieces(*table, result, earlier, line, got_squares, got_magnitudes, piece);
          EXPECT_SAME_BITS(result.momentum, expected.momentum);
          EXPECT_TRUE(got_squares == squares) << table->isa << " piece " << piece << " passes " << earlier.size();
          EXPECT_TRUE(got_magnitudes == magnitudes) << table->isa << " piece " << piece;
        }
    }
}

TEST(Reg, ObserveMatchesBitForBit) {
  Random random(24);
  for (const MatrixRun& shape : shapes)
    for (const DType grad : {DType::f32, DType::bf16, DType::f16})
      for (const DType momentum : {DType::f32, DType::bf16})
        check_observe(random, RegCase(random, shape, grad, momentum, DType::f32), (shape.end + shape.cols) % 2 == 0);
}

TEST(Reg, ObserveOverHugeRangesAndNonFinite) {
  Random random(25);
  for (const double spread : {40.0, 120.0})
    check_observe(random, RegCase(random, {40, 300, 111, 11311}, DType::f32, DType::f32, DType::f32, spread), true);
  RegCase broken(random, whole(20, 64), DType::f32, DType::f32, DType::f32, 40);
  broken.momentum.set(700, std::numeric_limits<float>::infinity());
  broken.momentum.set(3, std::numeric_limits<float>::quiet_NaN());
  check_observe(random, broken, true);
}

TEST(Reg, ApplyMatchesBitForBit) {
  Random random(26);
  for (const MatrixRun& shape : shapes) {
    if (shape.empty()) continue;
    std::vector<float> row_factors(shape.touched_rows().size()), col_factors(shape.cols);
    for (float& factor : row_factors) factor = static_cast<float>(random() % 1000) * 1e-3F;
    for (float& factor : col_factors) factor = static_cast<float>(random() % 1000) * 1e-3F;
    const LineFactors by_row{Line::row, row_factors.data()}, by_col{Line::column, col_factors.data()};
    const std::vector<std::vector<LineFactors>> pass_lists = {
        {by_row}, {by_col}, {by_col, by_row}, {by_row, by_col}, {by_row, by_col, by_row}};
    for (const std::vector<LineFactors>& passes : pass_lists)
      for (const DType momentum : {DType::f32, DType::bf16})
        for (const DType param : {DType::f32, DType::bf16, DType::f16}) {
          const RegCase start(random, shape, DType::f32, momentum, param);
          RegCase expected = start;
          kernels::SweepHealth expected_health;
          scalar_apply({expected.tensors(), passes.data(), static_cast<int>(passes.size()), &expected_health});
          for (const kernels::KernelTable* table : kernels::all_cpu_kernels()) {
            RegCase result = start;
            kernels::SweepHealth health;
            table->reg_apply({result.tensors(), passes.data(), static_cast<int>(passes.size()), &health});
            expect_same(result, expected);
            EXPECT_NEAR(health.update_squares, expected_health.update_squares, 2e-6 * expected_health.update_squares);
            EXPECT_NEAR(health.weight_squares, expected_health.weight_squares, 2e-6 * expected_health.weight_squares);
          }
        }
  }
}

}  // namespace
}  // namespace regatta::testing
