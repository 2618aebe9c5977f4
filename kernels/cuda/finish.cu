#include "kernels/cuda/finish.cuh"

#include "kernels/cuda/launch.h"

namespace regatta::kernels::cuda {

int finish_lines(const FinishLines& args, StreamHandle stream) {
  return launch(finish_lines_kernel, args, args.tile_count, block_threads, stream);
}

int sum_blocks(const BlockItem* items, std::int64_t count, StreamHandle stream) {
  return launch(sum_blocks_kernel, SumBlocks{items}, count, block_threads, stream);
}

int make_steps(const MakeSteps& args, StreamHandle stream) {
  return launch(make_steps_kernel, args, args.tile_count, block_threads, stream);
}

int copy_words(const CopyItem* items, const Tile* tiles, std::int64_t tile_count, StreamHandle stream) {
  return launch(copy_words_kernel, CopyWords{items, tiles}, tile_count, block_threads, stream);
}

int merge_health(const MergeItem* items, std::int64_t count, const TileRange* ranges, const SweepHealth* tiles,
                 SweepHealth* results, StreamHandle stream) {
  return launch(merge_figures_kernel<SweepHealth>, MergeArgs<SweepHealth>{items, ranges, tiles, results}, count,
                block_threads, stream);
}

int merge_figures(const MergeItem* items, std::int64_t count, const TileRange* ranges, const TileFigures* tiles,
                  TileFigures* results, StreamHandle stream) {
  return launch(merge_figures_kernel<TileFigures>, MergeArgs<TileFigures>{items, ranges, tiles, results}, count,
                block_threads, stream);
}

}  // namespace regatta::kernels::cuda
