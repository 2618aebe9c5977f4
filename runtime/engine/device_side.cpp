#include "runtime/engine/device_side.h"

namespace regatta {

DeviceSide::DeviceSide(std::shared_ptr<Device> device, const sharding::Plan& plan, int rank, Transport& world,
                       const Transport& dp_group, bool graph)
    : device_(std::move(device)),
      plan_(plan),
      rank_(rank),
      dp_rank_(dp_group.rank()),
      world_(world),
      staged_gradients_(dp_group.world_size() > 1 && dp_group.device() == nullptr && !device_->reads_host_memory()),
      direct_world_(world.device() != nullptr || device_->reads_host_memory()),
      gathers_nothing_(dp_group.world_size() == 1),
      alone_(world.world_size() == 1 && !world.runs_on_stream()),
      wants_graph_(graph),
      staged_arrays_(kernels::cpu_kernels(), *device_),
      arrays_(std::make_unique<DeviceArrays>(*device_, stream_, dp_group.stream())),
      reduced_(staged_gradients_ ? plan.bucket_count() : 0) {
  if (!alone_ && !world.runs_on_stream()) return;
  vote_ = std::make_unique<DeviceVote>(plan, rank, *device_);
  arrays_->keep_figures();
}

void DeviceSide::use_stream(StreamHandle stream) {
  stream_ = stream;
  arrays_->use_stream(stream);
}

const void* DeviceSide::on_host(const void* grad, std::int64_t bytes) {
  if (landing_.bytes() < bytes) landing_ = Buffer::pinned(bytes, *device_);
  read(landing_.data(), grad, bytes);
  return landing_.data();
}

void DeviceSide::take_gradients(const Gradients& gradients) {
  for (std::size_t b = 0; b < reduced_.size(); ++b) {
    const Gradients::Reduced from = gradients.reduced(static_cast<int>(b));
    const std::int64_t bytes = plan_.layout(rank_).buckets[b].chunk(dp_rank_).size() * size_of(from.dtype);
    if (reduced_[b].bytes() < bytes) reduced_[b] = Buffer(bytes, device_.get());
    device_->copy(reduced_[b].data(), from.data, bytes, stream_);
  }
  if (!reduced_.empty()) device_->synchronize(stream_);
}

Gradients::Reduced DeviceSide::reduced(const Gradients& gradients, int bucket) const {
  Gradients::Reduced reduced = gradients.reduced(bucket);
  if (staged_gradients_) reduced.data = reduced_[bucket].data();
  return reduced;
}

void DeviceSide::make_sweep(std::span<const Work> works, std::span<const Rule* const> rule_of_param,
                            std::vector<const Rule*> rule_of_group, DType momentum_dtype) {
  sweep_ =
      std::make_unique<DeviceSweep>(DeviceSweep::Inputs{plan_, rank_, works, rule_of_param, std::move(rule_of_group),
                                                        momentum_dtype, direct_world_, gathers_nothing_},
                                    *device_);
}

// Captured in the second step: in the first one, kernels are loaded.
void DeviceSide::run_alone() {
  const auto step = [this](StreamHandle stream) {
    sweep_->send_numbers(stream);
    vote_->send(world_, *arrays_, stream);
    vote_->decide(sweep_->reg_scalars(), sweep_->adamw_scalars(), sweep_->groups(), stream);
    sweep_->run_alone(stream);
    sweep_->health().send(stream);
  };
  if (wants_graph_ && steps_ == 1) graph_ = Graph(*device_, step);
  graph_ ? graph_.launch(stream_) : step(stream_);
  ++steps_;
}

void DeviceSide::read(void* to_host, const void* from, std::int64_t bytes) {
  if (bytes == 0) return;
  device_->copy(to_host, from, bytes, stream_);
  device_->synchronize(stream_);
}

void DeviceSide::write(void* to, const void* from_host, std::int64_t bytes) {
  if (bytes == 0) return;
  device_->copy(to, from_host, bytes, stream_);
  device_->synchronize(stream_);
}

}  // namespace regatta
