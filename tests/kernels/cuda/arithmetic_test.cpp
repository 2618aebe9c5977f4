// The element and line arithmetic of kernels/cuda on the host, bit for bit against the CPU table and exact_sum.h. Needs
// no CUDA and no emulator.

#include "kernels/cuda/arithmetic.cuh"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "kernels/cuda/line_sum.cuh"
#include "kernels/kernels.h"
#include "tests/support/scalar_kernels.h"

namespace regatta::testing {
namespace {

namespace cuda = kernels::cuda;
using Random = std::mt19937_64;

std::uint32_t bits(float x) { return std::bit_cast<std::uint32_t>(x); }

TEST(CudaArithmetic, EveryHalfReadsAsOnTheCpu) {
  std::vector<std::uint16_t> halves(65536);
  for (std::size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<std::uint16_t>(i);
  std::vector<float> floats(halves.size());
  for (const DType dtype : {DType::bf16, DType::f16})
    for (const kernels::KernelTable* table : kernels::all_cpu_kernels()) {
      table->to_f32(halves.data(), dtype, floats.data(), 65536);
      for (std::uint32_t i = 0; i < 65536; ++i) ASSERT_EQ(bits(cuda::from_16(dtype, i)), bits(floats[i])) << i;
    }
}

// All exponents, with mantissas at, around and between every tie of both types; NaNs with their payloads.
TEST(CudaArithmetic, FloatsRoundAsOnTheCpu) {
  Random random(1);
  std::vector<float> floats;
  for (std::uint32_t exponent = 0; exponent < 512; ++exponent)
    for (int i = 0; i < 800; ++i) {
      std::uint32_t mantissa = static_cast<std::uint32_t>(random()) & 0x7fffffU;
      const std::uint32_t tie = i % 2 ? 0x8000U : 0x1000U;
      if (i % 4 >= 2) mantissa = (mantissa & ~(2 * tie - 1)) + tie + static_cast<std::uint32_t>(i / 4 % 3) - 1;
      if (i < 3) mantissa = i == 0 ? 0 : i == 1 ? 1 : 0x7fffff;
      floats.push_back(std::bit_cast<float>(exponent << 23 | (mantissa & 0x7fffffU)));
    }
  for (std::uint32_t m = 0; m < 40; ++m) floats.push_back(std::bit_cast<float>(0x33000000U + m));  // fp16's smallest
  std::vector<std::uint16_t> halves(floats.size());
  for (const DType dtype : {DType::bf16, DType::f16})
    for (const kernels::KernelTable* table : kernels::all_cpu_kernels()) {
      table->from_f32(floats.data(), halves.data(), dtype, static_cast<std::int64_t>(floats.size()));
      for (std::size_t i = 0; i < floats.size(); ++i)
        ASSERT_EQ(cuda::to_16(dtype, floats[i]), halves[i]) << std::hex << bits(floats[i]);
    }
}

float any_float(Random& random) {
  for (;;) {
    const float x = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (std::isfinite(x)) return x;
  }
}

TEST(CudaArithmetic, NormsAndStepsAreThoseOfKernels) {
  Random random(2);
  std::vector<double> norms = {0,           0x1p-126, 0x1p-127, 0x1.8p-126, 1e-13,
                               1e-12,       1,        0x1p127,  0x1p300,    std::numeric_limits<double>::infinity(),
                               std::nan("")};
  for (int i = 0; i < 100000; ++i) norms.push_back(std::fabs(static_cast<double>(any_float(random))) * 1.7320508);
  for (const double norm : norms)
    for (const double eps : {1e-12, 1e-3, 0.0}) {
      const float expected = kernels::inverse_norm(norm, eps), got = cuda::line_inverse(norm, eps);
      ASSERT_EQ(bits(got), bits(expected)) << norm;
      if (std::isnan(expected)) continue;
      ASSERT_EQ(bits(cuda::line_step(got, norm * 0.3)), bits(kernels::step_factor(expected, norm * 0.3)));
    }
  EXPECT_EQ(cuda::measured_scale(0.5, 0, 10), 0);
  EXPECT_EQ(cuda::measured_scale(0.5, 40, 10), 0.25);
  EXPECT_TRUE(std::isnan(cuda::measured_scale(0.5, std::numeric_limits<double>::infinity(), 10)));
}

// Integers of every size and sign, so that all branches of the rounding from 128 bits are met.
TEST(CudaArithmetic, ValueWithoutWideIntegers) {
  Random random(3);
  for (int i = 0; i < 2000000; ++i) {
    LineSum sum;
    sum.bin = static_cast<std::int32_t>(random() % 15) - 8;
    sum.hi = static_cast<std::int64_t>(random() >> (1 + random() % 63));
    sum.lo = static_cast<std::int64_t>(random()) >> (random() % 64);
    if (i % 5 == 0) sum.lo &= -(std::int64_t{1} << (random() % 63));  // ties
    if (i % 7 == 0) sum.hi &= -(std::int64_t{1} << (random() % 63));
    if (static_cast<__int128>(sum.hi) * (std::int64_t{1} << 40) + sum.lo < 0) continue;
    ASSERT_EQ(cuda::line_value(cuda::from_line(sum)), kernels::value(sum)) << sum.hi << ' ' << sum.lo << ' ' << sum.bin;
  }
  EXPECT_EQ(cuda::line_value(cuda::ThreadSum{}), 0);
  LineSum broken;
  kernels::add(broken, std::numeric_limits<double>::infinity());
  EXPECT_EQ(cuda::line_value(cuda::from_line(broken)), kernels::value(broken));
}

// Sums of random values in random groups, merged in random order, are those of one value after the other.
TEST(CudaArithmetic, SumsInAnyGroupsAreTheSame) {
  Random random(4);
  std::normal_distribution<float> normal;
  for (int round = 0; round < 3000; ++round) {
    LineSum squares, sizes;
    WholeSum whole;
    std::int64_t non_finite = 0, got_non_finite = 0;
    cuda::ThreadSum got_squares[3], got_sizes[3];
    WholeSum got_whole[3];
    const int spread = round % 3 == 0 ? 4 : round % 3 == 1 ? 60 : 140;
    for (int group = 0; group < 20; ++group) {
      float values[4];
      for (float& value : values) {
        value = normal(random) * std::exp2(static_cast<float>(static_cast<int>(random() % (2 * spread)) - spread));
        if (random() % 9 == 0) value = 0;
        if (round % 50 == 7 && random() % 30 == 0) value = random() % 2 ? INFINITY : NAN;
        add_square(squares, value);
        add_magnitude(sizes, value);
        if (std::isfinite(value)) {
          kernels::add(whole, static_cast<double>(value) * value);
        } else {
          ++non_finite;
        }
      }
      const std::size_t part = random() % 3;
      cuda::add_values<cuda::Term::square, 4>(got_squares[part], values);
      cuda::add_values<cuda::Term::magnitude, 4>(got_sizes[part], values);
      got_non_finite += cuda::add_squares<4>(got_whole[part], values);
    }
    for (int part : {2, 1}) {
      cuda::merge_into(got_squares[0], got_squares[part]);
      cuda::merge_into(got_sizes[0], got_sizes[part]);
      kernels::merge(got_whole[0], got_whole[part]);
    }
    ASSERT_TRUE(cuda::to_line(got_squares[0]) == squares) << round;
    ASSERT_TRUE(cuda::to_line(got_sizes[0]) == sizes) << round;
    ASSERT_TRUE(got_whole[0] == whole) << round;
    ASSERT_EQ(got_non_finite, non_finite);
  }
}

}  // namespace
}  // namespace regatta::testing
