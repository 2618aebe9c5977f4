#pragma once
// The worker threads of one rank's sweeps. Owned by the engine, driven by one thread at a time. With one thread
// everything runs on the caller. Workers spin for some microseconds after a run, then sleep. No allocation after
// construction but for scratch() that grows.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>

namespace regatta {

class ThreadPool {
 public:
  /// Requires threads >= 1; the caller counts as one of them.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;
  /// Calls body(std::int64_t task, int thread) for every task in [0, count), thread in [0, threads()); returns when all
  /// are done. Tasks are handed out in ascending order to whoever is free. Bodies must not throw, and must not call
  /// run().
  template <class Body>
  void run(std::int64_t count, Body&& body) {
    run_tasks(count, const_cast<std::remove_cvref_t<Body>*>(&body), [](void* b, std::int64_t task, int thread) {
      (*static_cast<std::remove_reference_t<Body>*>(b))(task, thread);
    });
  }

  /// Memory of a thread, 64-byte aligned, at least `bytes`; what was in it may be lost when it grows. Call it outside
  /// run(), or for one's own thread inside. Kept until the pool ends.
  std::span<std::byte> scratch(int thread, std::int64_t bytes);

 private:
  using Call = void (*)(void* body, std::int64_t task, int thread);
  void run_tasks(std::int64_t count, void* body, Call call);

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace regatta
