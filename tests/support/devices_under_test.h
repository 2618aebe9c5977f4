#pragma once
// The devices that a test program runs its cases on: emulated ones, or this machine's GPU. A program links one of the
// two.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/device/device.h"

namespace regatta::testing {

struct DeviceUnderTest {
  std::string name;
  std::function<std::shared_ptr<Device>()> device;  ///< for one rank
};

/// Empty, with a reason, where there is none.
std::vector<DeviceUnderTest> devices_under_test(std::string& why_not);

}  // namespace regatta::testing
