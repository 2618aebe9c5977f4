#pragma once
// A Device of the tests: memory of the host, streams that do everything at once, and kernels run by the emulator.

#include <memory>

#include "runtime/device/device.h"

namespace regatta::testing {

/// With `reads_host_memory` false the engine treats it as a GPU whose memory no other rank reaches: between ranks
/// everything goes through the host.
std::shared_ptr<Device> emulated_device(bool reads_host_memory);

}  // namespace regatta::testing
