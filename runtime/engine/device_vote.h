#pragma once
// Vote (vote.h) without the host: the device writes this rank's part, sends it, decides, and the host reads afterwards
// what was decided. For transports whose messages are ordered by streams, and for one rank, which sends none. Driven by
// the engine's thread.

#include <vector>

#include "kernels/cuda/cuda_kernels.h"
#include "runtime/device/arena.h"
#include "runtime/engine/command.h"
#include "runtime/engine/device_arrays.h"
#include "runtime/transport/transport.h"
#include "sharding/plan.h"

namespace regatta {

class DeviceVote {
 public:
  DeviceVote(const sharding::Plan& plan, int rank, Device& device);

  /// What the next send() and decide() use. Requires that the step before has ended on the device.
  void prepare(const Command& command, const kernels::cuda::DecideNumbers& numbers);
  /// Behind the figures of the gradients; what follows on `stream` comes after the votes of all ranks.
  void send(Transport& world, DeviceArrays& arrays, StreamHandle stream);
  /// Puts the decision into the numbers of every group, which lie on the device.
  void decide(kernels::cuda::RegScalars* reg, kernels::cuda::AdamwScalars* adamw, std::int64_t groups,
              StreamHandle stream);
  /// The votes of all ranks, by rank, once the stream of decide() has got there.
  std::span<const std::byte> votes() const { return {landing_.data(), static_cast<std::size_t>(landing_.bytes())}; }

 private:
  Device& device_;
  int rank_;
  DeviceArena arena_;
  std::int64_t params_;
  std::vector<std::int64_t> bytes_;  // by rank
  Buffer mine_, all_;                // one rank's is in `all_`
  Buffer landing_;                   // pinned: all_ on the host
  Buffer from_host_, on_device_;     // pinned, and where it goes: DecideNumbers, then the command
  double* squares_;
  kernels::cuda::WriteVote write_;
  kernels::cuda::Decide decide_;
  Event written_;
};

}  // namespace regatta
