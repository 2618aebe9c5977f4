// Stands in for the CUDA kernels where there is no CUDA compiler.

#include "kernels/cuda/cuda_kernels.h"

namespace regatta::kernels::cuda {

bool built() { return false; }
std::string error_text(int code) {
  return code == not_built ? "this build has no CUDA kernels" : "no CUDA error " + std::to_string(code);
}
int device_limits(DeviceLimits&) { return not_built; }
int update_rows(const UpdateRows&, StreamHandle) { return not_built; }
int update_long_rows(const RegLaunch&, StreamHandle) { return not_built; }
int update_columns(const UpdateColumns&, StreamHandle) { return not_built; }
int observe(const Observe&, StreamHandle) { return not_built; }
int apply(const RegLaunch&, StreamHandle) { return not_built; }
int adamw(const Adamw&, StreamHandle) { return not_built; }
int finish_lines(const FinishLines&, StreamHandle) { return not_built; }
int sum_blocks(const BlockItem*, std::int64_t, StreamHandle) { return not_built; }
int make_steps(const MakeSteps&, StreamHandle) { return not_built; }
int copy_words(const CopyItem*, const Tile*, std::int64_t, StreamHandle) { return not_built; }
int reduce_tree(const ReduceTree&, StreamHandle) { return not_built; }
int cast(const Cast&, StreamHandle) { return not_built; }
int merge_health(const MergeItem*, std::int64_t, const TileRange*, const SweepHealth*, SweepHealth*, StreamHandle) {
  return not_built;
}
int merge_figures(const MergeItem*, std::int64_t, const TileRange*, const TileFigures*, TileFigures*, StreamHandle) {
  return not_built;
}
int write_vote(const WriteVote&, StreamHandle) { return not_built; }
int decide(const Decide&, StreamHandle) { return not_built; }

}  // namespace regatta::kernels::cuda
