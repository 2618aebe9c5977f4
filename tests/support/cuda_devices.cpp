#include "runtime/error.h"
#include "tests/support/devices_under_test.h"

namespace regatta::testing {

std::vector<DeviceUnderTest> devices_under_test(std::string& why_not) {
  try {
    const std::shared_ptr<Device> device = open_device("cuda");
    return {{"cuda", [device] { return device; }}};
  } catch (const Error& error) {
    why_not = error.what();
    return {};
  }
}

}  // namespace regatta::testing
