#include "runtime/transport/peers.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace regatta {
namespace {

struct ProcessState {
  bool exists = false;
  char state = '?';
  std::uint64_t started = 0;
};

/// Reads /proc/PID/stat: field 3 is the state, field 22 the start time. The name in field 2 may hold spaces and
/// brackets.
ProcessState read_process(int pid) {
  ProcessState found;
  char path[32];
  std::snprintf(path, sizeof path, "/proc/%d/stat", pid);
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    // Without a readable /proc, the signal 0 still tells whether there is such a process.
    found.exists = errno != ENOENT && !(kill(pid, 0) != 0 && errno == ESRCH);
    return found;
  }
  char text[1024];
  const ssize_t length = read(file, text, sizeof text - 1);
  close(file);
  if (length <= 0) return found;
  text[length] = '\0';
  const char* field = std::strrchr(text, ')');
  if (field == nullptr || field[1] != ' ') return found;
  found.exists = true;
  field += 2;
  found.state = *field;
  for (int skipped = 3; skipped < 22; ++skipped) {
    field = std::strchr(field, ' ');
    if (field == nullptr) return found;
    ++field;
  }
  found.started = std::strtoull(field, nullptr, 10);
  return found;
}

}  // namespace

bool PeerRecord::fail(std::string_view text, Code why, bool is_secondary) noexcept {
  std::int32_t expected = running;
  if (!state.compare_exchange_strong(expected, writing, std::memory_order_acquire)) return false;
  code = static_cast<std::int32_t>(why);
  secondary = is_secondary ? 1 : 0;
  const std::size_t length = std::min<std::size_t>(text.size(), reason_bytes - 1);
  std::memcpy(reason, text.data(), length);
  reason[length] = '\0';
  state.store(failed, std::memory_order_release);
  return true;
}

ProcessId ProcessId::self() {
  const int pid = static_cast<int>(getpid());
  return {pid, read_process(pid).started};
}

bool ProcessId::ended() const {
  if (pid == 0) return false;
  const ProcessState now = read_process(pid);
  return !now.exists || now.state == 'Z' || now.state == 'X' || (now.started != 0 && now.started != started);
}

Peers::Peers(int rank, std::vector<PeerRecord*> records, std::vector<std::shared_ptr<void>> owners,
             std::vector<ProcessId> processes, const std::atomic<bool>* stop)
    : rank_(rank),
      records_(std::move(records)),
      owners_(std::move(owners)),
      processes_(std::move(processes)),
      stop_(stop) {}

void Peers::fail(const std::string& reason, Code code, bool secondary) noexcept {
  if (records_[rank_]->fail(reason, code, secondary) && link_) link_->send_failure(reason, code, secondary);
}

void Peers::leave() noexcept {
  if (records_[rank_]->left.exchange(1, std::memory_order_acq_rel) == 0 && link_) link_->send_left();
}

bool Peers::troubled() const noexcept {
  poll();
  if (gave_up()) return true;
  if (stop_ != nullptr && stop_->load(std::memory_order_relaxed)) return true;
  for (const PeerRecord* record : records_) {
    if (record->state.load(std::memory_order_acquire) == PeerRecord::failed) return true;
  }
  return false;
}

void Peers::check(std::string_view kind, std::string_view label) const {
  poll();
  int first = -1;
  for (int r = 0; r < world_size(); ++r) {
    if (records_[r]->state.load(std::memory_order_acquire) != PeerRecord::failed) continue;
    // The rank where it began tells more than those that only pass it on.
    if (first < 0 || (records_[first]->secondary && !records_[r]->secondary)) first = r;
  }
  if (first >= 0) {
    const PeerRecord& record = *records_[first];
    if (record.secondary) throw Error(Code::aborted, record.reason);
    const std::string who = first == rank_ ? "this rank" : "rank " + std::to_string(first);
    throw Error(Code::aborted, who + " stopped: " + record.reason);
  }
  if (gave_up()) {
    throw Error(Code::aborted, std::string(kind) + " '" + std::string(label) + "' was given up by this rank");
  }
  if (stop_ != nullptr && stop_->load(std::memory_order_relaxed)) {
    throw Error(Code::aborted,
                "the job was told to stop; " + std::string(kind) + " '" + std::string(label) + "' was given up");
  }
}

std::string Peers::ended(int rank) const {
  if (records_[rank]->left.load(std::memory_order_acquire) != 0) {
    return "rank " + std::to_string(rank) + " has left the job";
  }
  if (!processes_.empty() && processes_[rank].ended()) {
    return "rank " + std::to_string(rank) + " (pid " + std::to_string(processes_[rank].pid) + ") is gone";
  }
  return {};
}

PeerStatus Peers::status(int rank) const {
  PeerStatus status;
  const PeerRecord& record = *records_[rank];
  status.closed = record.left.load(std::memory_order_acquire) != 0;
  if (record.state.load(std::memory_order_acquire) == PeerRecord::failed) {
    status.state = PeerStatus::State::failed;
    status.code = static_cast<Code>(record.code);
    status.secondary = record.secondary != 0;
    status.reason = record.reason;
  } else if (status.closed) {
    status.state = PeerStatus::State::left;
  }
  if (!status.closed && rank != rank_ && !processes_.empty() && processes_[rank].ended()) {
    if (status.state == PeerStatus::State::running) {
      status.state = PeerStatus::State::gone;
      status.code = Code::transport;
      status.reason = "rank " + std::to_string(rank) + " (pid " + std::to_string(processes_[rank].pid) + ") is gone";
    }
    status.closed = true;
  }
  return status;
}

}  // namespace regatta
