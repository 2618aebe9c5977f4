#pragma once
// Failures and farewells over the connections of a Meeting, after starting up: a thread takes in what comes and files
// it in this process's copies of the other ranks' records; rank 0's passes it on. A connection that ends without a
// farewell is a rank that is gone. Thread-safe.

#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "runtime/transport/nccl/collective_counts.h"
#include "runtime/transport/nccl/meeting.h"
#include "runtime/transport/peers.h"

namespace regatta {

class Notices final : public PeerLink {
 public:
  /// records[r] is written for every other rank; they outlive this. Farewells carry `counts`.
  Notices(std::shared_ptr<Meeting> meeting, std::vector<PeerRecord*> records, std::shared_ptr<CollectiveCounts> counts);
  ~Notices() override;

  void send_failure(const std::string& reason, Code code, bool secondary) noexcept override;
  void send_left() noexcept override;
  void poll() noexcept override {}

 private:
  void send(int from, const std::string& text, int except = -1) noexcept;
  void listen();
  void file(int from, const std::string& text);

  std::shared_ptr<Meeting> meeting_;  // shared with the backend
  std::vector<PeerRecord*> records_;
  std::shared_ptr<CollectiveCounts> counts_;  // shared with the groups
  std::mutex mutex_;                          // of the sending sides
  int wake_[2] = {-1, -1};
  std::thread thread_;
};

}  // namespace regatta
