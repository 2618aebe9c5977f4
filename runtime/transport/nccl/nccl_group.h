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
#include "runtime/transport/transport.h"

namespace regatta {

class Wait;

/// The device and the stream that all groups of a rank share.
struct NcclStream {
  explicit NcclStream(std::shared_ptr<Device> on) : device(std::move(on)), stream(*device) {}
  std::shared_ptr<Device> device;  // shared with engines
  Stream stream;
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
  /// What is left to do once an operation is done.
  struct Pending {
    std::unique_ptr<Staging> staging;
    struct Copy {
      std::byte* to;
      std::int64_t at, bytes;
    };
    std::vector<Copy> copies;
  };

  void in_group(std::string_view kind, std::string_view label, const std::function<void()>& calls);
  void settle(Wait& wait);
  void check(ncclResult_t result, std::string_view what) const;
  void abort_communicator() noexcept;
  ncclResult_t state();
  std::unique_ptr<Staging> staging(std::int64_t bytes);
  template <class Add>
  void add_others(const Add& add) const {
    for (int p = 0; p < world_size(); ++p)
      if (p != rank()) add(root_ranks()[p]);
  }

  std::shared_ptr<NcclStream> stream_;  // shared with the other groups
  ncclComm_t communicator_ = nullptr;
  std::mutex life_;  // of the communicator: aborting frees it
  bool aborted_ = false;
  Event begun_;
  Buffer pieces_memory_, flag_;
  std::vector<const std::byte*> pieces_;
  std::unique_ptr<Pending> next_;
  std::mutex mutex_;  // of the two below
  std::deque<std::unique_ptr<Pending>> pending_;
  std::vector<std::unique_ptr<Staging>> free_;
};

}  // namespace regatta
