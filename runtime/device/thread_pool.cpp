#include "runtime/device/thread_pool.h"

#include <atomic>
#include <cstddef>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "runtime/error.h"

namespace regatta {
namespace {

// About ten microseconds: longer than the gap between two sweeps of a step, shorter than anyone would notice.
constexpr int spins = 300;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Waits until `word` differs from `seen`.
std::uint32_t wait_for_change(const std::atomic<std::uint32_t>& word, std::uint32_t seen) {
  for (int i = 0; i < spins; ++i) {
    const std::uint32_t now = word.load(std::memory_order_acquire);
    if (now != seen) return now;
    pause();
  }
  word.wait(seen, std::memory_order_acquire);
  return word.load(std::memory_order_acquire);
}

constexpr std::align_val_t scratch_alignment{64};
struct FreeScratch {
  void operator()(std::byte* memory) const { ::operator delete(memory, scratch_alignment); }
};
struct Scratch {
  std::unique_ptr<std::byte, FreeScratch> memory;
  std::int64_t bytes = 0;
};

}  // namespace

struct ThreadPool::Impl {
  // Each on its own cache line: workers hammer `next`, sleepers watch the others.
  alignas(64) std::atomic<std::int64_t> next{0};
  alignas(64) std::atomic<std::uint32_t> round{0};  // raised to start a round; every worker takes part in every round
  alignas(64) std::atomic<std::uint32_t> busy{0};   // workers that have not finished the round
  alignas(64) std::int64_t count = 0;               // written before `round` is raised, as the next three
  void* body = nullptr;
  Call call = nullptr;
  bool stop = false;

  std::vector<Scratch> scratch;
  std::vector<std::thread> workers;

  void take_tasks(int thread) {
    for (;;) {
      const std::int64_t task = next.fetch_add(1, std::memory_order_relaxed);
      if (task >= count) return;
      call(body, task, thread);
    }
  }

  void work(int thread) {
    for (std::uint32_t seen = 0;;) {
      seen = wait_for_change(round, seen);
      if (stop) return;
      take_tasks(thread);
      if (busy.fetch_sub(1, std::memory_order_acq_rel) == 1) busy.notify_one();
    }
  }

  void start_round() {
    round.fetch_add(1, std::memory_order_release);
    round.notify_all();
  }
};

ThreadPool::ThreadPool(int threads) : impl_(std::make_unique<Impl>()) {
  if (threads < 1)
    throw Error(Code::invalid_argument, "threads is " + std::to_string(threads) + "; expected at least 1");
  impl_->scratch.resize(threads);
  impl_->workers.reserve(threads - 1);
  for (int thread = 1; thread < threads; ++thread) impl_->workers.emplace_back([this, thread] { impl_->work(thread); });
}

ThreadPool::~ThreadPool() {
  impl_->stop = true;
  impl_->start_round();
  for (std::thread& worker : impl_->workers) worker.join();
}

int ThreadPool::threads() const { return static_cast<int>(impl_->scratch.size()); }

void ThreadPool::run_tasks(std::int64_t count, void* body, Call call) {
  Impl& pool = *impl_;
  if (pool.workers.empty() || count <= 1) {
    for (std::int64_t task = 0; task < count; ++task) call(body, task, 0);
    return;
  }
  pool.count = count;
  pool.body = body;
  pool.call = call;
  pool.next.store(0, std::memory_order_relaxed);
  pool.busy.store(static_cast<std::uint32_t>(pool.workers.size()), std::memory_order_relaxed);
  pool.start_round();
  pool.take_tasks(0);
  for (std::uint32_t left = pool.busy.load(std::memory_order_acquire); left != 0;)
    left = wait_for_change(pool.busy, left);
}

std::span<std::byte> ThreadPool::scratch(int thread, std::int64_t bytes) {
  Scratch& scratch = impl_->scratch[thread];
  if (scratch.bytes < bytes) {
    scratch.memory.reset();
    scratch.memory.reset(static_cast<std::byte*>(::operator new(static_cast<std::size_t>(bytes), scratch_alignment)));
    scratch.bytes = bytes;
  }
  return {scratch.memory.get(), static_cast<std::size_t>(bytes)};
}

}  // namespace regatta
