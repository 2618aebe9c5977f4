#include "tests/support/devices_under_test.h"
#include "tests/support/emulated_device.h"

namespace regatta::testing {

std::vector<DeviceUnderTest> devices_under_test(std::string&) {
  return {{"direct", emulated_device(true)}, {"through the host", emulated_device(false)}};
}

}  // namespace regatta::testing
