#include "runtime/engine/device_lists.h"

#include <cmath>

namespace regatta {

namespace cuda = kernels::cuda;
using kernels::SweepHealth;

std::int64_t DeviceHealth::add(std::span<const cuda::Tile> tiles, std::span<const int> param_of_segment, int cluster) {
  const std::int64_t begin = block_count_;
  const std::vector<cuda::TileRange> ranges = cuda::blocks_of_segments(tiles, param_of_segment.size(), cluster, begin);
  for (std::size_t i = 0; i < ranges.size(); ++i)
    if (param_of_segment[i] >= 0 && ranges[i].begin < ranges[i].end) ranges_[param_of_segment[i]].push_back(ranges[i]);
  block_count_ += static_cast<std::int64_t>(tiles.size()) * cluster;
  return begin;
}

void DeviceHealth::allocate() {
  std::vector<cuda::MergeItem> items;
  std::vector<cuda::TileRange> all;
  for (const std::vector<cuda::TileRange>& ranges : ranges_) {
    items.push_back({std::ssize(all), std::ssize(ranges)});
    all.insert(all.end(), ranges.begin(), ranges.end());
  }
  const auto send = [&](Buffer& to, const auto& values) {
    const auto bytes = static_cast<std::int64_t>(values.size() * sizeof(values[0]));
    to = Buffer(bytes, &device_);
    device_.copy(to.data(), values.data(), bytes, nullptr);
    device_.synchronize(nullptr);
  };
  send(items_, items);
  send(all_ranges_, all);
  constexpr auto size = static_cast<std::int64_t>(sizeof(SweepHealth));
  blocks_ = Buffer(block_count_ * size, &device_);
  results_ = Buffer(std::ssize(items) * size, &device_);
  landing_ = Buffer::pinned(std::ssize(items) * size, device_);
}

void DeviceHealth::send(StreamHandle stream) {
  device_.check_launch(device_.kernels().merge_health(items_.as<cuda::MergeItem>(), std::ssize(ranges_),
                                                      all_ranges_.as<cuda::TileRange>(), blocks_.as<SweepHealth>(),
                                                      results_.as<SweepHealth>(), stream),
                       "the health figures");
  device_.copy(landing_.data(), results_.data(), results_.bytes(), stream);
}

void DeviceHealth::take(std::span<SweepHealth> by_param) const {
  for (std::size_t p = 0; p < by_param.size(); ++p) by_param[p].add(landing_.as<SweepHealth>()[p]);
}

cuda::RegSegment reg_segment(const Work& work) {
  cuda::RegSegment segment;
  segment.run = work.tensors.run;
  segment.grad = work.tensors.grad;
  segment.momentum = work.state[0];
  segment.weight = work.tensors.weight;
  segment.param = work.tensors.param;
  segment.scalars = work.group;
  segment.root = std::sqrt(static_cast<double>(std::max(work.shape.rows, work.shape.cols)));
  return segment;
}

cuda::Dtypes dtypes_of(const Work& work, DType momentum_dtype) {
  return {work.tensors.grad_dtype, momentum_dtype, work.tensors.param_dtype};
}

bool same(const cuda::Dtypes& a, const cuda::Dtypes& b) {
  return a.grad == b.grad && a.momentum == b.momentum && a.param == b.param;
}

}  // namespace regatta
