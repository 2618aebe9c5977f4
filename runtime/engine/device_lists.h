#pragma once
// What a device sweep is made of: launches that are put together once, the memory they share, and where the figures of
// their blocks lie.

#include <functional>
#include <string_view>
#include <vector>

#include "kernels/cuda/tiles.h"
#include "runtime/device/arena.h"
#include "runtime/engine/work.h"

namespace regatta {

/// A launch and its arguments; run() returns what the launch returned.
struct DeviceLaunch {
  std::string_view what;
  std::function<int(StreamHandle)> run;
};

inline void run_all(Device& device, const std::vector<DeviceLaunch>& launches, StreamHandle stream) {
  for (const DeviceLaunch& launch : launches) device.check_launch(launch.run(stream), launch.what);
}

/// The health figures of all blocks of a step, and which of them belong to which parameter.
class DeviceHealth {
 public:
  DeviceHealth(Device& device, std::size_t params) : device_(device), ranges_(params) {}

  /// Room for the blocks of a launch over `tiles`, `cluster` blocks to a tile; param_of_segment[i] is -1 for what does
  /// not count. Returns where the launch's figures begin, for blocks().
  std::int64_t add(std::span<const kernels::cuda::Tile> tiles, std::span<const int> param_of_segment, int cluster = 1);
  /// After the last add().
  void allocate();
  kernels::SweepHealth* blocks(std::int64_t begin) const { return blocks_.as<kernels::SweepHealth>() + begin; }
  /// Behind the sweeps of a step.
  void send(StreamHandle stream);
  /// Once the stream has got there: adds the step's figures to those of each parameter.
  void take(std::span<kernels::SweepHealth> by_param) const;

 private:
  Device& device_;
  std::vector<std::vector<kernels::cuda::TileRange>> ranges_;  // by parameter
  std::int64_t block_count_ = 0;
  Buffer blocks_, results_, landing_;
  Buffer items_, all_ranges_;
};

/// A work as a launch of REG's kernels sees it; partials, lines and passes are the launch's own.
kernels::cuda::RegSegment reg_segment(const Work& work);
/// Element types of a work's tensors; works that differ in them go into different launches.
kernels::cuda::Dtypes dtypes_of(const Work& work, DType momentum_dtype);
bool same(const kernels::cuda::Dtypes& a, const kernels::cuda::Dtypes& b);

}  // namespace regatta
