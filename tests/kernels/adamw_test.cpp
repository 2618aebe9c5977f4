#include <gtest/gtest.h>

#include "kernels/cpu/blocking.h"
#include "tests/kernels/kernel_case.h"

namespace regatta::testing {
namespace {

struct AdamwCase {
  Elements grad, moment1, moment2, weight, param;

  AdamwCase(Random& random, std::int64_t count, DType grad_dtype, DType moment_dtype, DType param_dtype, int shift)
      : grad(grad_dtype, count, shift),
        moment1(moment_dtype, count, shift + 1),
        moment2(DType::f32, count, shift),
        weight(DType::f32, count, 2 * shift),
        param(param_dtype, count, shift) {
    grad.fill(random, 1, 8);
    moment1.fill(random, 1, 8);
    moment2.fill(random, 1, 8);
    for (std::int64_t i = 0; i < count; ++i) moment2.set(i, std::fabs(moment2[i]));
    weight.fill(random, 1, 2);
  }

  kernels::AdamwArgs args(std::int64_t begin, std::int64_t end, kernels::SweepHealth& health) {
    kernels::AdamwArgs args;
    args.count = end - begin;
    args.grad = grad.at(begin);
    args.grad_dtype = grad.dtype();
    args.moment1 = moment1.at(begin);
    args.moment1_dtype = moment1.dtype();
    args.moment2 = moment2.floats() + begin;
    args.weight = weight.floats() + begin;
    args.param = param.dtype() == DType::f32 ? nullptr : param.at(begin);
    args.param_dtype = param.dtype();
    args.grad_scale = 0.37F;
    args.inverse_sqrt_correction2 = 9.13F;
    args.step = 0.011F;
    args.decay = 0.9991F;
    args.health = &health;
    return args;
  }
};

// a * b + c with c far below the last bit of a * b, which lies between two numbers: rounded once it goes up, rounded
// twice it stays.
TEST(Adamw, FusedProductsRoundOnce) {
  const float near_one = 1 + std::ldexp(1.0F, -12), tiny = std::ldexp(1.0F, -60);
  bool matters = false;
  for (const bool moment_first : {true, false})
    for (const float sign : {1.0F, -1.0F}) {
      Random random(14);
      AdamwCase start(random, 67, DType::f32, DType::f32, DType::f32, 1);
      for (std::int64_t i = 0; i < 67; ++i) {
        start.moment1.set(i, moment_first ? near_one : sign * tiny);
        start.grad.set(i, moment_first ? sign * tiny : near_one);
      }
      const auto args_of = [&](AdamwCase& of, kernels::SweepHealth& health) {
        kernels::AdamwArgs args = of.args(0, 67, health);
        args.grad_scale = 1;
        args.beta1 = moment_first ? near_one / 2 : 0.5F;
        args.one_minus_beta1 = moment_first ? 0.5F : near_one / 2;
        return args;
      };
      AdamwCase expected = start;
      kernels::SweepHealth health;
      scalar_adamw(args_of(expected, health));
      const double exact = static_cast<double>(near_one) * near_one / 2;  // to 2^-61, which the next lines look for
      const auto twice = static_cast<float>(exact + 0.5 * static_cast<double>(sign) * static_cast<double>(tiny));
      matters = matters || expected.moment1[0] != twice;
      for (const kernels::KernelTable* table : kernels::all_cpu_kernels()) {
        AdamwCase result = start;
        kernels::SweepHealth own;
        table->adamw(args_of(result, own));
        EXPECT_SAME_BITS(result.moment1, expected.moment1) << table->isa;
      }
    }
  EXPECT_TRUE(matters) << "these numbers do not tell one rounding from two";
}

TEST(Adamw, EveryTableAndSplitGivesTheSameBits) {
  Random random(12);
  for (const DType grad : {DType::f32, DType::bf16, DType::f16})
    for (const DType moment : {DType::f32, DType::bf16})
      for (const DType param : {DType::f32, DType::bf16, DType::f16})
        for (const std::int64_t count : {std::int64_t{1}, std::int64_t{5}, std::int64_t{16}, std::int64_t{47},
                                         std::int64_t{1031}, kernels::block_numel, 2 * kernels::block_numel + 21}) {
          const AdamwCase start(random, count, grad, moment, param, static_cast<int>(random() % 4));
          AdamwCase expected = start;
          kernels::SweepHealth expected_health;
          scalar_adamw(expected.args(0, count, expected_health));
          for (const kernels::KernelTable* table : kernels::all_cpu_kernels())
            for (const std::int64_t piece : {count, std::int64_t{7}, std::int64_t{160}}) {
              if (piece == 7 && count > 2000) continue;
              AdamwCase result = start;
              kernels::SweepHealth health;
              for (std::int64_t begin = 0; begin < count; begin += piece)
                table->adamw(result.args(begin, std::min(begin + piece, count), health));
              EXPECT_SAME_BITS(result.moment1, expected.moment1) << table->isa;
              EXPECT_SAME_BITS(result.moment2, expected.moment2);
              EXPECT_SAME_BITS(result.weight, expected.weight);
              EXPECT_SAME_BITS(result.param, expected.param);
              EXPECT_NEAR(health.update_squares, expected_health.update_squares, 2e-6 * expected_health.update_squares);
              EXPECT_NEAR(health.weight_squares, expected_health.weight_squares, 2e-6 * expected_health.weight_squares);
            }
        }
}

TEST(Adamw, HealthBitsAreEqualOverTables) {
  Random random(13);
  constexpr std::int64_t count = 3 * kernels::block_numel + 43;
  const AdamwCase start(random, count, DType::f32, DType::f32, DType::f32, 1);
  std::vector<kernels::SweepHealth> figures;
  for (const kernels::KernelTable* table : kernels::all_cpu_kernels()) {
    kernels::SweepHealth health, more{1e9, 2e9};
    for (kernels::SweepHealth* to : {&health, &more}) {
      AdamwCase result = start;
      table->adamw(result.args(0, count, *to));
    }
    figures.push_back(health);
    EXPECT_EQ(figures.front().update_squares, health.update_squares) << table->isa;
    EXPECT_EQ(figures.front().weight_squares, health.weight_squares) << table->isa;
    EXPECT_NEAR(more.update_squares, 1e9 + health.update_squares, 1e-5) << "what is there is kept";
    EXPECT_NEAR(more.weight_squares, 2e9 + health.weight_squares, 1e-5) << "what is there is kept";
  }
}

// With eps 0 the lanes past the end must not leak into the figures.
TEST(Adamw, ZeroEpsAtATail) {
  Random random(14);
  for (const kernels::KernelTable* table : kernels::all_cpu_kernels()) {
    AdamwCase result(random, 19, DType::f32, DType::f32, DType::f32, 0);
    for (std::int64_t i = 0; i < 19; ++i) result.grad.set(i, 1);
    kernels::SweepHealth health;
    kernels::AdamwArgs args = result.args(0, 19, health);
    args.eps = 0;
    table->adamw(args);
    EXPECT_TRUE(std::isfinite(health.update_squares)) << table->isa;
  }
}

}  // namespace
}  // namespace regatta::testing
