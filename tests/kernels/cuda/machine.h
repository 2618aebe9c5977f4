#pragma once
// What runs the launches of kernels/cuda under test: a device, or the emulator. A program links one of the two.

#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_kernels.h"

namespace regatta::testing {

namespace cuda = kernels::cuda;

/// Functions throw std::runtime_error when the machine reports an error.
class Machine {
 public:
  virtual ~Machine() = default;
  virtual cuda::DeviceLimits limits() = 0;
  virtual void* allocate(std::int64_t bytes) = 0;  ///< freed with the machine; at a 256-byte boundary
  virtual void write(void* to, const void* from, std::int64_t bytes) = 0;
  virtual void read(void* to, const void* from, std::int64_t bytes) = 0;
  virtual void free_all() = 0;

  virtual void update_rows(const cuda::UpdateRows&) = 0;
  virtual void update_long_rows(const cuda::RegLaunch&) = 0;
  virtual void update_columns(const cuda::UpdateColumns&) = 0;
  virtual void observe(const cuda::Observe&) = 0;
  virtual void apply(const cuda::RegLaunch&) = 0;
  virtual void adamw(const cuda::Adamw&) = 0;
  virtual void finish_lines(const cuda::FinishLines&) = 0;
  virtual void sum_blocks(const cuda::BlockItem*, std::int64_t count) = 0;
  virtual void make_steps(const cuda::MakeSteps&) = 0;
  virtual void copy_words(const cuda::CopyItem*, const cuda::Tile*, std::int64_t tile_count) = 0;
  virtual void reduce_tree(const cuda::ReduceTree&) = 0;
  virtual void cast(const cuda::Cast&) = 0;
  virtual void merge_health(const cuda::MergeItem*, std::int64_t count, const cuda::TileRange*,
                            const kernels::SweepHealth*, kernels::SweepHealth*) = 0;
  virtual void merge_figures(const cuda::MergeItem*, std::int64_t count, const cuda::TileRange*,
                             const cuda::TileFigures*, cuda::TileFigures*) = 0;
};

/// The machine of this program; null with a reason where there is none.
Machine* machine(std::string& why_not);

}  // namespace regatta::testing
