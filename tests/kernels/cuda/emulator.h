#pragma once
// Blocks and threads of a CUDA device on the host: the few names that kernels/cuda/block.cuh asks for. Every
// emulated thread is a fiber; they run in turns, in a random order that changes, until a barrier that all of its group
// have reached lets them pass. Shared memory starts as rubbish. A group that can never meet is found and thrown as an
// error.
//
// Builds with sanitizers take threads of the host in place of fibers (threaded_emulator.cpp).
//
// What it shows: indexing, masks, reductions, barriers that are missing badly enough for some order to show. What it
// does not: memory order, the compiler's code, speed.
//
// Included before any of kernels/cuda/*.cuh, in one source file of a program.

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "kernels/cuda/layout.h"

struct uint2 {
  std::uint32_t x, y;
};
struct alignas(16) uint4 {
  std::uint32_t x, y, z, w;
};

// Internal, as a program may hold the compiled kernels as well.
#define REGATTA_KERNEL(threads, blocks) static inline void
#define REGATTA_DEVICE inline
#define REGATTA_SHARED(Type, name) \
  auto& name = ::regatta::kernels::cuda::emulated::shared_variable<std::type_identity_t<Type>>(__LINE__)
#define REGATTA_DYNAMIC_SHARED(name) uint4* name = ::regatta::kernels::cuda::emulated::dynamic_shared()

namespace regatta::kernels::cuda::emulated {

struct Index {
  unsigned x;
};
struct Where {  // the running thread
  Index thread, block;
  int rank_in_cluster, cluster;
};
extern thread_local Where where;

/// Runs body() as every thread of every block. Throws std::runtime_error when threads wait for one another in vain.
void run_grid(void (*body)(const void* kernel_and_args), const void* kernel_and_args, std::int64_t blocks, int threads,
              int cluster, std::int64_t shared_bytes);

void* shared_bytes_of(int line, std::size_t bytes);
uint4* dynamic_shared();
const void* same_of_peer(const void* mine, int rank);
void wait_for_block();
void wait_for_cluster();
/// The 8 bytes that lane `lane ^ mask` of the warp brings to the same call.
std::uint64_t exchange_lanes(std::uint64_t bytes, int mask);

template <class T>
T& shared_variable(int line) {
  static_assert(std::is_trivial_v<T>);
  return *static_cast<T*>(shared_bytes_of(line, sizeof(T)));
}

template <class Args>
void run(void (*kernel)(Args), const Args& args, std::int64_t blocks, int threads, int cluster = 1,
         std::int64_t shared_bytes = 0) {
  struct Call {
    void (*kernel)(Args);
    const Args& args;
  } const call{kernel, args};
  run_grid(
      [](const void* c) {
        const Call& to = *static_cast<const Call*>(c);
        to.kernel(to.args);
      },
      &call, blocks, threads, cluster, shared_bytes);
}

}  // namespace regatta::kernels::cuda::emulated

#define threadIdx (::regatta::kernels::cuda::emulated::where.thread)
#define blockIdx (::regatta::kernels::cuda::emulated::where.block)

namespace regatta::kernels::cuda {

template <class T>
T lane_xor(T value, int mask) {
  static_assert(sizeof(T) <= 8);
  std::uint64_t bytes = 0;
  std::memcpy(&bytes, &value, sizeof value);
  bytes = emulated::exchange_lanes(bytes, mask);
  std::memcpy(&value, &bytes, sizeof value);
  return value;
}
inline void assume_global(const void*) {}
inline void block_sync() { emulated::wait_for_block(); }
inline void cluster_sync() { emulated::wait_for_cluster(); }
inline void cluster_leave() { emulated::wait_for_cluster(); }
inline int cluster_size() { return emulated::where.cluster; }
inline int cluster_rank() { return emulated::where.rank_in_cluster; }
template <class T>
const T* of_peer(const T* shared, int rank) {
  return static_cast<const T*>(emulated::same_of_peer(shared, rank));
}
template <class T>
void shared_max(T* at, T value) {
  std::atomic_ref<T> shared(*at);
  T known = shared.load(std::memory_order_relaxed);
  while (value > known && !shared.compare_exchange_weak(known, value, std::memory_order_relaxed)) {
  }
}
inline void shared_add(std::int64_t* at, std::int64_t value) {
  std::atomic_ref<std::int64_t>(*at).fetch_add(value, std::memory_order_relaxed);
}

}  // namespace regatta::kernels::cuda
