#pragma once
// From the trainer's gradients to this rank's reduced chunk: accumulates micro-batches, starts each bucket's
// reduce-scatter when it is full, adds the ranks' parts as a tree, and takes squares and non-finite counts in the same
// pass.
//
// Driven by the engine's thread; the additions of a reduce-scatter run on the communication thread. Buckets are
// launched strictly in plan order, so all ranks queue the same collectives.

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "runtime/device/buffer.h"
#include "runtime/engine/accumulator.h"
#include "runtime/engine/arrays.h"
#include "runtime/transport/transport.h"
#include "sharding/plan.h"

namespace regatta {

class Gradients {
 public:
  static constexpr int staging_slots = 2;  ///< buckets of gradients in memory at a time (zero2)

  struct Settings {
    int micro_batches = 1;
    bool tree = false;
    bool reduce_each = false;  ///< zero2: reduce every micro-batch, keep whole buckets only while they travel
  };
  using Figures = GradientFigures;
  /// This rank's chunk of a bucket; data points at its first element.
  struct Reduced {
    const void* data = nullptr;
    DType dtype = DType::f32;
  };

  /// `arrays` outlives it.
  Gradients(const sharding::Plan& plan, int rank, Transport& dp_group, Settings settings, Arrays& arrays);

  void add(int param, const void* grad, DType dtype);
  /// Completes the step's reductions; missing gradients count as zero. Returns when reduced() and figures() are valid.
  void finish();
  /// Forgets the step. Requires finish() before.
  void begin_step();

  Reduced reduced(int bucket) const;
  std::span<const Figures> figures() const { return figures_; }
  /// Busy time of the communication thread in this step's reductions. Requires finish() before.
  std::int64_t busy_ns() const { return busy_ns_; }
  /// Memory of gradients on this rank: buckets, accumulation levels, staging.
  std::int64_t bytes() const;

 private:
  struct Segment {  // consecutive elements of the rank's chunk that belong to one parameter
    int param;
    std::int64_t begin, end;  // of the bucket
  };
  struct Slot {  // memory that travels; zero1 has one per bucket, zero2 two that buckets take turns in
    SymmetricBuffer memory;
    Ticket ticket;
    int bucket = -1;
  };
  struct Bucket {
    const sharding::BucketLayout* layout = nullptr;
    DType wire = DType::f32;
    std::vector<std::int64_t> bounds_bytes;
    std::vector<Segment> segments;
    std::string label;
    int slot = -1;
    int missing = 0;   // gradients until it is full
    int reducing = 0;  // zero2: the micro-batch under way
    Buffer reduced;    // fp32 chunk, when it can't stay in the slot
    Buffer incoming;   // zero2: the chunk of one micro-batch
    Accumulator accumulator;
  };

  struct Parked {
    Buffer memory;
    bool filled = false;
  };

  // Several micro-batches add up in the bucket before it travels (zero1).
  bool accumulates_before_reduction() const { return settings_.micro_batches > 1 && !settings_.reduce_each; }
  std::byte* slot_data(const Bucket& bucket) const { return slots_[bucket.slot].memory.data(); }
  void put(Bucket& bucket, int param, int k, const void* grad, DType dtype);
  void take_slots();
  void launch_full();
  void launch(int bucket);
  void finish_micro_batch();
  void free_slot(Slot& slot);
  void reduce(Bucket& bucket, std::span<const std::byte* const> pieces, std::int64_t begin, std::int64_t end);

  const sharding::Plan& plan_;
  int rank_;
  Transport& group_;
  Settings settings_;
  Arrays& arrays_;
  std::vector<Bucket> buckets_;
  std::vector<Slot> slots_;
  std::vector<int> added_;      // gradients so far, by parameter
  std::vector<Parked> parked_;  // zero2: gradients that wait for a slot, by parameter
  std::vector<Figures> figures_;
  std::vector<const void*> pieces_;      // scratch of reduce(), as is
  std::vector<TreeSum> sums_;            // this
  int micro_batch_ = 0;                  // zero2: the one being reduced
  int next_slot_ = 0, next_launch_ = 0;  // buckets of the current reduction, in plan order
  std::int64_t busy_ns_ = 0;
};

}  // namespace regatta
