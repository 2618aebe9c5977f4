#pragma once
// The sweeps of a step on a device, as launches that are put together once from the rank's works: elements, closed rows
// and closed columns in one sweep each, everything else through DeviceLines. A step only says which of them run;
// nothing in it allocates or, but for messages over the host's memory and the health figures at the end, waits for the
// device.
//
// Driven by the engine's thread. Made anew when rules change.

#include <memory>
#include <vector>

#include "runtime/engine/device_lines.h"
#include "runtime/rules/rule.h"

namespace regatta {

class DeviceSweep {
 public:
  struct Inputs {
    const sharding::Plan& plan;
    int rank = 0;
    std::span<const Work> works;  ///< gradients bound; they outlive this
    std::span<const Rule* const> rule_of_param;
    std::vector<const Rule*> rule_of_group;
    DType momentum_dtype = DType::f32;
    bool direct = false;     ///< the world's transport takes device memory
    bool one_stage = false;  ///< nothing is gathered: all buckets in as few launches as there are
  };
  DeviceSweep(const Inputs& inputs, Device& device);

  /// The numbers of a step. Requires that the step before has ended on the device.
  void begin(std::span<const StepInfo> infos);
  /// Puts them on the device.
  void send_numbers(StreamHandle stream);
  kernels::cuda::RegScalars* reg_scalars() const { return scalars_.as<kernels::cuda::RegScalars>(); }
  kernels::cuda::AdamwScalars* adamw_scalars() const {
    return reinterpret_cast<kernels::cuda::AdamwScalars*>(reg_scalars() + rule_of_group_.size());
  }
  std::int64_t groups() const { return std::ssize(rule_of_group_); }
  DeviceLines& lines() { return *lines_; }
  /// The one-sweep updates of a bucket, or of more buckets at once; each runs once a step.
  void update(int bucket, StreamHandle stream);
  /// The last sweep of its open lines, once the answers are here; likewise.
  void apply(int bucket, StreamHandle stream);
  /// All sweeps of a step that sends no lines and gathers nothing. Requires one stage.
  void run_alone(StreamHandle stream);
  /// The figures, behind the sweeps, and once they are here.
  DeviceHealth& health() { return health_; }

 private:
  struct Stage {
    std::vector<DeviceLaunch> update, apply;
    bool updated = false, applied = false;
  };
  Stage& stage_of(int bucket) { return stages_[one_stage_ ? 0 : static_cast<std::size_t>(bucket)]; }
  bool in_one_sweep(const Work& work) const;
  void add_elements(Stage& stage, std::span<const Work* const> works);
  void add_rows(Stage& stage, std::span<const Work* const> works, const kernels::cuda::Dtypes& dtypes);
  void add_columns(Stage& stage, std::span<const Work* const> works, const kernels::cuda::Dtypes& dtypes);

  Device& device_;
  kernels::cuda::DeviceLimits limits_;
  std::span<const Rule* const> rule_of_param_;
  std::vector<const Rule*> rule_of_group_;
  DType momentum_dtype_;
  bool one_stage_;
  DeviceArena arena_;
  DeviceHealth health_;
  Buffer scalars_host_;  // pinned: RegScalars of every group, then AdamwScalars
  Buffer scalars_;
  std::unique_ptr<DeviceLines> lines_;
  std::vector<Stage> stages_;
};

}  // namespace regatta
