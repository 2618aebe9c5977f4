#pragma once
// A Device of the tests whose streams are late (late_stream.h): memory of the host, kernels run by the emulator when
// somebody waits for them. Where CUDA would wait or copy aside at once (memory that is not pinned, allocating and
// freeing), so does this. Every rank needs one of its own.

#include <memory>

#include "runtime/device/device.h"

namespace regatta::testing {

/// With `eager_default` its default stream does all it can at once, and only the others are late.
std::shared_ptr<Device> late_device(bool eager_default = false);

}  // namespace regatta::testing
