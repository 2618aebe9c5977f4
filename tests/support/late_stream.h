#pragma once
// A stream that does nothing until somebody must know: the worst that a GPU's stream may do to a caller that reads a
// result, or reuses what it gave, too early.

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>

#include "runtime/device/device.h"

namespace regatta::testing {

/// Thread-safe. As with GPUs, a stream moves on when any thread looks.
class LateStream : public std::enable_shared_from_this<LateStream> {
 public:
  /// An eager one does all it can at once.
  explicit LateStream(bool eager = false) : eager_(eager) {}
  /// How far a stream was at some moment.
  struct Mark {
    std::shared_ptr<LateStream> stream;
    std::int64_t count = 0;
    bool reached() const { return !stream || stream->ended_ >= count; }
  };

  /// `work` is called until it returns true; it returns false when something elsewhere has to come first.
  void put(std::function<bool()> work);
  /// What has been put so far, which is then not done.
  std::deque<std::function<bool()>> take_all();
  Mark mark();
  /// What is put from now on comes after the mark.
  void wait_for(const Mark& mark);
  /// Runs the next work; false when there is none, it cannot go on yet, or another thread is at it.
  bool move_on();
  /// Until the mark is reached.
  static void move_to(const Mark& mark);

  /// A stream by its handle; with null, the default stream of the device that the calling thread has made current.
  static LateStream& of(StreamHandle handle);
  /// Makes `stream` the calling thread's default.
  static void make_current(LateStream* stream);

 private:
  const bool eager_;
  std::mutex running_, queue_;
  std::deque<std::function<bool()>> work_;
  std::int64_t given_ = 0;
  std::atomic<std::int64_t> ended_ = 0;
};

}  // namespace regatta::testing
