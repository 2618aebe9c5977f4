#pragma once
// Where gradients lie and who adds them up: the host's memory and kernels, or a device's. What a device does goes on
// behind the caller's back, in call order; finish() waits for it.
//
// Driven by the engine's thread; while a Reduction lives on the communication thread, what that thread asks for may run
// beside the rest.

#include <cstring>
#include <span>

#include "kernels/kernels.h"
#include "runtime/device/buffer.h"
#include "runtime/transport/transport.h"

namespace regatta {

/// Figures of the reduced gradient of one parameter on this rank.
struct GradientFigures {
  kernels::WholeSum squares;
  std::int64_t non_finite = 0;
};

/// One stretch of gradients from all ranks that is added up: ReduceTreeArgs.
struct TreeSum {
  std::span<const void* const> pieces;
  std::int64_t count = 0;
  float* out = nullptr;
  GradientFigures* figures = nullptr;  ///< added to, at the latest by finish(); null if not wanted
};

class Arrays {
 public:
  virtual ~Arrays() = default;
  virtual Buffer allocate(std::int64_t bytes) = 0;
  /// Memory for the collectives of `group`. Collective.
  virtual SymmetricBuffer allocate_shared(Transport& group, std::int64_t bytes) = 0;
  virtual void copy(void* to, const void* from, std::int64_t bytes) = 0;
  virtual void zero(void* to, std::int64_t bytes) = 0;
  /// KernelTable::accumulate.
  virtual void accumulate(float* to, const void* from, DType dtype, std::int64_t count, bool overwrite) = 0;
  /// `dtype` is that of all pieces.
  virtual void reduce_trees(std::span<const TreeSum> sums, DType dtype) = 0;
  /// Returns when all reductions have ended and their figures are there: all that were given are among these, those of
  /// all parameters. Not while a Reduction lives.
  virtual void finish(std::span<GradientFigures> figures) = 0;

  /// While it lives, the thread that made it works on the result of a collective.
  class Reduction {
   public:
    explicit Reduction(Arrays& arrays) : arrays_(arrays) { arrays_.enter_reduction(); }
    ~Reduction() { arrays_.leave_reduction(); }
    Reduction(const Reduction&) = delete;
    Reduction& operator=(const Reduction&) = delete;

   private:
    Arrays& arrays_;
  };

 protected:
  virtual void enter_reduction() {}
  virtual void leave_reduction() {}
};

class HostArrays : public Arrays {
 public:
  explicit HostArrays(const kernels::KernelTable& kernels) : kernels_(kernels) {}
  Buffer allocate(std::int64_t bytes) override { return Buffer(bytes); }
  SymmetricBuffer allocate_shared(Transport& group, std::int64_t bytes) override { return group.allocate(bytes); }
  void copy(void* to, const void* from, std::int64_t bytes) override {
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
  }
  void zero(void* to, std::int64_t bytes) override { std::memset(to, 0, static_cast<std::size_t>(bytes)); }
  void accumulate(float* to, const void* from, DType dtype, std::int64_t count, bool overwrite) override {
    kernels_.accumulate(to, from, dtype, count, overwrite);
  }
  void reduce_trees(std::span<const TreeSum> sums, DType dtype) override {
    for (const TreeSum& sum : sums)
      kernels_.reduce_tree({sum.pieces.data(), static_cast<int>(sum.pieces.size()), dtype, sum.count, sum.out,
                            sum.figures != nullptr ? &sum.figures->squares : nullptr,
                            sum.figures != nullptr ? &sum.figures->non_finite : nullptr});
  }
  void finish(std::span<GradientFigures>) override {}

 private:
  const kernels::KernelTable& kernels_;
};

}  // namespace regatta
