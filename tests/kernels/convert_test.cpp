#include <gtest/gtest.h>

#include "tests/kernels/kernel_case.h"

namespace regatta::testing {
namespace {

constexpr DType halves[] = {DType::bf16, DType::f16};

TEST(Convert, EveryHalfReadsExactly) {
  std::vector<std::uint16_t> bits(65536);
  for (int i = 0; i < 65536; ++i) bits[i] = static_cast<std::uint16_t>(i);
  for (const kernels::KernelTable* table : kernels::all_cpu_kernels())
    for (const DType dtype : halves) {
      std::vector<float> out(65536);
      table->to_f32(bits.data(), dtype, out.data(), 65536);
      for (int i = 0; i < 65536; ++i) {
        const float expected = read(dtype, bits.data(), i);
        if (std::isnan(expected)) {
          ASSERT_TRUE(std::isnan(out[i])) << table->isa << ' ' << i;
        } else {
          ASSERT_EQ(std::bit_cast<std::uint32_t>(out[i]), std::bit_cast<std::uint32_t>(expected))
              << table->isa << ' ' << i;
        }
      }
    }
}

TEST(Convert, WritesRoundToNearestEven) {
  Random random(5);
  std::vector<float> in;
  for (int i = 0; i < 200000; ++i) in.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(random())));
  // Ties, and values one step beside them, over the whole range of both formats.
  for (std::uint32_t i = 0; i < 65536; ++i)
    for (const std::uint32_t low : {0x7fffU, 0x8000U, 0x8001U}) in.push_back(std::bit_cast<float>((i << 16) | low));
  for (std::uint32_t i = 0; i < 65536; ++i) {
    const auto half = std::bit_cast<_Float16>(static_cast<std::uint16_t>(i));
    const auto x = static_cast<float>(half);
    for (const int step : {-1, 0, 1})
      in.push_back(
          std::bit_cast<float>((std::bit_cast<std::uint32_t>(x) | 0x1000U) + static_cast<std::uint32_t>(step)));
  }
  for (int e = -30; e < -10; ++e)
    for (int k = 1; k < 64; ++k) in.push_back(std::ldexp(static_cast<float>(k), e));
  const auto count = static_cast<std::int64_t>(in.size());
  for (const kernels::KernelTable* table : kernels::all_cpu_kernels())
    for (const DType dtype : halves) {
      std::vector<std::uint16_t> out(in.size()), expected(in.size());
      table->from_f32(in.data(), out.data(), dtype, count);
      scalar_from_f32(in.data(), expected.data(), dtype, count);
      for (std::int64_t i = 0; i < count; ++i) {
        if (std::isnan(in[i])) {
          ASSERT_TRUE(std::isnan(read(dtype, out.data(), i)));
        } else {
          ASSERT_EQ(out[i], expected[i]) << table->isa << ' ' << name_of(dtype) << ' ' << in[i];
        }
      }
    }
}

TEST(Convert, AccumulateAddsOrOverwrites) {
  Random random(6);
  for (const kernels::KernelTable* table : kernels::all_cpu_kernels())
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
      for (const std::int64_t count : {0, 1, 7, 16, 131})
        for (const bool overwrite : {false, true}) {
          Elements source(dtype, count, 3), out(DType::f32, count, 1);
          source.fill(random, 1, 3);
          out.fill(random, 1, 3);
          Elements expected = out;
          table->accumulate(out.floats(), source.data(), dtype, count, overwrite);
          scalar_accumulate(expected.floats(), source.data(), dtype, count, overwrite);
          EXPECT_SAME_BITS(out, expected);
        }
}

}  // namespace
}  // namespace regatta::testing
