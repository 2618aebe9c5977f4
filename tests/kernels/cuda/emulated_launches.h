#pragma once
// The launches of kernels/cuda run by the emulator, one at a time in a process: the kernels' own source on host memory.
// Fibers of one emulated grid run on the calling thread. Errors of the emulator are thrown.

#include "kernels/cuda/launch_table.h"

namespace regatta::testing {

/// What the emulated device can do: as an H100, with few multiprocessors.
inline constexpr kernels::cuda::DeviceLimits emulated_limits = {90, 8, 232448, 4};
const kernels::cuda::LaunchTable& emulated_launches();

}  // namespace regatta::testing
