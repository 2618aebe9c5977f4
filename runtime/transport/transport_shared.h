#pragma once
// What all groups of a root transport share on one rank, and the seam to the backends that make groups. Internal to
// runtime/transport.

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/transport/communication_thread.h"
#include "runtime/transport/peers.h"
#include "runtime/transport/transport.h"

namespace regatta {

/// Makes the groups of one rank. Called by the thread that drives the transport.
class TransportBackend {
 public:
  virtual ~TransportBackend() = default;
  virtual std::string_view name() const = 0;
  /// What the first rank of a group tells the others so that they can meet: passed to join as it is.
  virtual std::string offer(std::span<const int> root_ranks) = 0;
  virtual std::unique_ptr<Transport> join(int rank, std::vector<int> root_ranks, int group,
                                          std::shared_ptr<TransportShared> shared, const std::string& offer) = 0;
  /// All have joined (or it was given up).
  virtual void retire(const std::string& offer) noexcept = 0;
};

struct TransportShared {
  TransportShared(TransportOptions options, std::shared_ptr<Peers> peers, std::shared_ptr<TransportBackend> backend,
                  int world_size);
  ~TransportShared();

  TransportOptions options;
  int next_group = 1;
  // Shared with the communication thread and the backend, which use it while this is being destroyed.
  std::shared_ptr<Peers> peers;
  std::shared_ptr<TransportBackend> backend;
  // Last, so that it ends first.
  CommunicationThread thread;
};

}  // namespace regatta
