#pragma once
// What a block of threads does together: shuffles, sums in a fixed order, and its cluster. The tests put an emulator of
// these few names in its place (tests/kernels/cuda/emulator.h) and run the kernels on the host.

#include <type_traits>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/line_sum.cuh"

#if defined(__CUDACC__)

#define REGATTA_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define REGATTA_DEVICE __device__ inline
// Shared memory of the block; the type must be trivial.
#define REGATTA_SHARED(Type, name) __shared__ std::type_identity_t<Type> name
#define REGATTA_DYNAMIC_SHARED(name) extern __shared__ uint4 name[]

namespace regatta::kernels::cuda {

template <class T>
__device__ inline T lane_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffU, value, mask);
}
__device__ inline void block_sync() { __syncthreads(); }
/// A pointer out of a descriptor could point anywhere, for all the compiler knows; accesses of a known space are
/// cheaper.
__device__ inline void assume_global(const void* p) { __builtin_assume(__isGlobal(p)); }
__device__ inline void shared_max(std::int32_t* at, std::int32_t value) { atomicMax(at, value); }
__device__ inline void shared_max(std::uint32_t* at, std::uint32_t value) { atomicMax(at, value); }
/// Shared memory adds 32 bits by itself, 64 bits only in a loop of compare-and-swap. Every carry is seen by one thread.
__device__ inline void shared_add(std::int64_t* at, std::int64_t value) {
  auto* const halves = reinterpret_cast<std::uint32_t*>(at);
  const auto low = static_cast<std::uint32_t>(value), high = static_cast<std::uint32_t>(value >> 32);
  const std::uint32_t before = atomicAdd(halves, low);
  atomicAdd(halves + 1, high + (before + low < low ? 1U : 0U));
}

#if __CUDA_ARCH__ >= 900
__device__ inline int cluster_size() { return static_cast<int>(__clusterSizeInBlocks()); }
__device__ inline int cluster_rank() { return static_cast<int>(__clusterRelativeBlockRank()); }
/// Peers then see what warp 0 sees in shared memory. The other warps have nothing to publish; without that they would
/// wait for their stores to the device's memory to arrive.
__device__ inline void cluster_sync() {
  if (threadIdx.x < warp_lanes) {
    __cluster_barrier_arrive();
  } else {
    __cluster_barrier_arrive_relaxed();
  }
  __cluster_barrier_wait();
}
/// For the end: nobody's shared memory goes before all have used what they read of it.
__device__ inline void cluster_leave() {
  __cluster_barrier_arrive_relaxed();
  __cluster_barrier_wait();
}
template <class T>
__device__ inline const T* of_peer(const T* shared, int rank) {
  return static_cast<const T*>(__cluster_map_shared_rank(shared, static_cast<unsigned>(rank)));
}
#else  // no clusters: the launchers never ask for one
__device__ inline int cluster_size() { return 1; }
__device__ inline int cluster_rank() { return 0; }
__device__ inline void cluster_sync() { __syncthreads(); }
__device__ inline void cluster_leave() {}
template <class T>
__device__ inline const T* of_peer(const T* shared, int) {
  return shared;
}
#endif

}  // namespace regatta::kernels::cuda

#endif

namespace regatta::kernels::cuda {

/// All lanes get the sum of their group of `lanes` lanes that differ in the bits from `lowest` up; sums of which nobody
/// asks the largest need not have it.
template <bool with_largest = true>
REGATTA_DEVICE ThreadSum merge_lanes(ThreadSum sum, int lowest = 1) {
  std::int32_t bin = sum.bin;
  std::uint32_t largest = sum.largest;
  for (int mask = warp_lanes / 2; mask >= lowest; mask /= 2) {
    const std::int32_t other_bin = lane_xor(bin, mask);
    bin = other_bin > bin ? other_bin : bin;
    if constexpr (with_largest) {
      const std::uint32_t other_largest = lane_xor(largest, mask);
      largest = other_largest > largest ? other_largest : largest;
    }
  }
  raise_to(sum, bin);
  sum.largest = with_largest ? largest : 0;
  for (int mask = warp_lanes / 2; mask >= lowest; mask /= 2) {
    sum.hi += lane_xor(sum.hi, mask);
    sum.lo += lane_xor(sum.lo, mask);
  }
  return sum;
}

REGATTA_DEVICE double sum_lanes(double value) {
  for (int mask = warp_lanes / 2; mask > 0; mask /= 2) value = add_rn(value, lane_xor(value, mask));
  return value;
}

/// ThreadSums in shared memory.
template <int count>
struct SharedSums {
  std::int64_t hi[count], lo[count];
  std::int32_t bin[count];
  std::uint32_t largest[count];
};
template <int count>
REGATTA_DEVICE void put_sum(SharedSums<count>& sums, int i, const ThreadSum& sum) {
  sums.hi[i] = sum.hi;
  sums.lo[i] = sum.lo;
  sums.bin[i] = sum.bin;
  sums.largest[i] = sum.largest;
}
template <int count>
REGATTA_DEVICE ThreadSum get_sum(const SharedSums<count>& sums, int i) {
  ThreadSum sum;
  sum.hi = sums.hi[i];
  sum.lo = sums.lo[i];
  sum.bin = sums.bin[i];
  sum.largest = sums.largest[i];
  return sum;
}

/// Squares of one thread's share of a sweep, for the health figures: fp32 over some elements, fp64 beyond.
struct ThreadHealth {
  float update = 0, weight = 0;
  double update_total = 0, weight_total = 0;

  REGATTA_DEVICE void add(float old_weight, float weight_now) {
    const float change = sub_rn(weight_now, old_weight);
    update = fma_rn(change, change, update);
    weight = fma_rn(weight_now, weight_now, weight);
  }
  REGATTA_DEVICE void flush() {
    update_total = add_rn(update_total, static_cast<double>(update));
    weight_total = add_rn(weight_total, static_cast<double>(weight));
    update = weight = 0;
  }
};

template <int warps>
struct SharedHealth {
  double update[warps], weight[warps];
};

/// Thread 0 writes the block's sums and what add_lines(health) adds; every thread calls. What threads put into shared
/// memory before, add_lines() finds there.
template <int warps, class AddLines>
REGATTA_DEVICE void write_health(SharedHealth<warps>& shared, ThreadHealth mine, SweepHealth* to,
                                 const AddLines& add_lines) {
  mine.flush();
  const double update = sum_lanes(mine.update_total), weight = sum_lanes(mine.weight_total);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread % warp_lanes == 0) {
    shared.update[thread / warp_lanes] = update;
    shared.weight[thread / warp_lanes] = weight;
  }
  block_sync();
  if (thread != 0) return;
  SweepHealth all;
  for (int w = 0; w < warps; ++w) {
    all.update_squares = add_rn(all.update_squares, shared.update[w]);
    all.weight_squares = add_rn(all.weight_squares, shared.weight[w]);
  }
  add_lines(all);
  *to = all;
}

/// count_line() of kernels.h.
REGATTA_DEVICE void count_norm(SweepHealth& health, double norm, double eps) {
  if (!(norm < __builtin_inf())) {
    ++health.non_finite_lines;
  } else if (norm <= 0x1p-126) {
    ++health.zero_lines;
  } else {
    if (norm < eps) ++health.clamped_lines;
    const float n = to_float(norm);
    if (n < health.smallest_norm) health.smallest_norm = n;
    if (n > health.largest_norm) health.largest_norm = n;
  }
}
REGATTA_DEVICE void add_health(SweepHealth& sum, const SweepHealth& part) {
  sum.update_squares = add_rn(sum.update_squares, part.update_squares);
  sum.weight_squares = add_rn(sum.weight_squares, part.weight_squares);
  if (part.smallest_norm < sum.smallest_norm) sum.smallest_norm = part.smallest_norm;
  if (part.largest_norm > sum.largest_norm) sum.largest_norm = part.largest_norm;
  sum.zero_lines += part.zero_lines;
  sum.clamped_lines += part.clamped_lines;
  sum.non_finite_lines += part.non_finite_lines;
}

}  // namespace regatta::kernels::cuda
