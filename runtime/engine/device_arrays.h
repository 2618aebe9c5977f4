#pragma once
// Gradients in a device's memory, added up by its kernels. What the engine's thread asks for goes on the stream of the
// model's arithmetic, what happens in a reduction on that of the collective.

#include <vector>

#include "kernels/cuda/cuda_kernels.h"
#include "runtime/device/arena.h"
#include "runtime/engine/arrays.h"

namespace regatta {

class DeviceArrays final : public Arrays {
 public:
  static constexpr std::int64_t first_tiles = 64;  ///< room for figures at first; it grows to what the steps need

  /// `reductions` is the stream that collectives run on; null when they have none of their own. `device` outlives this.
  DeviceArrays(Device& device, StreamHandle stream, StreamHandle reductions);

  /// The stream of the model from now on. Requires finish() since the last gradient.
  void use_stream(StreamHandle stream);
  StreamHandle stream() const { return main_.stream; }

  Buffer allocate(std::int64_t bytes) override { return Buffer(bytes, &device_); }
  /// Of the device whatever the group's own memory is; a group of one rank sends nothing.
  SymmetricBuffer allocate_shared(Transport& group, std::int64_t bytes) override;
  void copy(void* to, const void* from, std::int64_t bytes) override;
  void zero(void* to, std::int64_t bytes) override;
  void accumulate(float* to, const void* from, DType dtype, std::int64_t count, bool overwrite) override;
  void reduce_trees(std::span<const TreeSum> sums, DType dtype) override;
  void finish(std::span<GradientFigures> figures) override;

  /// From now on finish() leaves the figures on the device and does not wait.
  void keep_figures() { keep_figures_ = true; }
  /// Where they are then, by parameter, for what follows on the stream of the reductions: that of the collectives, if
  /// they have one, or the model's.
  const kernels::cuda::TileFigures* figures() const { return results_.as<kernels::cuda::TileFigures>(); }
  StreamHandle reductions_stream(StreamHandle model) const { return own_stream_ ? reductions_.stream : model; }

 protected:
  void enter_reduction() override;
  void leave_reduction() override;

 private:
  struct Lane {  // one thread's
    StreamHandle stream = nullptr;
    UploadRing ring;
  };
  struct Wanted {
    GradientFigures* figures;
    kernels::cuda::TileRange tiles;
  };
  Lane& lane();
  kernels::cuda::TileFigures* room_for_tiles(std::int64_t count);
  void merge(std::span<GradientFigures> figures);

  Device& device_;
  Lane main_, reductions_;
  bool own_stream_, keep_figures_ = false;
  // Figures of the reductions since the last finish():
  Buffer tile_figures_;  // of each tile
  std::int64_t tile_count_ = 0;
  std::vector<Wanted> wanted_;
  Buffer results_;  // of each parameter, by the last finish()
  std::vector<kernels::cuda::TileFigures> landing_;
};

}  // namespace regatta
