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

inline std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::checkpoint) << error.what();
    return error.what();
  }
  return "";
}

inline void expect_says(const std::string& said, const std::string& words) {
  EXPECT_NE(said.find(words), std::string::npos) << "'" << said << "' lacks '" << words << "'";
}

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
