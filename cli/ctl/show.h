#pragma once
// Replies as text for people and as JSON.

#include <regatta/v1/control.pb.h>

#include <cstddef>
#include <deque>
#include <string>

namespace regatta::cli {

/// One JSON document, without a line end. Names are the messages' own; int64 are numbers.
std::string json_text(const v1::Status& status);
std::string json_text(const v1::Plan& plan);
std::string json_text(const v1::Step& step);
std::string json_text(const v1::CommandReply& reply);

std::string plain_text(const v1::Status& status);
std::string plain_text(const v1::Plan& plan);
/// `done` says what happened, such as "paused before".
std::string plain_text(const v1::CommandReply& reply, const std::string& done);

/// The last steps as lines of a table; in a terminal they are drawn over one another.
class WatchTable {
 public:
  explicit WatchTable(bool terminal) : terminal_(terminal) {}
  void add(const v1::Step& step);

 private:
  bool terminal_;
  bool begun_ = false;
  std::deque<std::string> rows_;
  std::size_t drawn_ = 0;  // lines on the screen
};

}  // namespace regatta::cli
