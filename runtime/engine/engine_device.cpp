// What an engine does besides when its rank's memory lies on a device.

#include <algorithm>

#include "runtime/engine/engine_impl.h"

namespace regatta {

std::unique_ptr<DeviceSide> Engine::Impl::make_device_side() const {
  if (world->device() != options.device.get() && world->device() != nullptr)
    throw Error(Code::invalid_argument, "transport " + std::string(world->name()) + " moves memory of " +
                                            world->device()->name() + ", but the engine's device is " +
                                            (options.device ? options.device->name() : "the CPU"));
  if (!options.device) return nullptr;
  return std::make_unique<DeviceSide>(options.device, plan, rank, *world, *dp_group);
}

void Engine::Impl::begin_device_step() {
  device_side->device().bind();
  if (!device_side->has_sweep()) {
    std::vector<const Rule*> rule_of_group;
    for (const Group& group : groups) rule_of_group.push_back(group.rule.get());
    device_side->make_sweep(works, rules, std::move(rule_of_group), options.momentum_dtype);
  }
  device_side->sweep().begin(infos, device_side->stream());
}

// A transport that cannot read the device gets this rank's chunk on the host, and for that the host waits.
void Engine::Impl::gather_from_device(Bucket& bucket) {
  const std::int64_t begin = bucket.bounds_bytes[dp_group->rank()], end = bucket.bounds_bytes[dp_group->rank() + 1];
  if (bucket.on_device.data() != nullptr) {
    device_side->read(bucket.params.data() + begin, bucket.home + begin, end - begin);
  } else if (dp_group->device() == nullptr && dp_group->world_size() > 1) {
    device_side->device().synchronize(device_side->stream());
  }
  bucket.gather = dp_group->all_gather(bucket.params, 0, bucket.bounds_bytes, bucket.label);
}

void Engine::Impl::take_gathered(Bucket& bucket) {
  if (bucket.on_device.data() == nullptr) return;
  const auto take = [&](std::int64_t begin, std::int64_t end) {
    device_side->device().copy(bucket.home + begin, bucket.params.data() + begin, end - begin, device_side->stream());
  };
  take(bucket.bounds_bytes.front(), bucket.bounds_bytes[dp_group->rank()]);
  take(bucket.bounds_bytes[dp_group->rank() + 1], bucket.bounds_bytes.back());
}

void Engine::Impl::fill_device_master_weights() {
  const std::vector<sharding::Piece>& pieces = plan.layout(rank).pieces;
  device_side->device().bind();
  for (std::size_t p = 0; p < pieces.size(); ++p)
    if (float* master = state.master(static_cast<int>(p)))
      device_side->arrays().accumulate(master, element(pieces[p].bucket, pieces[p].bucket_offset),
                                       buckets[pieces[p].bucket].dtype, pieces[p].part.run.size(), true);
  device_side->device().synchronize(device_side->stream());
}

void Engine::Impl::mirror_state() const {
  if (!device_side) return;
  const Buffer& memory = state.memory();
  if (state_mirror.bytes() < memory.bytes()) state_mirror = Buffer(memory.bytes());
  device_side->read(state_mirror.data(), memory.data(), memory.bytes());
}

void* Engine::Impl::device_state(const StatePart& part) const {
  return state.memory().data() + (static_cast<const std::byte*>(part.data) - state_mirror.data());
}

}  // namespace regatta
