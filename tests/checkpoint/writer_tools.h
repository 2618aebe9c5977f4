#pragma once
// For tests of the writer: a disk that waits, and what a save says.

#include <gtest/gtest.h>

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "runtime/checkpoint/checkpoint_folder.h"
#include "runtime/checkpoint/checkpoint_writer.h"
#include "runtime/error.h"
#include "tests/checkpoint/failing_calls.h"
#include "tests/checkpoint/test_folder.h"
#include "tests/support/refusal.h"

namespace regatta::testing {

inline UnflushedCalls unflushed;

/// Writes nothing until it is opened.
class Gate : public UnflushedCalls {
 public:
  ssize_t write(int descriptor, const void* data, std::size_t bytes) override {
    std::unique_lock lock(mutex_);
    opened_.wait(lock, [&] { return open_; });
    return SystemCalls::write(descriptor, data, bytes);
  }
  void open(bool open = true) {
    const std::lock_guard lock(mutex_);
    open_ = open;
    opened_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable opened_;
  bool open_ = false;
};

/// The sentence of the Error(checkpoint) with which the body ends; empty when it ends without.
inline std::string error_of(const std::function<void()>& body) { return refusal(body, Code::checkpoint); }

/// Waits for it.
inline checkpoint::SaveOutcome ended(checkpoint::CheckpointWriter& writer) {
  for (;;) {
    if (const auto outcome = writer.outcome()) return *outcome;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

inline std::string step_in(const TestFolder& folder, std::int64_t step) {
  return folder.at(checkpoint::folder_name(step));
}

}  // namespace regatta::testing
