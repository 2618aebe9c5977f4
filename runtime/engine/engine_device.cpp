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
  if (options.device_graph && world->runs_on_stream())
    throw Error(Code::invalid_argument, "a CUDA graph of the step was asked for over transport " +
                                            std::string(world->name()) +
                                            "; expected transport local, or mpi without mpirun");
  return std::make_unique<DeviceSide>(options.device, plan, rank, *world, *dp_group, options.device_graph);
}

void Engine::Impl::begin_device_step() {
  device_side->device().bind();
  if (!device_side->has_sweep()) {
    std::vector<const Rule*> rule_of_group;
    for (const Group& group : groups) rule_of_group.push_back(group.rule.get());
    device_side->make_sweep(works, rules, std::move(rule_of_group), options.momentum_dtype);
  }
  DeviceSweep& sweep = device_side->sweep();
  sweep.begin(infos);
  if (device_side->alone()) return;
  sweep.send_numbers(device_side->stream());
  if (DeviceVote* const on_device = device_side->vote())
    on_device->decide(sweep.reg_scalars(), sweep.adamw_scalars(), sweep.groups(), device_side->stream());
}

// What the step told: whether it happened, when the device decided that, and its health figures.
void Engine::Impl::end_device_step() {
  if (!device_side->alone()) device_side->sweep().health().send(device_side->stream());
  device_side->device().synchronize(device_side->stream());
  if (DeviceVote* const on_device = device_side->vote()) vote.count(on_device->votes());
}

void Engine::Impl::vote_on_device() {
  device_side->vote()->prepare(pending, {options.clip, loss_scale});
  if (!device_side->alone()) device_side->vote()->send(*world, device_side->arrays(), device_side->stream());
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
