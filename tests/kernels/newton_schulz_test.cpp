// Newton-Schulz against the same iteration in fp64, and its bits over threads.

#include "runtime/rules/newton_schulz.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels/matmul.h"
#include "runtime/device/thread_pool.h"
#include "tests/support/rule_formulas.h"
#include "tests/support/scalar_kernels.h"

namespace regatta {
namespace {

using Matrix = std::vector<std::vector<double>>;

Matrix product(const Matrix& a, const Matrix& b) {
  Matrix c(a.size(), std::vector<double>(b[0].size()));
  for (std::size_t i = 0; i < a.size(); ++i)
    for (std::size_t k = 0; k < b.size(); ++k)
      for (std::size_t j = 0; j < b[0].size(); ++j) c[i][j] += a[i][k] * b[k][j];
  return c;
}

Matrix transposed(const Matrix& a) {
  Matrix t(a[0].size(), std::vector<double>(a.size()));
  for (std::size_t i = 0; i < a.size(); ++i)
    for (std::size_t j = 0; j < a[0].size(); ++j) t[j][i] = a[i][j];
  return t;
}

// Always on the rows' side, transposed first when tall: another way than the code's.
Matrix reference(const std::vector<float>& values, MatrixShape shape, int steps) {
  Matrix x(shape.rows, std::vector<double>(shape.cols));
  double squares = 0;
  for (std::int64_t i = 0; i < shape.numel(); ++i) {
    x[i / shape.cols][i % shape.cols] = values[i];
    squares += static_cast<double>(values[i]) * values[i];
  }
  if (shape.rows > shape.cols) x = transposed(x);
  for (auto& row : x)
    for (double& v : row) v /= std::sqrt(squares) + 1e-7;
  for (int step = 0; step < steps; ++step) {
    const Matrix gram = product(x, transposed(x)), square = product(gram, gram);
    Matrix poly = gram;
    for (std::size_t i = 0; i < gram.size(); ++i)
      for (std::size_t j = 0; j < gram.size(); ++j) poly[i][j] = -4.7750 * gram[i][j] + 2.0315 * square[i][j];
    const Matrix more = product(poly, x);
    for (std::size_t i = 0; i < x.size(); ++i)
      for (std::size_t j = 0; j < x[0].size(); ++j) x[i][j] = 3.4445 * x[i][j] + more[i][j];
  }
  return shape.rows > shape.cols ? transposed(x) : x;
}

std::vector<float> random_matrix(MatrixShape shape, int seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(shape.numel());
  for (float& value : values) value = normal(random);
  round_to_bf16(values.data(), std::ssize(values));
  return values;
}

std::vector<float> orthogonalised(const NewtonSchulz& settings, MatrixShape shape, std::vector<float> values,
                                  int threads = 1) {
  ThreadPool pool(threads);
  std::vector<std::byte> scratch(newton_schulz_scratch(settings, shape));
  newton_schulz(settings, shape, values.data(), scratch, pool);
  return values;
}

double worst(const std::vector<float>& values, const Matrix& expected) {
  double error = 0;
  const std::size_t cols = expected[0].size();
  for (std::size_t i = 0; i < values.size(); ++i)
    error = std::max(error, std::fabs(values[i] - expected[i / cols][i % cols]));
  return error;
}

class NewtonSchulzTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!kernels::has_matmul()) GTEST_SKIP() << "no BLAS in this build";
  }
};

// Shapes of one panel and of several, one row and one column.
const MatrixShape shapes[] = {{20, 33}, {33, 20}, {16, 16}, {1, 40}, {40, 1}, {70, 300}, {300, 70}, {270, 280}};

// In fp32 it is that of values up to 1.2 rounded once.
TEST_F(NewtonSchulzTest, IsTheIterationInDoublePrecision) {
  for (const MatrixShape& shape : shapes) {
    const std::vector<float> d = random_matrix(shape, 1);
    const Matrix expected = reference(d, shape, 5);
    EXPECT_LT(worst(orthogonalised({.bf16 = false}, shape, d), expected), 1e-7) << shape.rows << " x " << shape.cols;
    EXPECT_LT(worst(orthogonalised({.bf16 = true}, shape, d), expected), 0.03) << shape.rows << " x " << shape.cols;
  }
}

TEST_F(NewtonSchulzTest, BringsSingularValuesNearOne) {  // Gram of the result near the identity
  const MatrixShape shape{12, 90};
  for (const auto coefficients : {NewtonSchulz::Coefficients::classic, NewtonSchulz::Coefficients::quintic,
                                  NewtonSchulz::Coefficients::polar_express}) {
    const std::vector<float> o =
        orthogonalised({.coefficients = coefficients, .steps = 8, .bf16 = false}, shape, random_matrix(shape, 2));
    double trace = 0;
    for (float v : o) trace += static_cast<double>(v) * v;
    EXPECT_NEAR(trace / 12, 1, 0.35);
  }
}

TEST_F(NewtonSchulzTest, HasTheSameBitsOnAnyNumberOfThreads) {
  for (const MatrixShape& shape : {MatrixShape{300, 700}, MatrixShape{700, 300}, MatrixShape{520, 520}}) {
    const std::vector<float> d = random_matrix(shape, 3);
    for (const bool bf16 : {false, true}) {
      const std::vector<float> one = orthogonalised({.bf16 = bf16}, shape, d);
      EXPECT_EQ(orthogonalised({.bf16 = bf16}, shape, d, 2), one);
      EXPECT_EQ(orthogonalised({.bf16 = bf16}, shape, d, 3), one);
    }
  }
}

TEST_F(NewtonSchulzTest, AZeroMatrixStaysZeroAndWhatIsNotANumberShows) {
  const MatrixShape shape{3, 5};
  for (const auto guard : {NewtonSchulz::Guard::add, NewtonSchulz::Guard::clamp})
    for (float value : orthogonalised({.guard = guard}, shape, std::vector<float>(15))) EXPECT_EQ(value, 0);
  std::vector<float> broken(15, 1);
  broken[7] = INFINITY;
  for (float value : orthogonalised({}, shape, broken)) EXPECT_TRUE(std::isnan(value));
}

TEST_F(NewtonSchulzTest, ResultsInBf16AreBf16Numbers) {
  std::vector<float> o = orthogonalised({}, {9, 14}, random_matrix({9, 14}, 4)), rounded = o;
  round_to_bf16(rounded.data(), std::ssize(rounded));
  EXPECT_EQ(o, rounded);
}

// Results of several panels, whose last one is full, short or one line: against whole products, one step and two.
TEST_F(NewtonSchulzTest, ResultsOfSeveralPanels) {
  constexpr std::int64_t panel = newton_schulz_panel;
  for (const auto& [shape, steps] : std::vector<std::pair<MatrixShape, int>>{{{panel - 1, panel + 1}, 1},
                                                                             {{panel + 1, panel}, 2},
                                                                             {{panel, 2 * panel}, 1},
                                                                             {{2 * panel + 1, 30}, 2},
                                                                             {{2 * panel + 1, 2 * panel + 7}, 1}}) {
    const std::vector<float> d = random_matrix(shape, 5);
    const testing::ReferenceMatrix whole(shape.rows, shape.cols, {d.begin(), d.end()});
    const double norm = std::sqrt(testing::squares_of(whole));
    const testing::ReferenceMatrix expected =
        testing::formula_newton_schulz(whole, norm + 1e-7, "classic", steps, [](double x) { return x; });
    const std::vector<float> got = orthogonalised({.steps = steps, .bf16 = false}, shape, d);
    double error = 0;
    for (std::size_t i = 0; i < got.size(); ++i) error = std::max(error, std::fabs(got[i] - expected.values[i]));
    EXPECT_LT(error, 1e-7) << shape.rows << " x " << shape.cols;
  }
}

float nearest_bf16(double x) {
  auto value = static_cast<float>(x);
  round_to_bf16(&value, 1);
  return value;
}

// In bf16 the start and each of the three products are rounded, no more and no less: nearly all elements have the bits
// of that, the rest lie where a sum in fp32 falls on another side of a tie.
TEST_F(NewtonSchulzTest, InBf16EveryProductIsRounded) {
  for (const MatrixShape& shape : {MatrixShape{24, 70}, MatrixShape{70, 24}})
    for (const int steps : {1, 2}) {
      const std::vector<float> d = random_matrix(shape, 6);
      const testing::ReferenceMatrix whole(shape.rows, shape.cols, {d.begin(), d.end()});
      const testing::ReferenceMatrix expected = testing::formula_newton_schulz(
          whole, std::sqrt(testing::squares_of(whole)) + 1e-7, "classic", steps, nearest_bf16);
      const std::vector<float> got = orthogonalised({.steps = steps, .bf16 = true}, shape, d);
      std::int64_t same = 0;
      for (std::size_t i = 0; i < got.size(); ++i) same += got[i] == static_cast<float>(expected.values[i]);
      EXPECT_GT(same, shape.numel() * 95 / 100) << shape.rows << " x " << shape.cols << ", steps " << steps;
    }
}

TEST_F(NewtonSchulzTest, TellsTheNormAndStaysInItsScratch) {
  ThreadPool pool(1);
  for (const bool bf16 : {true, false})
    for (const MatrixShape& shape : {MatrixShape{3, 7}, MatrixShape{7, 3}, MatrixShape{5, 5}}) {
      const NewtonSchulz settings{.steps = 3, .bf16 = bf16};
      std::vector<float> values = random_matrix(shape, 7);
      double squares = 0;
      for (const float v : values) squares += static_cast<double>(v) * v;
      const std::int64_t bytes = newton_schulz_scratch(settings, shape);
      std::vector<std::byte> scratch(static_cast<std::size_t>(bytes) + 64, std::byte{0x5a});
      const double norm = newton_schulz(settings, shape, values.data(),
                                        std::span(scratch).first(static_cast<std::size_t>(bytes)), pool);
      EXPECT_DOUBLE_EQ(norm, std::sqrt(squares));
      for (std::size_t i = static_cast<std::size_t>(bytes); i < scratch.size(); ++i)
        ASSERT_EQ(scratch[i], std::byte{0x5a}) << "written behind the scratch memory";
    }
}

TEST(RoundToBf16, IsThatOfTheKernelsForEveryPattern) {
  std::vector<float> values;
  for (std::uint32_t i = 0; i < 65536; ++i)
    for (const std::uint32_t low : {0U, 1U, 0x7fffU, 0x8000U, 0x8001U, 0xffffU})
      values.push_back(std::bit_cast<float>((i << 16) | low));
  std::vector<float> rounded = values;
  round_to_bf16(rounded.data(), std::ssize(rounded));
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint16_t half = 0;
    testing::write(DType::bf16, &half, 0, values[i]);
    const float expected = testing::read(DType::bf16, &half, 0);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(rounded[i])) << i;
    } else {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(rounded[i]), std::bit_cast<std::uint32_t>(expected)) << values[i];
    }
  }
}

}  // namespace
}  // namespace regatta
