#pragma once
// Buffers for a kernel call: random values in a dtype, at any alignment, compared bit for bit afterwards.

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "tests/support/scalar_kernels.h"

namespace regatta::testing {

using Random = std::mt19937_64;

/// `count` elements of a dtype, `shift` elements past an aligned address, with guards on both sides.
class Elements {
 public:
  Elements(DType dtype, std::int64_t count, int shift = 0)
      : dtype_(dtype), count_(count), shift_(shift), bytes_((count + shift + guard) * size_of(dtype), 0x5a) {}

  void* data() { return bytes_.data() + shift_ * size_of(dtype_); }
  const void* data() const { return bytes_.data() + shift_ * size_of(dtype_); }
  float* floats() { return static_cast<float*>(data()); }
  DType dtype() const { return dtype_; }
  std::int64_t count() const { return count_; }
  float operator[](std::int64_t i) const { return read(dtype_, data(), i); }
  void set(std::int64_t i, float x) { write(dtype_, data(), i, x); }
  void* at(std::int64_t i) { return static_cast<unsigned char*>(data()) + i * size_of(dtype_); }

  /// Normal values times 2^[-spread, spread], some zeros.
  void fill(Random& random, double scale, double spread_bits) {
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<double> exponent(-spread_bits, spread_bits);
    for (std::int64_t i = 0; i < count_; ++i)
      set(i, random() % 23 == 0 ? 0 : static_cast<float>(scale * normal(random) * std::exp2(exponent(random))));
  }
  bool operator==(const Elements& other) const { return bytes_ == other.bytes_; }  // guards too

 private:
  static constexpr int guard = 33;
  DType dtype_;
  std::int64_t count_;
  int shift_;
  std::vector<unsigned char> bytes_;
};

/// Index of the first element that differs, for messages.
inline std::int64_t first_difference(const Elements& a, const Elements& b) {
  for (std::int64_t i = 0; i < a.count(); ++i)
    if (std::bit_cast<std::uint32_t>(a[i]) != std::bit_cast<std::uint32_t>(b[i])) return i;
  return -1;
}

#define EXPECT_SAME_BITS(a, b) \
  EXPECT_TRUE((a) == (b)) << "first difference at " << ::regatta::testing::first_difference((a), (b))

}  // namespace regatta::testing
