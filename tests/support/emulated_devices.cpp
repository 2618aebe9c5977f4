#include "tests/support/devices_under_test.h"
#include "tests/support/emulated_device.h"
#include "tests/support/late_device.h"

namespace regatta::testing {

std::vector<DeviceUnderTest> devices_under_test(std::string&) {
  const auto direct = emulated_device(true), apart = emulated_device(false);
  return {{"direct", [direct] { return direct; }},
          {"through the host", [apart] { return apart; }},
          {"late", [] { return late_device(); }}};
}

}  // namespace regatta::testing
