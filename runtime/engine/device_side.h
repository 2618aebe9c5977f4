#pragma once
// What an engine has besides when its rank's parameters, gradients and state lie on a device: the stream, the sweeps,
// and the copies through the host for transports that cannot read the device. The engine's steps are the same; it asks
// here where the CPU would compute. Driven by the engine's thread.

#include <memory>
#include <vector>

#include "runtime/device/device.h"
#include "runtime/engine/device_arrays.h"
#include "runtime/engine/device_sweep.h"
#include "runtime/engine/device_vote.h"
#include "runtime/engine/gradients.h"
#include "runtime/engine/staged_arrays.h"

namespace regatta {

class DeviceSide {
 public:
  /// `graph`: EngineOptions::device_graph.
  DeviceSide(std::shared_ptr<Device> device, const sharding::Plan& plan, int rank, Transport& world,
             const Transport& dp_group, bool graph);

  Device& device() { return *device_; }
  StreamHandle stream() const { return stream_; }
  void use_stream(StreamHandle stream);

  /// What adds up the gradients: the device, or the host when the gradients' transport cannot read the device.
  Arrays& gradient_arrays() { return staged_gradients_ ? static_cast<Arrays&>(staged_arrays_) : *arrays_; }
  DeviceArrays& arrays() { return *arrays_; }
  /// The copies that go through the host.
  bool staged_gradients() const { return staged_gradients_; }
  /// A gradient on the host, when it is to be reduced there; valid until the next call.
  const void* on_host(const void* grad, std::int64_t bytes);
  /// Once they are reduced: this rank's chunk of each bucket goes to the device.
  void take_gradients(const Gradients& gradients);
  Gradients::Reduced reduced(const Gradients& gradients, int bucket) const;

  void make_sweep(std::span<const Work> works, std::span<const Rule* const> rule_of_param,
                  std::vector<const Rule*> rule_of_group, DType momentum_dtype);
  void rules_changed() {
    graph_ = {};
    sweep_.reset();
    steps_ = 0;
  }
  bool has_sweep() const { return sweep_ != nullptr; }
  DeviceSweep& sweep() { return *sweep_; }

  /// Null where the host decides whether a step happens.
  DeviceVote* vote() { return vote_.get(); }
  /// Whether the whole step is launches in a row: one rank, whose transport has no stream of its own.
  bool alone() const { return alone_; }
  /// The whole step, from the vote to the health figures. Requires alone(), and begin() of the sweep before.
  void run_alone();

  /// Blocking, either way between the host and the device.
  void read(void* to_host, const void* from, std::int64_t bytes);
  void write(void* to, const void* from_host, std::int64_t bytes);

 private:
  std::shared_ptr<Device> device_;  // shared by the ranks of the process
  const sharding::Plan& plan_;
  int rank_, dp_rank_;
  Transport& world_;
  bool staged_gradients_, direct_world_, gathers_nothing_, alone_, wants_graph_;
  StreamHandle stream_ = nullptr;
  StagedArrays staged_arrays_;
  std::unique_ptr<DeviceArrays> arrays_;
  Buffer landing_;               // pinned: one gradient on its way
  std::vector<Buffer> reduced_;  // by bucket, when gradients are reduced on the host
  std::unique_ptr<DeviceVote> vote_;
  std::unique_ptr<DeviceSweep> sweep_;
  Graph graph_;             // of run_alone()
  std::int64_t steps_ = 0;  // of this sweep
};

}  // namespace regatta
