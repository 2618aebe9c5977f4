#include "runtime/error.h"
#include "tests/support/devices_under_test.h"

namespace regatta::testing {

std::vector<DeviceUnderTest> devices_under_test(std::string& why_not) {
  try {
    return {{"cuda", open_device("cuda")}};
  } catch (const Error& error) {
    why_not = error.what();
    return {};
  }
}

}  // namespace regatta::testing
