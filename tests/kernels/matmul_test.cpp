// Products in every form that a caller may ask for, against the sum that they are.

#include "kernels/matmul.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace regatta::kernels {
namespace {

// A product runs on one thread, and leaves the number of threads of OpenMP as it was.
TEST(MatmulThreads, LeavesTheCallersThreadsAlone) {
  const auto set = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
  const auto get = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "omp_get_max_threads"));
  if (!has_matmul() || set == nullptr || get == nullptr) GTEST_SKIP() << "no BLAS over OpenMP in this build";
  const int before = get();
  set(3);
  const std::vector<float> a(64, 1), b(64, 2);
  std::vector<float> c(64);
  MatmulArgs<float> args;
  args.rows = args.cols = args.inner = args.a_stride = args.b_stride = args.c_stride = 8;
  args.a = a.data(), args.b = b.data(), args.c = c.data();
  matmul(args);
  EXPECT_EQ(get(), 3);
  set(before);
  EXPECT_EQ(c[0], 16);
}

template <class Number>
class Matmul : public ::testing::Test {};
using Numbers = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Matmul, Numbers);

TYPED_TEST(Matmul, IsTheSumOfProducts) {
  if (!has_matmul()) GTEST_SKIP() << "no BLAS in this build";
  std::mt19937 random(1);
  const auto any = [&](int low, int high) {
    return low + static_cast<std::int64_t>(random() % static_cast<unsigned>(high - low + 1));
  };
  for (int round = 0; round < 400; ++round) {
    MatmulArgs<TypeParam> args;
    args.rows = any(0, 9), args.cols = any(0, 9), args.inner = any(1, 9);
    args.a_transposed = random() % 2, args.b_transposed = random() % 2;
    args.a_stride = (args.a_transposed ? args.rows : args.inner) + any(0, 3);
    args.b_stride = (args.b_transposed ? args.inner : args.cols) + any(0, 3);
    args.c_stride = args.cols + any(0, 3);
    args.alpha = static_cast<TypeParam>(any(-2, 3));
    args.beta = static_cast<TypeParam>(any(-1, 2));
    if (args.a_stride == 0) args.a_stride = 1;
    if (args.b_stride == 0) args.b_stride = 1;
    if (args.c_stride == 0) args.c_stride = 1;
    // Small whole numbers: every order of the sums is exact.
    const auto numbers = [&](std::int64_t count) {
      std::vector<TypeParam> values(static_cast<std::size_t>(count));
      for (TypeParam& value : values) value = static_cast<TypeParam>(any(-5, 5));
      return values;
    };
    const auto a = numbers(16 * 16), b = numbers(16 * 16);
    auto c = numbers(16 * 16);
    auto expected = c;
    if (args.beta == 0)  // is not read
      for (std::int64_t i = 0; i < args.rows; ++i)
        for (std::int64_t j = 0; j < args.cols; ++j) c[i * args.c_stride + j] = std::nan("");
    args.a = a.data(), args.b = b.data(), args.c = c.data();
    for (std::int64_t i = 0; i < args.rows; ++i)
      for (std::int64_t j = 0; j < args.cols; ++j) {
        TypeParam sum = 0;
        for (std::int64_t k = 0; k < args.inner; ++k)
          sum += (args.a_transposed ? a[k * args.a_stride + i] : a[i * args.a_stride + k]) *
                 (args.b_transposed ? b[j * args.b_stride + k] : b[k * args.b_stride + j]);
        TypeParam& to = expected[i * args.c_stride + j];
        to = args.alpha * sum + (args.beta == 0 ? 0 : args.beta * to);
      }
    matmul(args);
    ASSERT_EQ(c, expected) << args.rows << " x " << args.cols << " over " << args.inner;
  }
}

}  // namespace
}  // namespace regatta::kernels
