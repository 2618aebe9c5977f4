// The kernels' own source, run by the emulator.

// clang-format off
#include "tests/kernels/cuda/emulator.h"
// clang-format on

#include <mutex>

#include "kernels/cuda/finish.cuh"
#include "kernels/cuda/flat.cuh"
#include "kernels/cuda/observe.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/update_columns.cuh"
#include "kernels/cuda/update_rows.cuh"
#include "kernels/cuda/vote.cuh"
#include "tests/kernels/cuda/emulated_launches.h"

namespace regatta::testing {
namespace {

using namespace kernels::cuda;  // the kernels under test
using F32Types = FixedTypes<DType::f32, DType::f32, DType::f32>;

bool all_f32(const Dtypes& d) { return d.grad == DType::f32 && d.momentum == DType::f32 && d.param == DType::f32; }

std::mutex one_at_a_time;  // the emulator is one machine; ranks that are threads take turns

template <class Args>
int run(void (*kernel)(Args), const Args& args, std::int64_t blocks, int threads, int cluster = 1,
        std::int64_t shared_bytes = 0) {
  std::lock_guard lock(one_at_a_time);
  emulated::run(kernel, args, blocks, threads, cluster, shared_bytes);
  return 0;
}

int emulate_update_rows(const UpdateRows& a, StreamHandle) {
  return run(all_f32(a.common.dtypes) ? update_rows_kernel<F32Types> : update_rows_kernel<AnyTypes>, a.common,
             a.common.tile_count * a.cluster, block_threads, a.cluster);
}
int emulate_update_long_rows(const RegLaunch& a, StreamHandle) {
  return run(all_f32(a.dtypes) ? update_long_rows_kernel<F32Types> : update_long_rows_kernel<AnyTypes>, a, a.tile_count,
             block_threads);
}
int emulate_update_columns(const UpdateColumns& a, StreamHandle) {
  return run(all_f32(a.common.dtypes) ? update_columns_kernel<F32Types> : update_columns_kernel<AnyTypes>,
             {a.common, a.strip}, a.common.tile_count * a.cluster, strip_threads, a.cluster, a.shared_bytes);
}
int emulate_observe(const Observe& a, StreamHandle) {
  const bool rows = a.line == Line::row;
  auto* kernel = rows ? observe_rows_kernel<AnyTypes, true, false> : observe_columns_kernel<AnyTypes, true, false>;
  if (a.earlier_count > 0)
    kernel = rows ? observe_rows_kernel<AnyTypes, false, false> : observe_columns_kernel<AnyTypes, false, false>;
  if (a.magnitudes) {
    kernel = rows ? observe_rows_kernel<AnyTypes, true, true> : observe_columns_kernel<AnyTypes, true, true>;
    if (a.earlier_count > 0)
      kernel = rows ? observe_rows_kernel<AnyTypes, false, true> : observe_columns_kernel<AnyTypes, false, true>;
  }
  return run(kernel, {a.common, a.earlier_count}, a.common.tile_count, block_threads);
}
int emulate_apply(const RegLaunch& a, StreamHandle) {
  return run(all_f32(a.dtypes) ? apply_kernel<F32Types> : apply_kernel<AnyTypes>, a, a.tile_count, block_threads);
}
int emulate_adamw(const Adamw& a, StreamHandle) {
  return run(all_f32(a.dtypes) ? adamw_kernel<F32Types> : adamw_kernel<AnyTypes>, a, a.tile_count, block_threads);
}
int emulate_finish_lines(const FinishLines& a, StreamHandle) {
  return run(finish_lines_kernel, a, a.tile_count, block_threads);
}
int emulate_sum_blocks(const BlockItem* items, std::int64_t count, StreamHandle) {
  return run(sum_blocks_kernel, {items}, count, block_threads);
}
int emulate_make_steps(const MakeSteps& a, StreamHandle) {
  return run(make_steps_kernel, a, a.tile_count, block_threads);
}
int emulate_copy_words(const CopyItem* items, const Tile* tiles, std::int64_t tile_count, StreamHandle) {
  return run(copy_words_kernel, {items, tiles}, tile_count, block_threads);
}
int emulate_reduce_tree(const ReduceTree& a, StreamHandle) {
  return run(reduce_tree_kernel, a, a.tile_count, block_threads);
}
int emulate_cast(const Cast& a, StreamHandle) { return run(cast_kernel, a, a.tile_count, block_threads); }
int emulate_merge_health(const MergeItem* items, std::int64_t count, const TileRange* ranges,
                         const kernels::SweepHealth* tiles, kernels::SweepHealth* results, StreamHandle) {
  return run(merge_figures_kernel<kernels::SweepHealth>, {items, ranges, tiles, results}, count, block_threads);
}
int emulate_merge_figures(const MergeItem* items, std::int64_t count, const TileRange* ranges, const TileFigures* tiles,
                          TileFigures* results, StreamHandle) {
  return run(merge_figures_kernel<TileFigures>, {items, ranges, tiles, results}, count, block_threads);
}
int emulate_write_vote(const WriteVote& a, StreamHandle) { return run(write_vote_kernel, a, 1, block_threads); }
int emulate_decide(const Decide& a, StreamHandle) { return run(decide_kernel, a, 1, block_threads); }

}  // namespace

const LaunchTable& emulated_launches() {
  static constexpr LaunchTable table = {emulate_update_rows,    emulate_update_long_rows,
                                        emulate_update_columns, emulate_observe,
                                        emulate_apply,          emulate_adamw,
                                        emulate_finish_lines,   emulate_sum_blocks,
                                        emulate_make_steps,     emulate_copy_words,
                                        emulate_reduce_tree,    emulate_cast,
                                        emulate_merge_health,   emulate_merge_figures,
                                        emulate_write_vote,     emulate_decide};
  return table;
}

}  // namespace regatta::testing
