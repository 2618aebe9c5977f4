#include "runtime/transport/nccl/notices.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace regatta {
namespace {

constexpr std::int32_t notice = 4;
constexpr std::string_view farewell = "left ";

}  // namespace

Notices::Notices(std::shared_ptr<Meeting> meeting, std::vector<PeerRecord*> records,
                 std::shared_ptr<CollectiveCounts> counts)
    : meeting_(std::move(meeting)), records_(std::move(records)), counts_(std::move(counts)) {
  const timeval no_limit{0, 0};
  for (const int socket : meeting_->sockets())
    if (socket >= 0) setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &no_limit, sizeof no_limit);
  if (pipe(wake_) != 0) throw Error(Code::device, "no pipe could be made");
  thread_ = std::thread([this] { listen(); });
}

Notices::~Notices() {
  close(wake_[1]);
  thread_.join();
  close(wake_[0]);
}

void Notices::send(int from, const std::string& text, int except) noexcept {
  const std::lock_guard lock(mutex_);
  for (int r = 0; r < meeting_->world_size(); ++r)
    if (meeting_->sockets()[r] >= 0 && r != except) Meeting::send_frame(meeting_->sockets()[r], notice, from, text);
}

void Notices::send_failure(const std::string& reason, Code code, bool secondary) noexcept {
  send(meeting_->rank(), std::to_string(static_cast<int>(code)) + (secondary ? " 1 " : " 0 ") + reason);
}

void Notices::send_left() noexcept { send(meeting_->rank(), std::string(farewell) + counts_->text()); }

void Notices::file(int from, const std::string& text) {
  PeerRecord& record = *records_[from];
  if (text.starts_with(farewell)) {
    counts_->file(from, text.substr(farewell.size()));
    record.left.store(1, std::memory_order_release);
    return;
  }
  const std::size_t first = text.find(' '), second = text.find(' ', first + 1);
  if (first == std::string::npos || second == std::string::npos) return;
  record.fail(text.substr(second + 1), static_cast<Code>(std::atoi(text.c_str())), text[first + 1] == '1');
}

void Notices::listen() {
  std::vector<int> sockets = meeting_->sockets();
  for (;;) {
    std::vector<pollfd> entries{{wake_[0], POLLIN, 0}};
    std::vector<int> ranks{-1};
    for (int r = 0; r < meeting_->world_size(); ++r)
      if (sockets[r] >= 0) {
        entries.push_back({sockets[r], POLLIN, 0});
        ranks.push_back(r);
      }
    if (::poll(entries.data(), entries.size(), -1) < 0) continue;
    if (entries[0].revents != 0) return;
    for (std::size_t i = 1; i < entries.size(); ++i) {
      if (entries[i].revents == 0) continue;
      Frame frame;
      std::string text;
      int from = ranks[i];
      if (Meeting::receive_frame(entries[i].fd, frame, text) && frame.kind == notice && frame.from >= 0 &&
          frame.from < meeting_->world_size() && frame.from != meeting_->rank()) {
        from = frame.from;
      } else {
        sockets[from] = -1;
        if (records_[from]->left.load(std::memory_order_acquire) != 0) continue;
        text = std::to_string(static_cast<int>(Code::transport)) + " 0 its process is gone";
      }
      file(from, text);
      if (sockets[from] < 0 && from == ranks[i]) records_[from]->left.store(1, std::memory_order_release);
      if (meeting_->rank() == 0) send(from, text, ranks[i]);
    }
  }
}

}  // namespace regatta
