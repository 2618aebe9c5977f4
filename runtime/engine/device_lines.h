#pragma once
// The lines of a rank's works on a device that no one-sweep update takes: statistics of each pass, the lines finished
// here, and the exchange of those that other ranks hold parts of. What LineExchange and work.h do on the CPU, as
// launches that are put together once. Driven by the engine's thread.

#include <memory>
#include <vector>

#include "runtime/engine/device_lists.h"
#include "runtime/rules/rule.h"
#include "runtime/transport/transport.h"
#include "sharding/plan.h"

namespace regatta {

class DeviceLines {
 public:
  struct Inputs {
    const sharding::Plan& plan;
    int rank = 0;
    std::vector<const Work*> works;  ///< none that is updated in one sweep; gradients bound; all outlive this
    std::span<const Rule* const> rule_of_param;
    DType momentum_dtype = DType::f32;
    const kernels::cuda::RegScalars* scalars = nullptr;  ///< on the device, by group
    bool direct = false;                                 ///< the world's transport takes device memory
  };
  DeviceLines(const Inputs& inputs, Device& device, DeviceArena& arena, DeviceHealth& health);

  int rounds() const { return static_cast<int>(rounds_.size()); }
  void observe(int round, StreamHandle stream);
  bool exchange_needed(int round) const;
  Ticket send_partials(int round, Transport& world, StreamHandle stream);
  /// Once the partials are here.
  Ticket send_answers(int round, Transport& world, StreamHandle stream);
  /// Once the answers are here.
  void take_answers(int round, StreamHandle stream);
  /// The launches of the last sweep over works of the buckets that `takes` accepts.
  template <class Takes>
  std::vector<DeviceLaunch> apply(const Takes& takes) {
    std::vector<std::size_t> chosen;
    for (std::size_t w = 0; w < works_.size(); ++w)
      if (takes(works_[w].work->bucket)) chosen.push_back(w);
    return apply_launches(chosen);
  }

 private:
  struct Pass {
    kernels::LineSum* partials = nullptr;
    kernels::LineSum* merged = nullptr;  // null when all lines of the pass are finished here
    float* inverse = nullptr;            // of the last pass, the steps in the end
    std::int64_t parts = 0;
  };
  struct LineWork {
    const Work* work = nullptr;
    const Rule* rule = nullptr;
    std::vector<Pass> passes;
    const kernels::LineFactors* factors = nullptr;
    float* terms = nullptr;  // the three are null unless the step is measured over the block
    kernels::LineSum* block_sum = nullptr;
    double* block_value = nullptr;
  };
  struct Box {  // what travels in one direction
    std::int64_t send_total = 0, receive_total = 0;
    std::vector<std::int64_t> send_bytes, receive_bytes;  // by rank
    Buffer send, receive;                                 // on the device
    Buffer send_host, receive_host;                       // pinned; empty when the transport takes device memory
    std::string label;
  };
  struct Round {
    std::vector<DeviceLaunch> observe, pack_partials, pack_answers, take;
    bool needed = false;
    Box partials, answers;
  };
  struct Held {  // a share that this rank holds a part of
    const sharding::Share* share;
    LineWork* work;
    bool block;
    std::int64_t offset, count;
    const Pass* pass;
  };

  void allocate_works(const Inputs& inputs);
  void make_observe(int round);
  void make_finish(int round);
  void make_exchange(int round);
  std::vector<Held> held_shares(int round);
  void size_boxes(Round& round, std::span<const Held> held) const;
  void make_owner(Round& round, std::span<const Held> held);
  void add_finish(std::vector<DeviceLaunch>& to, const std::vector<kernels::cuda::FinishItem>& items,
                  const std::vector<int>& params);
  void add_copies(std::vector<DeviceLaunch>& to, const std::vector<kernels::cuda::CopyItem>& items);
  kernels::cuda::FinishItem finish_item(const LineWork& work, int pass, std::int64_t offset, std::int64_t count) const;
  std::vector<DeviceLaunch> apply_launches(std::span<const std::size_t> chosen);
  Ticket send(Box& box, Transport& world, StreamHandle stream);
  void land(Box& box, StreamHandle stream);
  int counted(const Work& work) const { return work.primary ? work.param : -1; }

  Device& device_;
  DeviceArena& arena_;
  DeviceHealth& health_;
  const sharding::Plan& plan_;
  int rank_;
  DType momentum_dtype_;
  const kernels::cuda::RegScalars* scalars_;
  bool direct_;
  std::vector<LineWork> works_;
  std::vector<Round> rounds_;
};

}  // namespace regatta
