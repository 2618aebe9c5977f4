#pragma once
// Moves bytes among the ranks of a group.
//
// One Transport per rank and group; each is driven by one thread. Collectives are asynchronous: they are queued in call
// order, run by the rank's one communication thread, and answered by a Ticket. All groups split from one root share that
// thread, so calls must be made in the same global order on all members; then nothing can deadlock. Public functions are
// not virtual: they check sizes and count bytes once, then queue a protected do_* of the backend.
// No allocation in the steady state: tickets live in a fixed ring, so at most `max_in_flight` may be outstanding.
//
// Errors: a wrong call throws Error(invalid_argument) before anything is queued. A peer that does not arrive within the
// deadline, is gone, or has aborted makes wait() throw Error(timeout | transport | aborted) naming the collective's label and
// the ranks that did not arrive; after that every call on this rank's transports throws the same.

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/error.h"

namespace regatta {

/// Memory that every rank of a group allocates alike, and that peers of the same host may read directly.
/// Freed with the last copy of the handle; freeing communicates with nobody.
class SymmetricBuffer {
 public:
  std::byte* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }
  explicit operator bool() const { return data_ != nullptr; }

  SymmetricBuffer() = default;
  SymmetricBuffer(std::byte* data, std::int64_t bytes, int id, std::shared_ptr<void> owner)
      : data_(data), bytes_(bytes), id_(id), owner_(std::move(owner)) {}
  int id() const { return id_; }

 private:
  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
  int id_ = -1;
  std::shared_ptr<void> owner_;
};

/// Adds up pieces: `pieces[i]` points at byte `begin` of group rank i's buffer; the result of [begin, end) goes wherever the
/// callee keeps it. Called on the communication thread, for ascending, disjoint ranges that tile the rank's own chunk; range
/// ends are multiples of 64 bytes from the chunk's begin, except the last.
using Reducer = std::function<void(std::span<const std::byte* const> pieces, std::int64_t begin, std::int64_t end)>;

/// Payload bytes this rank sent to others (its own part excluded), and calls, by kind.
struct TransportCounters {
  struct Kind {
    std::int64_t calls = 0;
    std::int64_t bytes = 0;
    std::int64_t busy_ns = 0;  ///< time the communication thread spent in it, waiting for peers included
  };
  Kind reduce_scatter, all_gather, exchange, all_gather_small, broadcast;
  std::int64_t total_bytes() const {
    return reduce_scatter.bytes + all_gather.bytes + exchange.bytes + all_gather_small.bytes + broadcast.bytes;
  }
};

class CommunicationThread;

/// Answer to a queued collective. Copyable, small; valid until the ring has wrapped around (max_in_flight later calls).
class Ticket {
 public:
  Ticket() = default;
  /// Blocks until done; throws what the collective threw. Waiting twice is harmless. An empty ticket is done.
  void wait() const;
  bool done() const;
  /// Nanoseconds the communication thread spent on it. Requires done().
  std::int64_t busy_ns() const;

 private:
  friend class CommunicationThread;
  CommunicationThread* thread_ = nullptr;
  std::uint64_t number_ = 0;
};

struct TransportOptions {
  std::chrono::milliseconds deadline{600'000};
  /// Read peers of the same host through shared memory (MPI); off means point-to-point messages everywhere.
  bool shared_memory = true;
  /// Set from a signal handler: waits then end with Error(aborted). May be null.
  const std::atomic<bool>* stop = nullptr;
};

class Transport {
 public:
  static constexpr int max_in_flight = 1024;

  virtual ~Transport();
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  int rank() const { return rank_; }
  int world_size() const { return world_size_; }
  virtual std::string_view name() const = 0;

  /// The transport of the group `ranks` (ranks of this one, ascending, this rank among them). Collective over this
  /// transport: every rank calls it at the same point, with its own group. Shares communication thread and counters.
  std::unique_ptr<Transport> split(std::span<const int> ranks);

  /// Collective over the group; blocking; the same byte count on all ranks (checked). Zeroed, 64-byte aligned.
  SymmetricBuffer allocate(std::int64_t bytes);

  /// Sums bytes [bounds[r], bounds[r+1]) of everybody's buffer on rank r, with `reduce`. bounds has world_size + 1 ascending
  /// entries, relative to `offset` in `buffer`, equal on all ranks; chunks may be empty. Done when every peer has
  /// read this rank's part, so the buffer may be overwritten then.
  Ticket reduce_scatter(const SymmetricBuffer& buffer, std::int64_t offset, std::span<const std::int64_t> bounds,
                        Reducer reduce, std::string_view label);
  /// Copies everybody's chunk [bounds[r], bounds[r+1]) into everybody's buffer, in place.
  Ticket all_gather(const SymmetricBuffer& buffer, std::int64_t offset, std::span<const std::int64_t> bounds,
                    std::string_view label);
  /// Sparse all-to-all: send_bytes[p] bytes for each rank p lie one after another in `send`; what p sends here arrives in `receive`
  /// likewise. Both sides must agree on the counts; pairs with zero bytes exchange nothing.
  Ticket exchange(std::span<const std::byte> send, std::span<const std::int64_t> send_bytes, std::span<std::byte> receive,
                  std::span<const std::int64_t> receive_bytes, std::string_view label);
  /// Everybody's `mine` one after another in `all`; bytes[r] is rank r's count, known to all.
  Ticket all_gather_small(std::span<const std::byte> mine, std::span<std::byte> all, std::span<const std::int64_t> bytes,
                          std::string_view label);
  Ticket broadcast(std::span<std::byte> buffer, int root, std::string_view label);
  /// Blocking.
  void barrier(std::string_view label);

  /// Blocking; everybody's string, by rank.
  std::vector<std::string> gather_strings(const std::string& mine, std::string_view label);

  /// Tells all ranks of the root transport that this one fails; their waits end with Error(aborted) carrying `reason`.
  /// Callable from any thread, at any time, more than once.
  void abort(const std::string& reason) noexcept;

  const TransportCounters& counters() const;
  const TransportOptions& options() const;

 protected:
  struct Shared;  ///< communication thread, options, counters: one per rank, shared by all its groups
  Transport(int rank, int world_size, std::shared_ptr<Shared> shared);

  // Called on the communication thread, one at a time; block until done or throw Error.
  virtual void do_reduce_scatter(const SymmetricBuffer&, std::int64_t offset, std::span<const std::int64_t> bounds,
                                 const Reducer&, std::string_view label) = 0;
  virtual void do_all_gather(const SymmetricBuffer&, std::int64_t offset, std::span<const std::int64_t> bounds,
                             std::string_view label) = 0;
  virtual void do_exchange(std::span<const std::byte> send, std::span<const std::int64_t> send_bytes,
                           std::span<std::byte> receive, std::span<const std::int64_t> receive_bytes,
                           std::string_view label) = 0;
  virtual SymmetricBuffer do_allocate(std::int64_t bytes) = 0;
  virtual std::unique_ptr<Transport> do_split(std::span<const int> ranks) = 0;
  virtual void do_abort(const std::string& reason) noexcept = 0;

  Shared& shared() { return *shared_; }
  const std::shared_ptr<Shared>& shared_ptr() const { return shared_; }

 private:
  int rank_;
  int world_size_;
  std::shared_ptr<Shared> shared_;
};

}  // namespace regatta
