#pragma once
// How a communication thread waits for its peers: spin a moment, yield, then sleep some tens of microseconds at a time,
// since ranks, sweeps and communication threads share the cores. While waiting it looks for failed and vanished peers
// and for the deadline, and ends the wait with an Error that names the collective and the ranks.
//
// One Wait per collective, on the stack of the communication thread.

#include <algorithm>
#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/transport/peers.h"

namespace regatta {

class Wait {
 public:
  /// Throws when the job is failing already: peers that are quick to arrive would otherwise hide it.
  Wait(Peers& peers, const TransportOptions& options, std::string_view kind, std::string_view label)
      : peers_(peers), options_(options), kind_(kind), label_(label), start_(Clock::now()) {
    peers_.check(kind_, label_);
  }

  /// Returns when ready() does; ready may do work, and calls moved() when it got on. late(add) calls add(root rank) for
  /// every rank that is still being waited for.
  template <class Ready, class Late>
  void until(Ready&& ready, Late&& late) {
    moved();
    while (!ready()) {
      const Pause next = pause();
      if (next == Pause::poll) continue;
      // A failed rank may have done its part of this collective before.
      if (peers_.troubled() && !ready()) peers_.check(kind_, label_);
      if (next != Pause::look) continue;
      // A rank that has gone may have done its part before: only who is late after that was seen counts.
      for (const int rank : collect(late)) {
        std::string ended = peers_.ended(rank);
        if (ended.empty() || ready()) continue;
        const std::vector<int> still = collect(late);
        if (std::find(still.begin(), still.end(), rank) != still.end()) throw_ended(ended);
      }
      if (Clock::now() - start_ > options_.deadline && !ready()) throw_late(collect(late));
    }
  }

  /// Starts over with spinning.
  void moved() { rounds_ = 0; }
  /// reduce_scatter 'gradients of bucket 3'
  std::string what() const;

 private:
  using Clock = std::chrono::steady_clock;

  template <class Late>
  static std::vector<int> collect(Late&& late) {
    std::vector<int> ranks;
    late([&ranks](int rank) { ranks.push_back(rank); });
    return ranks;
  }
  /// What to do after a pause: poll again; ask for failures too; about every ten milliseconds, look at processes and
  /// the clock.
  enum class Pause { poll, ask, look };
  Pause pause();
  [[noreturn]] void throw_ended(const std::string& who) const;
  [[noreturn]] void throw_late(const std::vector<int>& ranks) const;

  Peers& peers_;
  const TransportOptions& options_;
  std::string_view kind_;
  std::string_view label_;
  Clock::time_point start_;
  Clock::time_point next_look_{};
  int rounds_ = 0;
};

}  // namespace regatta
