#pragma once
// Moves bytes among the ranks of a group.
//
// One Transport per rank and group; each is driven by one thread. Collectives are asynchronous: they are queued in call
// order, run by the rank's one communication thread, and answered by a Ticket. All groups split from one root share
// that thread, so calls must be made in the same global order on all members; then nothing can deadlock. Public
// functions are not virtual: they check sizes and count bytes once, then queue a do_* of the backend. In a world of one
// rank there is no communication thread: the call does the work itself.
//
// Nothing is allocated per call: tickets live in a fixed ring, so at most `max_in_flight` may be outstanding, and what
// a call is given by span or string_view (bounds, counts, bytes, the label) is borrowed: it must stay valid and
// unchanged until the ticket is done. A Reducer is moved in; keep its captures small, or std::function allocates.
//
// A transport of a device (device() not null) has its memory there; its collectives begin behind what is on the
// followed stream when they are called, and its exchanges and broadcasts take memory of the host as well as the
// device's. One that runs on a stream (runs_on_stream()) puts its work there before the call returns, and the
// communication thread only watches it; Reducers are called within the call. One that does not runs on the
// communication thread as any other, and kernels that a Reducer puts on stream() are done before the collective is.
//
// Errors: a wrong call throws Error(invalid_argument) before anything is queued. A peer that does not arrive within the
// deadline, is gone, or has aborted makes wait() throw Error(timeout | transport | aborted) naming the collective's
// label and the ranks that did not arrive; after that every call on this rank's transports throws the same, and the
// peers are told. Ranks are always named by their number in the root transport.

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/device/device.h"
#include "runtime/error.h"
#include "sharding/dtype.h"

namespace regatta {

/// Where this process sees every rank's copy of a SymmetricBuffer.
struct SymmetricMemory {
  int group = 0;                              ///< the group that allocated it
  std::vector<std::byte*> copies;             ///< by group rank; null for ranks that only messages reach
  std::vector<std::shared_ptr<void>> owners;  ///< keeps all of them readable while any rank holds its handle
};

/// Memory that every rank of a group allocates alike, and that peers of the same host may read directly.
/// Freed with the last copy of the handle; freeing communicates with nobody. Serves collectives of the group that
/// allocated it, no other.
class SymmetricBuffer {
 public:
  std::byte* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }
  explicit operator bool() const { return data_ != nullptr; }

  SymmetricBuffer() = default;
  SymmetricBuffer(std::byte* data, std::int64_t bytes, int id, std::shared_ptr<const SymmetricMemory> memory)
      : data_(data), bytes_(bytes), id_(id), memory_(std::move(memory)) {}
  int id() const { return id_; }  ///< the same on all ranks of the group
  /// Null for an empty handle. shared_ptr: queued collectives hold the memory too.
  const std::shared_ptr<const SymmetricMemory>& memory() const { return memory_; }

 private:
  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
  int id_ = -1;
  std::shared_ptr<const SymmetricMemory> memory_;
};

/// Adds up pieces: `pieces[i]` points at byte `begin` of group rank i's buffer; the result of [begin, end) goes
/// wherever the callee keeps it. Called on the communication thread, for ascending, disjoint ranges that tile the
/// rank's own chunk; range ends are multiples of 64 bytes from the chunk's begin, except the last. Never called for an
/// empty chunk. What it throws ends the job as any failure of the transport does.
using Reducer = std::function<void(std::span<const std::byte* const> pieces, std::int64_t begin, std::int64_t end)>;

/// Payload bytes this rank sent to others (its own part excluded), and calls, by kind: everything but its own chunk in
/// a reduce-scatter, its own chunk times (ranks - 1) in an all-gather. Set-up calls (split, allocate, barrier,
/// gather_strings) are not counted.
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

/// The kinds of collectives, barriers included.
inline constexpr int collective_count = 6;

class CommunicationThread;

/// Answer to a queued collective. Copyable, small; valid until the ring has wrapped around (max_in_flight later calls).
class Ticket {
 public:
  Ticket() = default;
  /// Blocks until done; throws what the collective threw. Waiting twice is harmless. An empty ticket is done.
  void wait() const;
  bool done() const;
  /// What follows on `stream` comes after the collective. A transport that does not run on a stream waits here instead.
  void then(StreamHandle stream) const;
  /// Nanoseconds the communication thread spent on it. Requires done().
  std::int64_t busy_ns() const;

 private:
  friend class CommunicationThread;
  Ticket(CommunicationThread* thread, std::uint64_t number) : thread_(thread), number_(number) {}
  CommunicationThread* thread_ = nullptr;
  std::uint64_t number_ = 0;
};

/// For tests: what may go wrong between ranks. Called on communication threads.
class TransportFaults {
 public:
  virtual ~TransportFaults() = default;
  /// `bytes` have arrived in an exchange; what is written to them is what the caller sees.
  virtual void arrived(int root_rank, std::string_view label, std::span<std::byte> bytes) = 0;
};

struct TransportOptions {
  std::chrono::milliseconds deadline{600'000};
  /// Read peers of the same host through shared memory (MPI); off means point-to-point messages everywhere.
  bool shared_memory = true;
  /// Share memory only within blocks of this many neighbouring ranks (MPI); 0: all ranks of a host.
  int shared_memory_ranks = 0;
  /// Set from a signal handler: waits then end with Error(aborted). May be null.
  const std::atomic<bool>* stop = nullptr;
  /// May be null; outlives the transports.
  TransportFaults* faults = nullptr;
  /// Who adds up in a reduce_scatter over a device's transport: the ranks' parts as a tree in rank order, with the bits
  /// of every other transport, or the device's library in an order of its own.
  enum class Reduction { tree, sum } reduction = Reduction::tree;
  /// Whose memory a transport of a device moves: nccl, and mpi when its library takes device memory. shared_ptr:
  /// engines of the rank use it too.
  std::shared_ptr<Device> device;
  /// Whether MPI is given the device's memory: when its library says that it takes it (and all ranks' libraries do), in
  /// any case, or never. Otherwise that memory goes through the host.
  enum class DeviceMessages { automatic, always, never } device_messages = DeviceMessages::automatic;
};

/// How a rank of the root transport is doing, as far as this rank can tell.
struct PeerStatus {
  enum class State {
    running,
    failed,  ///< called abort, or one of its collectives failed
    left,    ///< has closed its transport
    gone,    ///< its process has ended without a word
  };
  State state = State::running;
  bool closed = false;        ///< has closed its transport, whether it failed or not
  Code code = Code::aborted;  ///< why, when failed
  bool secondary = false;     ///< failed only because another rank did
  std::string reason;
};

struct Operation;
struct TransportShared;

class Transport {
 public:
  static constexpr int max_in_flight = 1024;

  virtual ~Transport();
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  int rank() const { return rank_; }
  int world_size() const { return static_cast<int>(root_ranks_.size()); }
  /// The root transport's number of each rank of this group.
  std::span<const int> root_ranks() const { return root_ranks_; }
  std::string_view name() const;
  /// How this group's bytes travel, for reports: "direct", "shared memory", "messages", and why if it was not asked
  /// for.
  virtual std::string data_path() const = 0;
  /// The device whose memory allocate() gives and collectives read; null for the host's.
  virtual Device* device() const { return nullptr; }
  /// The stream that collectives, or at least their Reducers, run on; null without a device.
  virtual StreamHandle stream() const { return nullptr; }
  /// Whether tickets order streams (Ticket::then) instead of making the host wait.
  virtual bool runs_on_stream() const { return false; }
  /// Calls from now on come after what is on `stream` when they are made. Does nothing without a device.
  void follow(StreamHandle stream);

  /// The transport of the group `ranks` (ranks of this one, ascending, this rank among them). Collective over this
  /// transport: every rank calls it at the same point, with its own group. Shares the communication thread.
  std::unique_ptr<Transport> split(std::span<const int> ranks);

  /// Collective over the group; blocking; the same byte count on all ranks (checked). Zeroed, 64-byte aligned.
  SymmetricBuffer allocate(std::int64_t bytes);
  /// The same for memory that there is already, wherever it lies, in a group of one rank. Not blocking.
  SymmetricBuffer adopt(std::byte* data, std::int64_t bytes, std::shared_ptr<void> owner);

  /// Sums bytes [bounds[r], bounds[r+1]) of everybody's buffer on rank r, with `reduce`. `elements` says of what type
  /// they are: a transport that was told to add by itself then does, and `reduce` sees one piece, the sum. bounds has
  /// world_size + 1
  /// ascending entries, relative to `offset` in `buffer`, equal on all ranks; chunks may be empty. Done when every peer
  /// has read this rank's part, so the buffer may be overwritten then.
  Ticket reduce_scatter(const SymmetricBuffer& buffer, std::int64_t offset, std::span<const std::int64_t> bounds,
                        Reducer reduce, std::string_view label, std::optional<DType> elements = {});
  /// Copies everybody's chunk [bounds[r], bounds[r+1]) into everybody's buffer, in place.
  Ticket all_gather(const SymmetricBuffer& buffer, std::int64_t offset, std::span<const std::int64_t> bounds,
                    std::string_view label);
  /// Sparse all-to-all: send_bytes[p] bytes for each rank p lie one after another in `send`; what p sends here arrives
  /// in `receive` likewise. Both sides must agree on the counts; pairs with zero bytes exchange nothing.
  Ticket exchange(std::span<const std::byte> send, std::span<const std::int64_t> send_bytes,
                  std::span<std::byte> receive, std::span<const std::int64_t> receive_bytes, std::string_view label);
  /// Everybody's `mine` one after another in `all`; bytes[r] is rank r's count, known to all.
  Ticket all_gather_small(std::span<const std::byte> mine, std::span<std::byte> all,
                          std::span<const std::int64_t> bytes, std::string_view label);
  Ticket broadcast(std::span<std::byte> buffer, int root, std::string_view label);
  /// Blocking.
  void barrier(std::string_view label);

  /// Blocking; everybody's string, by rank.
  std::vector<std::string> gather_strings(const std::string& mine, std::string_view label);

  /// Tells all ranks of the root transport that this one fails; their waits and its own end with Error(aborted)
  /// carrying `reason`. Callable from any thread, at any time, more than once: the first reason stands. `secondary`
  /// marks a failure that only passes on another rank's; its reason is then passed on as it is.
  void abort(const std::string& reason, Code code = Code::aborted, bool secondary = false) noexcept;
  /// Tells the peers that this rank makes no more calls. Implied when the last transport of the root is destroyed.
  void leave() noexcept;
  /// Every rank of the root transport.
  std::vector<PeerStatus> peers() const;
  /// Blocks until all calls queued on this rank have ended, well or not. For destructors of what those calls use: while
  /// an exception unwinds the caller, peers may never arrive, so the calls are given up instead. Peers hear of that by
  /// abort or leave.
  void drain() noexcept;

  /// Of this group's collectives alone, not of groups split from it.
  const TransportCounters& counters() const;
  const TransportOptions& options() const;

 protected:
  /// `root_ranks` are this group's members; `rank` indexes them. `group` tells groups that share members apart.
  Transport(int rank, std::vector<int> root_ranks, int group, std::shared_ptr<TransportShared> shared);

  struct Outgoing {
    const std::byte* data = nullptr;
    std::int64_t bytes = 0;
  };
  struct Incoming {
    std::byte* data = nullptr;
    std::int64_t bytes = 0;
  };

  // Called on the communication thread, one at a time; block until done or throw Error. Only for groups of two and
  // more.
  virtual void do_reduce_scatter(const SymmetricBuffer&, std::int64_t offset, std::span<const std::int64_t> bounds,
                                 const Reducer&, std::string_view label, std::optional<DType> elements) = 0;
  virtual void do_all_gather(const SymmetricBuffer&, std::int64_t offset, std::span<const std::int64_t> bounds,
                             std::string_view label) = 0;
  /// By group rank; the own entries are empty. `kind` is the name of the collective it serves.
  virtual void do_exchange(std::span<const Outgoing> send, std::span<const Incoming> receive, std::string_view kind,
                           std::string_view label) = 0;
  virtual void do_barrier(std::string_view label) = 0;
  /// For transports that run on a stream, whose do_*() put work there on the calling thread: called there before and
  /// after each collective, and on the communication thread to wait until that work is done. They throw Error.
  virtual void do_begin() {}
  virtual void do_mark(Operation&, EventHandle) {}
  virtual void do_watch(Operation&, EventHandle) {}
  // Called on the thread that drives the transport.
  virtual SymmetricBuffer do_allocate(std::int64_t bytes, int id) = 0;

  TransportShared& shared() const { return *shared_; }
  StreamHandle followed() const { return followed_; }
  int group() const { return group_; }

 private:
  friend class CommunicationThread;
  void run(Operation& operation);
  void run_exchange(Operation& operation);
  void await_followed(const Operation& operation, EventHandle event);
  Ticket submit(Operation&& operation, std::int64_t sent_bytes);
  void check_chunks(std::string_view kind, const SymmetricBuffer& buffer, std::int64_t offset,
                    std::span<const std::int64_t> bounds, std::string_view label) const;
  void check_counts(std::string_view kind, std::span<const std::int64_t> bytes, std::size_t available,
                    std::string_view what, std::string_view label) const;

  int rank_;
  std::vector<int> root_ranks_;
  int group_;
  int allocation_count_ = 0;
  StreamHandle followed_ = nullptr;
  std::vector<Outgoing> outgoing_;
  std::vector<Incoming> incoming_;
  mutable TransportCounters counters_;
  std::array<std::atomic<std::int64_t>, collective_count>
      busy_ns_{};  // by Collective; written by the communication thread
  // Shared by all groups of a root on this rank: it lives as long as any of them.
  std::shared_ptr<TransportShared> shared_;
};

}  // namespace regatta
