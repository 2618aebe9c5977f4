#pragma once
// Requests that a test leaves in a mailbox, and waits for facts in place of time.

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "runtime/control/mailbox.h"

namespace regatta::testing {

/// Ends a hang, nothing else.
inline void wait_until(const std::function<bool()>& fact, const char* what) {
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::minutes(2);
  while (!fact()) {
    ASSERT_LT(std::chrono::steady_clock::now(), give_up) << what;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

inline control::Request request(Command::Kind kind, const std::string& who = "somebody") {
  control::Request made;
  made.command.kind = kind;
  made.who = who;
  return made;
}

/// A request on its way, in the mailbox when the constructor ends.
class Sent {
 public:
  Sent(control::Mailbox& mailbox, control::Request request) {
    const std::size_t before = mailbox.waiting();
    thread_ = std::thread([this, &mailbox, request = std::move(request)]() mutable {
      answer_ = mailbox.send(std::move(request), [this] { return gone_.load(); });
      answered_ = true;
    });
    wait_until([&] { return mailbox.waiting() > before || answered_; }, "a request is in the mailbox");
  }
  ~Sent() {
    if (!thread_.joinable()) return;
    gone_ = true;
    thread_.join();
  }
  void give_up() { gone_ = true; }
  const control::Answer& answer() {
    if (thread_.joinable()) thread_.join();
    return answer_;
  }

 private:
  std::thread thread_;
  std::atomic<bool> gone_{false}, answered_{false};
  control::Answer answer_;
};

inline std::vector<std::string> lines_of(const std::string& path) {
  std::vector<std::string> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

}  // namespace regatta::testing
