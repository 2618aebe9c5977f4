#pragma once
// One group of ranks over an NCCL communicator. The driving thread puts collectives on the stream; the communication
// thread watches them and, when one fails or its deadline passes, aborts the communicator, which ends them all.

#include <nccl.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "runtime/device/buffer.h"
#include "runtime/device/device.h"
#include "runtime/transport/nccl/collective_counts.h"
#include "runtime/transport/transport.h"

namespace regatta {

class Wait;

/// What all groups of a rank share.
struct NcclStream {
  NcclStream(std::shared_ptr<Device> on, std::shared_ptr<CollectiveCounts> shared_counts)
      : device(std::move(on)), stream(*device), counts(std::move(shared_counts)) {}
  std::shared_ptr<Device> device;  // shared with engines
  Stream stream;
  std::shared_ptr<CollectiveCounts> counts;  // shared with the notices
};

class NcclGroup final : public Transport {
 public:
  /// Joins the communicator `id`. Blocking, with the deadline.
  NcclGroup(int rank, std::vector<int> root_ranks, int group, std::shared_ptr<TransportShared> shared,
            std::shared_ptr<NcclStream> stream, const ncclUniqueId& id);
  ~NcclGroup() override;

  std::string data_path() const override;
  bool runs_on_stream() const override { return true; }
  Device* device() const override { return stream_->device.get(); }
  StreamHandle stream() const override { return stream_->stream.handle(); }

 protected:
  void do_reduce_scatter(const SymmetricBuffer& buffer, std::int64_t offset, std::span<const std::int64_t> bounds,
                         const Reducer& reduce, std::string_view label, std::optional<DType> elements) override;
  void do_all_gather(const SymmetricBuffer& buffer, std::int64_t offset, std::span<const std::int64_t> bounds,
                     std::string_view label) override;
  void do_exchange(std::span<const Outgoing> send, std::span<const Incoming> receive, std::string_view kind,
                   std::string_view label) override;
  void do_barrier(std::string_view label) override;
  SymmetricBuffer do_allocate(std::int64_t bytes, int id) override;
  void do_begin() override;
  void do_mark(Operation& operation, EventHandle event) override;
  void do_watch(Operation& operation, EventHandle event) override;

 private:
  /// Small memory of both sides, for exchanges of the host's memory.
  struct Staging {
    Buffer host, memory;
  };
  /// An operation on the stream, and what is left to do once it is done.
  struct Pending {
    std::int64_t number = 0;  // of the group's collectives, from 1
    std::unique_ptr<Staging> staging;
    struct Copy {
      std::byte* to;
      std::int64_t at, bytes;
    };
    std::vector<Copy> copies;
  };

  /// All calls together; waits until the library has taken them.
  void in_group(std::string_view kind, std::string_view label, const std::function<void()>& calls);
  void settle(Wait& wait);
  void watch(const Operation& operation, EventHandle event, std::int64_t number);
  void check(ncclResult_t result, std::string_view what) const;
  void abort_communicator() noexcept;
  ncclResult_t state();
  std::unique_ptr<Staging> staging(std::int64_t bytes);
  /// The ranks that collective `number` may wait for: all others, but for those that left after it.
  template <class Add>
  void add_others(std::int64_t number, const Add& add) const {
    for (int p = 0; p < world_size(); ++p)
      if (p != rank() && !stream_->counts->left_after(root_ranks()[p], group(), number)) add(root_ranks()[p]);
  }

  std::shared_ptr<NcclStream> stream_;  // shared with the other groups
  ncclComm_t communicator_ = nullptr;
  std::mutex life_;  // of the communicator: aborting frees it
  bool aborted_ = false;
  Event begun_;
  Buffer pieces_memory_, flag_;
  std::vector<const std::byte*> pieces_;
  Pending next_;      // the operation that is put on the stream now
  std::mutex mutex_;  // of the two below
  std::deque<Pending> pending_;
  std::vector<std::unique_ptr<Staging>> free_;
};

}  // namespace regatta
