#include "runtime/transport/mpi/mpi_peer_link.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

namespace regatta {

MpiPeerLink::MpiPeerLink(std::shared_ptr<MpiSession> session, int epoch, std::vector<PeerRecord*> records,
                         std::vector<int> distant, std::vector<ProcessId> processes)
    : session_(std::move(session)),
      epoch_(epoch),
      records_(std::move(records)),
      distant_(std::move(distant)),
      processes_(std::move(processes)) {
  session_->keep_communicators();
  open_ = true;
  listen();
}

void MpiPeerLink::listen() {
  const int result =
      MPI_Irecv(&incoming_, sizeof incoming_, MPI_BYTE, MPI_ANY_SOURCE, 0, session_->notices(), &request_);
  if (result != MPI_SUCCESS) request_ = MPI_REQUEST_NULL;
}

void MpiPeerLink::take_in(int from) {
  if (incoming_.epoch != epoch_) return;
  PeerRecord& record = *records_[from];
  incoming_.reason[PeerRecord::reason_bytes - 1] = '\0';
  if (incoming_.kind == failure)
    record.fail(incoming_.reason, static_cast<Code>(incoming_.code), incoming_.secondary != 0);
  if (incoming_.kind == left) record.left.store(1, std::memory_order_release);
}

void MpiPeerLink::poll() noexcept {
  // Another thread that is at it already will do.
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock || !open_ || !mpi_is_running()) return;
  while (request_ != MPI_REQUEST_NULL) {
    int arrived = 0;
    MPI_Status status;
    if (MPI_Test(&request_, &arrived, &status) != MPI_SUCCESS || arrived == 0) return;
    take_in(status.MPI_SOURCE);
    listen();
  }
}

void MpiPeerLink::send(Notice& notice) noexcept {
  const std::lock_guard lock(mutex_);
  if (!open_ || !mpi_is_running()) return;
  std::vector<MPI_Request> requests;
  for (const int rank : distant_) {
    if (processes_[rank].ended()) continue;
    MPI_Request request = MPI_REQUEST_NULL;
    if (MPI_Isend(&notice, sizeof notice, MPI_BYTE, rank, 0, session_->notices(), &request) == MPI_SUCCESS) {
      requests.push_back(request);
    }
  }
  // Small messages leave at once. A rank that is gone takes none: it must not hold up the others.
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::milliseconds(500);
  int sent = 0;
  while (sent == 0 && std::chrono::steady_clock::now() < give_up) {
    MPI_Testall(static_cast<int>(requests.size()), requests.data(), &sent, MPI_STATUSES_IGNORE);
    if (sent == 0) std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

void MpiPeerLink::send_failure(const std::string& reason, Code code, bool secondary) noexcept {
  // Called once per life: only a rank's first failure counts.
  failure_ = {epoch_, failure, static_cast<int>(code), secondary ? 1 : 0, {}};
  const std::size_t length = std::min<std::size_t>(reason.size(), PeerRecord::reason_bytes - 1);
  std::memcpy(failure_.reason, reason.data(), length);
  send(failure_);
}

void MpiPeerLink::send_left() noexcept {
  left_ = {epoch_, left, 0, 0, {}};
  send(left_);
}

void MpiPeerLink::close() noexcept {
  const std::lock_guard lock(mutex_);
  if (!open_) return;
  open_ = false;
  // A program that finalises MPI too early must not bring the process down here.
  if (request_ == MPI_REQUEST_NULL || !mpi_is_running()) return;
  MPI_Cancel(&request_);
  MPI_Status status;
  MPI_Wait(&request_, &status);
}

}  // namespace regatta
