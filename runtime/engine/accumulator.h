#pragma once
// Adds up the gradients of a step's micro-batches, plainly or as a balanced binary tree.
//
// Tree: micro-batches are leaves in order; neighbours are added first, so K of them need bit_width(K) buffers, used
// like the digits of a binary counter. With ranks as the upper levels of the same tree, the sum does not depend on how
// many ranks shared the K micro-batches of a global batch.

#include <bit>
#include <cstdint>
#include <vector>

#include "runtime/device/buffer.h"
#include "runtime/engine/arrays.h"

namespace regatta {

class Accumulator {
 public:
  Accumulator() = default;
  /// `result`: where the total of all `count` addends lies after the last fold; `numel` floats.
  Accumulator(float* result, std::int64_t numel, int count, bool tree, Arrays& arrays)
      : result_(result), tree_(tree), arrays_(&arrays) {
    if (!tree) return;
    for (int level = 0; level + 1 < digits(count); ++level)
      levels_.push_back(arrays.allocate(numel * static_cast<std::int64_t>(sizeof(float))));
  }

  /// Adds addend `k` (0, 1, ... in order) of elements [offset, offset + numel).
  void add(int k, std::int64_t offset, const void* addend, DType dtype, std::int64_t numel) {
    if (!tree_) return arrays_->accumulate(result_ + offset, addend, dtype, numel, k == 0);
    const int carries = std::countr_one(static_cast<unsigned>(k));
    arrays_->accumulate(level(0) + offset, addend, dtype, numel, carries == 0);
    for (int l = 1; l <= carries; ++l)
      arrays_->accumulate(level(l) + offset, level(l - 1) + offset, DType::f32, numel, l == carries);
  }

  /// Brings the total of the first `added` addends of [offset, offset + numel) into the result; missing ones count as
  /// zero.
  void fold(int added, std::int64_t offset, std::int64_t numel) {
    if (added == 0) {
      arrays_->zero(result_ + offset, numel * static_cast<std::int64_t>(sizeof(float)));
      return;
    }
    if (!tree_) return;
    const float* total = nullptr;
    for (int l = 0; l < digits(added); ++l) {
      if ((added >> l & 1) == 0) continue;
      if (total != nullptr) arrays_->accumulate(level(l) + offset, total, DType::f32, numel, false);
      total = level(l) + offset;
    }
    if (total != result_ + offset) arrays_->accumulate(result_ + offset, total, DType::f32, numel, true);
  }

  std::int64_t bytes() const {
    std::int64_t bytes = 0;
    for (const Buffer& level : levels_) bytes += level.bytes();
    return bytes;
  }

 private:
  static int digits(int count) { return static_cast<int>(std::bit_width(static_cast<unsigned>(count))); }
  // The top digit of the counter is the result itself.
  float* level(int l) { return l < static_cast<int>(levels_.size()) ? levels_[l].as<float>() : result_; }

  float* result_ = nullptr;
  bool tree_ = false;
  Arrays* arrays_ = nullptr;
  std::vector<Buffer> levels_;
};

}  // namespace regatta
