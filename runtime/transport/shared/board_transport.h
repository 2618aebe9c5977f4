#pragma once
// A group whose ranks share memory, as threads of a process or processes of a host. Large data is read straight from
// the peers' buffers; small data goes through the board's rings. Used by the local and the mpi transport.

#include <memory>
#include <string>
#include <vector>

#include "runtime/transport/shared/board.h"
#include "runtime/transport/shared/memory_sharing.h"
#include "runtime/transport/transport.h"

namespace regatta {

class Wait;

class BoardTransport final : public Transport {
 public:
  /// `board` lies in memory kept alive by `board_owner`, the same on all ranks of the group.
  BoardTransport(int rank, std::vector<int> root_ranks, int group, std::shared_ptr<TransportShared> shared,
                 std::byte* board, std::shared_ptr<void> board_owner, std::shared_ptr<MemorySharing> sharing,
                 std::string data_path);
  ~BoardTransport() override { drain(); }

  std::string data_path() const override { return data_path_; }

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
  /// How much of a message to or from one peer has moved, its header included.
  struct Progress {
    std::int64_t sent = 0;
    std::int64_t received = 0;
    std::uint64_t sent_messages = 0;
    std::uint64_t received_messages = 0;
  };

  void arrive(Wait& wait, std::uint64_t signature, std::string_view label);
  void wait_for(Wait& wait, int peer);
  void finish(Wait& wait);
  void check_signature(const Wait& wait, int peer, std::uint64_t signature) const;
  bool send_some(int peer, const Outgoing& message);
  bool receive_some(int peer, const Incoming& message, std::string_view kind, std::string_view label);

  Board board_;
  std::shared_ptr<void> board_owner_;       // shared by the ranks of the group
  std::shared_ptr<MemorySharing> sharing_;  // shared by the groups of this rank
  std::string data_path_;
  std::uint64_t sequence_ = 0;
  std::vector<const std::byte*> pieces_;
  std::vector<Progress> progress_;
};

}  // namespace regatta
