#pragma once
// Arrays that live on the host and on the machine under test, and the comparison of the two. NaNs are equal whatever
// their bits; everything else bit for bit, what lies before and after an array included.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "tests/kernels/cuda/machine.h"
#include "tests/support/scalar_kernels.h"

namespace regatta::testing {

using Random = std::mt19937_64;

/// Elements of a dtype `shift` elements past a boundary, with guards.
class Array {
 public:
  Array() = default;
  Array(DType dtype, std::int64_t count, int shift = 0)
      : dtype_(dtype), count_(count), shift_(shift), bytes_((shift + count + guard) * size_of(dtype), 0x5a) {}

  DType dtype() const { return dtype_; }
  std::int64_t count() const { return count_; }
  void* data() { return bytes_.data() + shift_ * size_of(dtype_); }
  const void* data() const { return bytes_.data() + shift_ * size_of(dtype_); }
  float* floats() { return static_cast<float*>(data()); }
  float operator[](std::int64_t i) const { return read(dtype_, data(), i); }
  void set(std::int64_t i, float x) { write(dtype_, data(), i, x); }
  /// Normal values times 2^[-spread, spread], some zeros.
  void fill(Random& random, double spread) {
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<double> exponent(-spread, spread);
    for (std::int64_t i = 0; i < count_; ++i)
      set(i, random() % 23 == 0 ? 0 : static_cast<float>(normal(random) * std::exp2(exponent(random))));
  }

  void upload(Machine& machine) {
    device_ = machine.allocate(static_cast<std::int64_t>(bytes_.size()));
    machine.write(device_, bytes_.data(), static_cast<std::int64_t>(bytes_.size()));
  }
  void* on_device() { return device_ ? static_cast<char*>(device_) + shift_ * size_of(dtype_) : nullptr; }
  /// What is there now, guards and all, agrees with `expected`.
  void expect(Machine& machine, const Array& expected, const std::string& what) {
    Array got = *this;
    machine.read(got.bytes_.data(), device_, static_cast<std::int64_t>(bytes_.size()));
    for (std::int64_t i = 0; i < count_; ++i) {
      const float a = got[i], b = expected[i];
      if (std::isnan(a) && std::isnan(b)) {
        got.set(i, 0);
      } else if (std::bit_cast<std::uint32_t>(a) != std::bit_cast<std::uint32_t>(b)) {
        ADD_FAILURE() << what << ": element " << i << " of " << count_ << " is " << a << ", expected " << b;
        return;
      }
    }
    Array clean = expected;
    for (std::int64_t i = 0; i < count_; ++i)
      if (std::isnan(clean[i])) clean.set(i, 0);
    EXPECT_TRUE(got.bytes_ == clean.bytes_) << what << ": written outside of the array";
  }

 private:
  static constexpr int guard = 33;
  DType dtype_ = DType::f32;
  std::int64_t count_ = 0;
  int shift_ = 0;
  std::vector<unsigned char> bytes_;
  void* device_ = nullptr;
};

/// Plain values on the machine.
template <class T>
T* to_machine(Machine& machine, const std::vector<T>& values) {
  if (values.empty()) return nullptr;
  void* to = machine.allocate(static_cast<std::int64_t>(values.size() * sizeof(T)));
  machine.write(to, values.data(), static_cast<std::int64_t>(values.size() * sizeof(T)));
  return static_cast<T*>(to);
}
template <class T>
std::vector<T> from_machine(Machine& machine, const T* from, std::int64_t count) {
  std::vector<T> values(count);
  if (count > 0) machine.read(values.data(), from, count * static_cast<std::int64_t>(sizeof(T)));
  return values;
}

class CudaKernels : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string why_not;
    machine_ = machine(why_not);
    if (machine_ == nullptr) GTEST_SKIP() << why_not;
    random_.seed(std::hash<std::string>{}(::testing::UnitTest::GetInstance()->current_test_info()->name()) % 1000);
  }
  void TearDown() override {
    if (machine_ != nullptr) machine_->free_all();
  }
  Machine* machine_ = nullptr;
  Random random_;
};

inline void expect_same_lines(const kernels::SweepHealth& a, const kernels::SweepHealth& b, const std::string& what) {
  EXPECT_EQ(a.zero_lines, b.zero_lines) << what;
  EXPECT_EQ(a.clamped_lines, b.clamped_lines) << what;
  EXPECT_EQ(a.non_finite_lines, b.non_finite_lines) << what;
  EXPECT_EQ(a.smallest_norm, b.smallest_norm) << what;
  EXPECT_EQ(a.largest_norm, b.largest_norm) << what;
}
inline void expect_close_sums(const kernels::SweepHealth& a, const kernels::SweepHealth& b, const std::string& what) {
  const auto close = [&](double x, double y) {
    if (std::isfinite(y)) {
      EXPECT_NEAR(x, y, 2e-6 * y) << what;
    } else {
      EXPECT_FALSE(std::isfinite(x)) << what;
    }
  };
  close(a.update_squares, b.update_squares);
  close(a.weight_squares, b.weight_squares);
}

/// Merges what the blocks of a launch left behind, by segment.
inline std::vector<kernels::SweepHealth> merged_health(Machine& machine, const std::vector<cuda::TileRange>& ranges,
                                                       const kernels::SweepHealth* blocks) {
  std::vector<cuda::MergeItem> items;
  for (std::size_t i = 0; i < ranges.size(); ++i) items.push_back({static_cast<std::int64_t>(i), 1});
  const auto count = static_cast<std::int64_t>(items.size());
  auto* results = to_machine(machine, std::vector<kernels::SweepHealth>(items.size()));
  machine.merge_health(to_machine(machine, items), count, to_machine(machine, ranges), blocks, results);
  return from_machine(machine, results, count);
}

/// A REG run with its tensors.
struct RegRun {
  MatrixRun run;
  Array grad, momentum, weight, param;

  /// All tensors `shift` elements past a boundary, or each somewhere else if it is negative.
  RegRun(Random& random, MatrixRun run, cuda::Dtypes d, int shift, double spread = 3) : run(run) {
    const auto place = [&] { return shift >= 0 ? shift : static_cast<int>(random() % 5); };
    grad = Array(d.grad, run.numel(), place());
    momentum = Array(d.momentum, run.numel(), place());
    weight = Array(DType::f32, run.numel(), place());
    param = Array(d.param, run.numel(), place());
    grad.fill(random, spread);
    momentum.fill(random, spread);
    weight.fill(random, 2);
  }
  kernels::RegTensors tensors(const cuda::RegScalars& s) {
    kernels::RegTensors t;
    t.run = run;
    t.grad = grad.data();
    t.grad_dtype = grad.dtype();
    t.momentum = momentum.data();
    t.momentum_dtype = momentum.dtype();
    t.weight = weight.floats();
    t.param = param.dtype() == DType::f32 ? nullptr : param.data();
    t.param_dtype = param.dtype();
    t.grad_scale = s.grad_scale;
    t.mu = s.mu;
    t.one_minus_mu = s.one_minus_mu;
    t.decay = s.decay;
    return t;
  }
  cuda::RegSegment upload(Machine& machine, int scalars) {
    for (Array* array : {&grad, &momentum, &weight, &param}) array->upload(machine);
    cuda::RegSegment segment;
    segment.run = run;
    segment.grad = grad.on_device();
    segment.momentum = momentum.on_device();
    segment.weight = static_cast<float*>(weight.on_device());
    segment.param = param.dtype() == DType::f32 ? nullptr : param.on_device();
    segment.scalars = scalars;
    return segment;
  }
  void expect(Machine& machine, const RegRun& expected, const std::string& what) {
    momentum.expect(machine, expected.momentum, what + ", momentum");
    weight.expect(machine, expected.weight, what + ", weight");
    param.expect(machine, expected.param, what + ", parameter");
    grad.expect(machine, expected.grad, what + ", gradient");
  }
};

inline std::string text(const MatrixRun& r) {
  return std::to_string(r.rows) + "x" + std::to_string(r.cols) + " [" + std::to_string(r.begin) + "," +
         std::to_string(r.end) + ")";
}
inline MatrixRun whole(std::int64_t rows, std::int64_t cols) { return {rows, cols, 0, rows * cols}; }

/// Two parameter groups.
inline std::vector<cuda::RegScalars> two_groups() {
  cuda::RegScalars a, b;
  a.lr_rho = 0.02 * 0.2;
  a.grad_scale = 0.83F;
  a.decay = 0.997F;
  b.lr_rho = 0.5 * 0.1;
  b.mu = 0.9F;
  b.one_minus_mu = 0.1F;
  b.eps = 1e-3;
  return {a, b};
}

inline const cuda::Dtypes dtype_cases[] = {
    {DType::f32, DType::f32, DType::f32},    {DType::bf16, DType::f32, DType::bf16},
    {DType::f32, DType::f32, DType::bf16},   {DType::f16, DType::f32, DType::f16},
    {DType::bf16, DType::bf16, DType::bf16}, {DType::f32, DType::bf16, DType::f32},
    {DType::f16, DType::bf16, DType::f16}};

}  // namespace regatta::testing
