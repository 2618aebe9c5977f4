#pragma once
// System calls of which the n-th of a kind fails, and some that do not flush: durability_test.cpp looks at flushes, and
// other tests need not wait for a disk.

#include <atomic>
#include <cerrno>

#include "runtime/checkpoint/system_calls.h"

namespace regatta::testing {

class UnflushedCalls : public checkpoint::SystemCalls {
 public:
  int fsync(int) override { return 0; }
};

class FailingCalls : public checkpoint::SystemCalls {
 public:
  enum class Kind { write, short_write, fsync, rename };
  FailingCalls(Kind kind, int at, int number) : kind_(kind), left_(at), number_(number) {}

  ssize_t write(int descriptor, const void* data, std::size_t bytes) override {
    if (kind_ == Kind::short_write) {
      if (failed_) return fail();
      if (bytes > 1 && due())
        return SystemCalls::write(descriptor, data, bytes / 2);  // the disk fills up in the middle
    }
    if (kind_ == Kind::write && due()) return fail();
    return SystemCalls::write(descriptor, data, bytes);
  }
  int fsync(int descriptor) override { return kind_ == Kind::fsync && due() ? fail() : SystemCalls::fsync(descriptor); }
  int rename(const char* from, const char* to) override {
    return kind_ == Kind::rename && due() ? fail() : SystemCalls::rename(from, to);
  }
  bool failed() const { return failed_; }

 private:
  bool due() {
    if (left_.fetch_sub(1) != 0) return false;
    failed_ = true;
    return true;
  }
  int fail() const {
    errno = number_;
    return -1;
  }
  Kind kind_;
  std::atomic<int> left_;
  int number_;
  std::atomic<bool> failed_{false};
};

}  // namespace regatta::testing
