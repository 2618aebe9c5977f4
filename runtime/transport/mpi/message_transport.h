#pragma once
// A group whose ranks reach each other only by MPI messages. Only nonblocking point-to-point calls are used, polled
// with the same waits as everywhere, because Open MPI's collectives never return when a rank is gone. With a device,
// its memory is what MPI reads and writes, which takes an MPI library that can.

#include <mpi.h>

#include <memory>
#include <string>
#include <vector>

#include "runtime/device/buffer.h"
#include "runtime/transport/mpi/mpi_session.h"
#include "runtime/transport/transport.h"

namespace regatta {

class Wait;

class MessageTransport final : public Transport {
 public:
  /// MPI counts bytes in an int; longer data goes in several messages.
  static constexpr std::int64_t longest_message = 64 << 20;

  MessageTransport(int rank, std::vector<int> root_ranks, int group, std::shared_ptr<TransportShared> shared,
                   std::shared_ptr<MpiSession> session, MPI_Comm communicator, int epoch, std::string data_path,
                   std::shared_ptr<Device> device);
  ~MessageTransport() override { drain(); }

  std::string data_path() const override { return data_path_; }
  Device* device() const override { return device_.get(); }
  StreamHandle stream() const override { return stream_.handle(); }

 protected:
  void do_reduce_scatter(const SymmetricBuffer& buffer, std::int64_t offset, std::span<const std::int64_t> bounds,
                         const Reducer& reduce, std::string_view label, std::optional<DType> elements) override;
  void do_all_gather(const SymmetricBuffer& buffer, std::int64_t offset, std::span<const std::int64_t> bounds,
                     std::string_view label) override;
  void do_exchange(std::span<const Outgoing> send, std::span<const Incoming> receive, std::string_view kind,
                   std::string_view label) override;
  void do_barrier(std::string_view label) override;
  SymmetricBuffer do_allocate(std::int64_t bytes, int id) override;

 private:
  struct Message {
    int peer;
    bool incoming;
    int bytes;
  };
  /// Messages under way; requests_[i] belongs to messages_[i] and is null once it has been completed.
  struct Batch {
    std::vector<MPI_Request> requests;
    std::vector<Message> messages;
    std::size_t open = 0;
  };

  void begin();
  void send(Batch& batch, int peer, const std::byte* data, std::int64_t bytes);
  void receive(Batch& batch, int peer, std::byte* data, std::int64_t bytes);
  void complete(Batch& batch, Wait& wait);
  bool progress(Batch& batch, const Wait& wait);
  void check_arrival(const Message& message, const MPI_Status& status, const Wait& wait) const;
  void abandon() noexcept;
  std::byte* staging(std::int64_t bytes);
  std::byte* device_staging(std::int64_t bytes);
  std::int64_t tile_bytes() const;
  std::shared_ptr<void> memory_of(std::int64_t bytes, std::byte*& data) const;

  std::shared_ptr<MpiSession> session_;  // shared with the backend; keeps the communicator
  MPI_Comm communicator_;
  int epoch_;
  std::string data_path_;
  std::shared_ptr<Device> device_;  // null for the host's memory; shared with the other groups and the engine
  Stream stream_;                   // of Reducers
  int tag_ = 0;
  std::uint64_t sequence_ = 0;
  std::vector<Batch> batches_;
  std::vector<int> indices_;
  std::vector<MPI_Status> statuses_;
  std::vector<char> heard_;  // by group rank, in the current collective
  std::vector<const std::byte*> pieces_;
  std::shared_ptr<void> staging_;  // grows to what the largest collective needs, then stays
  std::int64_t staging_bytes_ = 0;
  Buffer device_staging_;
};

}  // namespace regatta
