// The kernels' own source, run by the emulator.

// clang-format off
#include "tests/kernels/cuda/emulator.h"
// clang-format on

#include "kernels/cuda/finish.cuh"
#include "kernels/cuda/flat.cuh"
#include "kernels/cuda/observe.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/update_columns.cuh"
#include "kernels/cuda/update_rows.cuh"
#include "tests/kernels/cuda/machine.h"

namespace regatta::testing {
namespace {

using namespace kernels::cuda;  // the kernels under test
using F32Types = FixedTypes<DType::f32, DType::f32, DType::f32>;

bool all_f32(const Dtypes& d) { return d.grad == DType::f32 && d.momentum == DType::f32 && d.param == DType::f32; }

class EmulatedMachine final : public Machine {
 public:
  DeviceLimits limits() override { return {90, 8, 232448, 4}; }
  void* allocate(std::int64_t bytes) override {
    blocks_.push_back(std::make_unique<Chunk[]>(bytes / sizeof(Chunk) + 1));
    std::memset(static_cast<void*>(blocks_.back().get()), 0x5a, (bytes / sizeof(Chunk) + 1) * sizeof(Chunk));
    return blocks_.back().get();
  }
  void write(void* to, const void* from, std::int64_t bytes) override { std::memcpy(to, from, bytes); }
  void read(void* to, const void* from, std::int64_t bytes) override { std::memcpy(to, from, bytes); }
  void free_all() override { blocks_.clear(); }

  void update_rows(const UpdateRows& a) override {
    emulated::run(all_f32(a.common.dtypes) ? update_rows_kernel<F32Types> : update_rows_kernel<AnyTypes>, a.common,
                  a.common.tile_count * a.cluster, block_threads, a.cluster);
  }
  void update_long_rows(const RegLaunch& a) override {
    emulated::run(all_f32(a.dtypes) ? update_long_rows_kernel<F32Types> : update_long_rows_kernel<AnyTypes>, a,
                  a.tile_count, block_threads);
  }
  void update_columns(const UpdateColumns& a) override {
    emulated::run(all_f32(a.common.dtypes) ? update_columns_kernel<F32Types> : update_columns_kernel<AnyTypes>,
                  {a.common, a.strip}, a.common.tile_count * a.cluster, strip_threads, a.cluster, a.shared_bytes);
  }
  void observe(const Observe& a) override {
    const bool rows = a.line == Line::row;
    auto* kernel = rows ? observe_rows_kernel<AnyTypes, true, false> : observe_columns_kernel<AnyTypes, true, false>;
    if (a.earlier_count > 0)
      kernel = rows ? observe_rows_kernel<AnyTypes, false, false> : observe_columns_kernel<AnyTypes, false, false>;
    if (a.magnitudes) {
      kernel = rows ? observe_rows_kernel<AnyTypes, true, true> : observe_columns_kernel<AnyTypes, true, true>;
      if (a.earlier_count > 0)
        kernel = rows ? observe_rows_kernel<AnyTypes, false, true> : observe_columns_kernel<AnyTypes, false, true>;
    }
    emulated::run(kernel, {a.common, a.earlier_count}, a.common.tile_count, block_threads);
  }
  void apply(const RegLaunch& a) override {
    emulated::run(all_f32(a.dtypes) ? apply_kernel<F32Types> : apply_kernel<AnyTypes>, a, a.tile_count, block_threads);
  }
  void adamw(const Adamw& a) override {
    emulated::run(all_f32(a.dtypes) ? adamw_kernel<F32Types> : adamw_kernel<AnyTypes>, a, a.tile_count, block_threads);
  }
  void finish_lines(const FinishLines& a) override {
    emulated::run(finish_lines_kernel, a, a.tile_count, block_threads);
  }
  void sum_blocks(const BlockItem* items, std::int64_t count) override {
    emulated::run(sum_blocks_kernel, {items}, count, block_threads);
  }
  void make_steps(const MakeSteps& a) override { emulated::run(make_steps_kernel, a, a.tile_count, block_threads); }
  void copy_words(const CopyItem* items, const Tile* tiles, std::int64_t tile_count) override {
    emulated::run(copy_words_kernel, {items, tiles}, tile_count, block_threads);
  }
  void reduce_tree(const ReduceTree& a) override { emulated::run(reduce_tree_kernel, a, a.tile_count, block_threads); }
  void cast(const Cast& a) override { emulated::run(cast_kernel, a, a.tile_count, block_threads); }
  void merge_health(const MergeItem* items, std::int64_t count, const TileRange* ranges,
                    const kernels::SweepHealth* tiles, kernels::SweepHealth* results) override {
    emulated::run(merge_figures_kernel<kernels::SweepHealth>, {items, ranges, tiles, results}, count, block_threads);
  }
  void merge_figures(const MergeItem* items, std::int64_t count, const TileRange* ranges, const TileFigures* tiles,
                     TileFigures* results) override {
    emulated::run(merge_figures_kernel<TileFigures>, {items, ranges, tiles, results}, count, block_threads);
  }

 private:
  struct alignas(256) Chunk {
    char bytes[256];
  };
  std::vector<std::unique_ptr<Chunk[]>> blocks_;
};

}  // namespace

Machine* machine(std::string&) {
  static EmulatedMachine machine;
  return &machine;
}

}  // namespace regatta::testing
