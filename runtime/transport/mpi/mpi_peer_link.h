#pragma once
// Carries failures and farewells as MPI messages to ranks that do not share memory with this one, and files what they
// send in this process's copies of their records. Thread-safe.

#include <mpi.h>

#include <memory>
#include <mutex>
#include <vector>

#include "runtime/transport/mpi/mpi_session.h"
#include "runtime/transport/peers.h"

namespace regatta {

class MpiPeerLink final : public PeerLink {
 public:
  /// records[r] is written for each r of `distant`; processes[r] tells whether it can still take a notice. Notices of
  /// other epochs are ignored.
  MpiPeerLink(std::shared_ptr<MpiSession> session, int epoch, std::vector<PeerRecord*> records,
              std::vector<int> distant, std::vector<ProcessId> processes);
  ~MpiPeerLink() override { close(); }

  void send_failure(const std::string& reason, Code code, bool secondary) noexcept override;
  void send_left() noexcept override;
  void poll() noexcept override;
  /// Stops listening. Must be called before MPI_Finalize.
  void close() noexcept;

 private:
  struct Notice {
    int epoch;
    int kind;
    int code;
    int secondary;
    char reason[PeerRecord::reason_bytes];
  };
  enum : int { failure = 1, left = 2 };

  void send(Notice& notice) noexcept;
  void listen();
  void take_in(int from);

  std::shared_ptr<MpiSession> session_;  // shared with the backend
  int epoch_;
  std::vector<PeerRecord*> records_;
  std::vector<int> distant_;
  std::vector<ProcessId> processes_;
  std::mutex mutex_;
  bool open_ = false;
  MPI_Request request_ = MPI_REQUEST_NULL;
  Notice incoming_{};
  // Sent from: they must outlive their sends, so each is used once.
  Notice failure_{};
  Notice left_{};
};

}  // namespace regatta
