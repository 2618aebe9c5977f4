#pragma once
// What one rank knows of the others of its root transport: whether they failed, left, or their process is gone. One per
// rank, shared by all its groups; any thread may call it.
//
// Each rank has a PeerRecord. Ranks that share memory (threads of a process, processes of a host) write their own
// record where the others can read it; records of other ranks are private copies that a PeerLink fills from messages.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/transport/transport.h"

namespace regatta {

/// Valid when all bytes are zero. Lives in memory shared between processes.
struct alignas(64) PeerRecord {
  static constexpr int reason_bytes = 496;
  enum : std::int32_t { running = 0, writing = 1, failed = 2 };
  std::atomic<std::int32_t> state;
  std::atomic<std::int32_t> left;
  // Written before `state` becomes failed, constant afterwards.
  std::int32_t code;
  std::int32_t secondary;
  char reason[reason_bytes];

  /// Returns false when the rank had failed before: the first reason stands.
  bool fail(std::string_view text, Code why, bool is_secondary) noexcept;
};

/// Carries failures to ranks that do not share memory. Thread-safe.
class PeerLink {
 public:
  virtual ~PeerLink() = default;
  virtual void send_failure(const std::string& reason, Code code, bool secondary) noexcept = 0;
  virtual void send_left() noexcept = 0;
  /// Takes in what has arrived.
  virtual void poll() noexcept = 0;
};

/// A process of this host, told apart from a later one with the same number by its start time.
struct ProcessId {
  int pid = 0;  ///< 0: cannot be watched
  std::uint64_t started = 0;
  static ProcessId self();
  /// True when it has ended, a not yet reaped (zombie) process included.
  bool ended() const;
};

class Peers {
 public:
  /// records[r] is rank r's; `owners` keep them alive. processes is empty or one per rank.
  Peers(int rank, std::vector<PeerRecord*> records, std::vector<std::shared_ptr<void>> owners,
        std::vector<ProcessId> processes, const std::atomic<bool>* stop);

  void set_link(std::shared_ptr<PeerLink> link) { link_ = std::move(link); }

  void fail(const std::string& reason, Code code, bool secondary) noexcept;
  void leave() noexcept;

  /// Ends this rank's waits without telling the others why: a better reason is on its way.
  void give_up() noexcept { gave_up_.store(true, std::memory_order_relaxed); }
  bool gave_up() const noexcept { return gave_up_.load(std::memory_order_relaxed); }

  /// Whether any rank has failed, this one gave up, or the job was told to stop.
  bool troubled() const noexcept;
  /// Throws Error(aborted) when any rank has failed or the job was told to stop, naming the collective in question.
  void check(std::string_view kind, std::string_view label) const;
  /// Empty while the rank may still answer; else half a sentence such as "rank 1 (pid 4242) is gone".
  std::string ended(int rank) const;
  PeerStatus status(int rank) const;
  int world_size() const { return static_cast<int>(records_.size()); }
  void poll() const {
    if (link_) link_->poll();
  }

 private:
  int rank_;
  std::vector<PeerRecord*> records_;
  std::vector<std::shared_ptr<void>> owners_;
  std::vector<ProcessId> processes_;
  const std::atomic<bool>* stop_;
  std::atomic<bool> gave_up_{false};
  std::shared_ptr<PeerLink> link_;  // shared with the backend, which closes it
};

}  // namespace regatta
