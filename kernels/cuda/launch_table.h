#pragma once
// The launches of cuda_kernels.h as a table, so that what sweeps on a device can be given another maker of the same
// results: the tests put an emulator of blocks and threads there. Each entry does what the function of its name does.

#include "kernels/cuda/cuda_kernels.h"

namespace regatta::kernels::cuda {

struct LaunchTable {
  int (*update_rows)(const UpdateRows&, StreamHandle);
  int (*update_long_rows)(const RegLaunch&, StreamHandle);
  int (*update_columns)(const UpdateColumns&, StreamHandle);
  int (*observe)(const Observe&, StreamHandle);
  int (*apply)(const RegLaunch&, StreamHandle);
  int (*adamw)(const Adamw&, StreamHandle);
  int (*finish_lines)(const FinishLines&, StreamHandle);
  int (*sum_blocks)(const BlockItem*, std::int64_t count, StreamHandle);
  int (*make_steps)(const MakeSteps&, StreamHandle);
  int (*copy_words)(const CopyItem*, const Tile*, std::int64_t tile_count, StreamHandle);
  int (*reduce_tree)(const ReduceTree&, StreamHandle);
  int (*cast)(const Cast&, StreamHandle);
  int (*merge_health)(const MergeItem*, std::int64_t count, const TileRange*, const SweepHealth*, SweepHealth*,
                      StreamHandle);
  int (*merge_figures)(const MergeItem*, std::int64_t count, const TileRange*, const TileFigures*, TileFigures*,
                       StreamHandle);
  int (*write_vote)(const WriteVote&, StreamHandle);
  int (*decide)(const Decide&, StreamHandle);
};

/// The launches on CUDA devices; they return not_built in a build without CUDA.
const LaunchTable& launch_table();

}  // namespace regatta::kernels::cuda
