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
  void reduce_tree(std::span<const void* const> pieces, DType dtype, std::int64_t count, float* out,
                   GradientFigures* figures) override;
  void finish() override;

 protected:
  void enter_reduction() override;
  void leave_reduction() override;

 private:
  struct Lane {  // one thread's
    StreamHandle stream = nullptr;
    UploadRing ring;
    Buffer tile_figures;
    Buffer results;  // TileFigures, one per reduction since the last finish()
    std::vector<GradientFigures*> wanted;
  };
  Lane& lane();
  void take_figures(Lane& lane);

  Device& device_;
  Lane main_, reductions_;
  bool own_stream_;
};

}  // namespace regatta
