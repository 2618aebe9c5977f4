#pragma once
// Sums of a strip of columns over the threads of a block. The threads agree on each column's bin (a maximum), then add
// their integers with atomics: exact, and the same in any order.

#include "kernels/cuda/block.cuh"

namespace regatta::kernels::cuda {

/// `mine` are a thread's sums of four columns, index_of(j) their places in the strip; threads that `speak` add theirs.
/// Every thread calls; when it returns the sums are complete.
template <bool with_largest, int most, class IndexOf>
REGATTA_DEVICE void merge_columns(SharedSums<most>& sums, int columns, ThreadSum* mine, const IndexOf& index_of,
                                  bool speak) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < columns) put_sum(sums, thread, ThreadSum());
  block_sync();
  if (speak) {
    REGATTA_UNROLL
    for (int j = 0; j < 4; ++j) {
      if (mine[j].bin == empty_bin) continue;
      shared_max(&sums.bin[index_of(j)], mine[j].bin);
      if constexpr (with_largest) shared_max(&sums.largest[index_of(j)], mine[j].largest);
    }
  }
  block_sync();
  if (speak) {
    REGATTA_UNROLL
    for (int j = 0; j < 4; ++j) {
      raise_to(mine[j], sums.bin[index_of(j)]);
      if (mine[j].hi != 0) shared_add(&sums.hi[index_of(j)], mine[j].hi);
      if (mine[j].lo != 0) shared_add(&sums.lo[index_of(j)], mine[j].lo);
    }
  }
  block_sync();
}

}  // namespace regatta::kernels::cuda
