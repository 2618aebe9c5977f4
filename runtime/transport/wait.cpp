#include "runtime/transport/wait.h"

#include <sched.h>
#include <time.h>

#include <cstdio>

namespace regatta {
namespace {

constexpr int spin_rounds = 64;
constexpr int yield_rounds = 64 + 40;
constexpr int short_sleeps = yield_rounds + 50;
constexpr std::chrono::milliseconds look_every{10};

void sleep_ns(long nanoseconds) {
  const timespec duration{0, nanoseconds};
  nanosleep(&duration, nullptr);
}

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

Wait::Pause Wait::pause() {
  ++rounds_;
  if (rounds_ <= spin_rounds) {
    relax();
    return Pause::poll;
  }
  if (rounds_ <= yield_rounds) {
    sched_yield();
    return Pause::poll;
  }
  sleep_ns(rounds_ <= short_sleeps ? 20'000 : 50'000);
  if (rounds_ > short_sleeps) rounds_ = short_sleeps + 1;
  const auto now = Clock::now();
  if (next_look_ == Clock::time_point{}) next_look_ = now + look_every;
  if (now < next_look_) return Pause::ask;
  next_look_ = now + look_every;
  return Pause::look;
}

std::string Wait::what() const { return std::string(kind_) + " '" + std::string(label_) + "'"; }

void Wait::throw_ended(const std::string& who) const {
  throw Error(Code::transport, who + ": " + what() + " cannot complete");
}

void Wait::throw_late(const std::vector<int>& ranks) const {
  std::string who;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    if (i > 0) who += i + 1 == ranks.size() ? " and " : ", ";
    who += std::to_string(ranks[i]);
  }
  const double seconds = std::chrono::duration<double>(options_.deadline).count();
  char limit[32];
  std::snprintf(limit, sizeof limit, "%g", seconds);
  throw Error(Code::timeout, what() + " did not complete within the deadline of " + limit + " s: rank" +
                                 (ranks.size() == 1 ? " " : "s ") + who + " did not arrive");
}

}  // namespace regatta
