#pragma once
// Runs the collectives of one rank, in call order, on one thread. Owned by the state that all groups of a root share;
// fed by the thread that drives them. Operations live in a ring of Transport::max_in_flight slots, so queueing
// allocates nothing.
//
// The first operation that throws poisons it: that one and all later ones answer with the same Error, and the peers are
// told.

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "runtime/transport/transport.h"

namespace regatta {

class Peers;

enum class Collective { reduce_scatter, all_gather, exchange, all_gather_small, broadcast, barrier };

std::string_view name_of(Collective kind);

struct Operation {
  Collective kind = Collective::barrier;
  bool counted = true;
  int root = 0;
  Transport* transport = nullptr;
  SymmetricBuffer buffer;
  std::int64_t offset = 0;
  std::span<const std::int64_t> bounds;  ///< or the bytes to send, by rank
  std::span<const std::int64_t> receive_bytes;
  std::span<const std::byte> send;
  std::span<std::byte> receive;
  Reducer reduce;
  std::optional<DType> elements;
  std::string_view label;
};

class CommunicationThread {
 public:
  /// Without a thread (`threaded` false), submit() runs the operation itself.
  CommunicationThread(bool threaded, std::shared_ptr<Peers> peers);
  ~CommunicationThread();
  CommunicationThread(const CommunicationThread&) = delete;
  CommunicationThread& operator=(const CommunicationThread&) = delete;

  Ticket submit(Operation&& operation);
  /// Throws what poisoned the thread, if anything did.
  void check() const;
  /// Blocks until everything queued so far has ended, well or not.
  void drain() noexcept;
  bool has_work() const { return completed_.load(std::memory_order_acquire) < submitted_; }

 private:
  friend class Ticket;
  struct Slot {
    Operation operation;
    Event event;               ///< of transports of a device: made with the first operation here, recorded with each
    Device* device = nullptr;  ///< null when the operation had none
    bool on_stream = false;    ///< the event comes after the operation, not before it
    std::atomic<std::int64_t> busy_ns{0};
  };
  void loop();
  void start(Slot& slot, std::uint64_t number);
  void execute(Slot& slot, std::uint64_t number);
  void poison(std::uint64_t number, Code code, const std::string& sentence);
  void block_until(std::uint64_t number) const;
  void wait(std::uint64_t number) const;
  void then(std::uint64_t number, StreamHandle stream) const;
  bool done(std::uint64_t number) const { return completed_.load(std::memory_order_acquire) >= number; }

  std::shared_ptr<Peers> peers_;  // shared with the other users of the same table
  std::vector<Slot> slots_;
  std::uint64_t submitted_ = 0;                // written by the driving thread, under the mutex
  std::atomic<std::uint64_t> completed_{0};    // operations are numbered from 1
  std::atomic<std::uint64_t> failed_from_{0};  // first failed operation; 0: none
  Code error_code_ = Code::aborted;            // valid once failed_from_ is set
  std::string error_sentence_;
  mutable std::mutex mutex_;
  std::condition_variable work_;
  mutable std::condition_variable progress_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace regatta
