#pragma once
// The worker threads of one rank's sweeps. Owned by the engine, driven by one thread at a time. With one thread
// everything runs on the caller.

#include <cstdint>
#include <functional>
#include <memory>

namespace regatta {

class ThreadPool {
 public:
  /// Requires threads >= 1; the caller counts as one of them.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;
  /// Calls body(task, thread) for every task in [0, count), thread in [0, threads()); returns when all are done. Tasks
  /// are handed out in ascending order to whoever is free. Bodies must not throw. No allocation when `body` fits a
  /// small buffer.
  void run(std::int64_t count, const std::function<void(std::int64_t task, int thread)>& body);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace regatta
