#include "tests/support/late_stream.h"

#include <sched.h>

#include <cstdio>
#include <cstdlib>
#include <utility>

namespace regatta::testing {
namespace {

thread_local LateStream* current = nullptr;

}  // namespace

void LateStream::put(std::function<bool()> work) {
  {
    std::lock_guard lock(queue_);
    work_.push_back(std::move(work));
    ++given_;
  }
  while (eager_ && move_on()) continue;
}

std::deque<std::function<bool()>> LateStream::take_all() {
  std::lock_guard lock(queue_);
  return std::exchange(work_, {});
}

LateStream::Mark LateStream::mark() {
  std::lock_guard lock(queue_);
  return {shared_from_this(), given_};
}

void LateStream::wait_for(const Mark& mark) {
  put([mark] {
    if (!mark.reached()) mark.stream->move_on();
    return mark.reached();
  });
}

bool LateStream::move_on() {
  const std::unique_lock running(running_, std::try_to_lock);
  if (!running) return false;
  std::function<bool()>* next = nullptr;
  {
    std::lock_guard lock(queue_);
    if (work_.empty()) return false;
    next = &work_.front();  // stays where it is while others are put behind it
  }
  if (!(*next)()) return false;
  {
    std::lock_guard lock(queue_);
    work_.pop_front();
  }
  ++ended_;
  return true;
}

void LateStream::move_to(const Mark& mark) {
  while (!mark.reached())
    if (!mark.stream->move_on()) sched_yield();
}

LateStream& LateStream::of(StreamHandle handle) {
  if (handle != nullptr) return *static_cast<LateStream*>(handle);
  if (current == nullptr) {
    std::fprintf(stderr, "a launch on the default stream by a thread that has made no device current\n");
    std::abort();
  }
  return *current;
}

void LateStream::make_current(LateStream* stream) { current = stream; }

}  // namespace regatta::testing
