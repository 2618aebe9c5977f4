#pragma once
// Gradients of a device that are added up on the host, in memory that the device copies from at full speed.

#include <vector>

#include "runtime/device/device.h"
#include "runtime/engine/arrays.h"

namespace regatta {

class StagedArrays final : public HostArrays {
 public:
  /// `device` outlives this.
  StagedArrays(const kernels::KernelTable& kernels, Device& device) : HostArrays(kernels), device_(device) {}
  SymmetricBuffer allocate_shared(Transport& group, std::int64_t bytes) override {
    memory_.push_back(HostArrays::allocate_shared(group, bytes));
    pins_.emplace_back(device_, memory_.back().data(), memory_.back().bytes());
    return memory_.back();
  }

 private:
  Device& device_;
  std::vector<SymmetricBuffer> memory_;  // outlives the pins
  std::vector<HostPin> pins_;
};

}  // namespace regatta
