#pragma once
// A file with a JSON line for every command: when, who, what, from which value to which, and the step from which it
// holds. One thread.

#include <fstream>
#include <string>

#include "runtime/control/mailbox.h"

namespace regatta::control {

class AuditLog {
 public:
  /// Appends to `path`; throws Error(invalid_argument) when it does not open.
  explicit AuditLog(const std::string& path);
  /// A line that cannot be written is told as a warning: the command has been accepted on all ranks by then.
  void write(const Request& request, const Answer& answer);

 private:
  std::string path_;
  std::ofstream file_;
};

}  // namespace regatta::control
