#include "runtime/control/audit_log.h"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

#include "runtime/log.h"

namespace regatta::control {
namespace {

std::string now_text() {
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  const auto millis = std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char text[40];
  const std::size_t length = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(text + length, sizeof text - length, ".%03dZ", static_cast<int>(millis));
  return text;
}

const char* name_of(Command::Kind kind) {
  switch (kind) {
    case Command::Kind::set: return "set";
    case Command::Kind::pause: return "pause";
    case Command::Kind::resume: return "resume";
    case Command::Kind::save: return "checkpoint";
    case Command::Kind::drain: return "drain";
    case Command::Kind::none: break;
  }
  return "none";
}

}  // namespace

AuditLog::AuditLog(const std::string& path) : path_(path), file_(path, std::ios::app) {
  if (!file_)
    throw Error(Code::invalid_argument,
                "the audit log " + path + " does not open; expected a path that can be written");
}

void AuditLog::write(const Request& request, const Answer& answer) {
  nlohmann::ordered_json line{{"time", now_text()},
                              {"who", request.who},
                              {"command", name_of(request.command.kind)},
                              {"accepted", answer.kind == Answer::Kind::accepted}};
  if (request.dry_run) line["dry_run"] = true;
  if (answer.kind == Answer::Kind::accepted) {
    line["step"] = answer.step;
    line["changes"] = nlohmann::json::array();
    for (const SettingChange& change : answer.changes) {
      nlohmann::ordered_json entry{{"name", change.name},
                                   {"from", std::isnan(change.from) ? nlohmann::json() : nlohmann::json(change.from)},
                                   {"to", change.to}};
      if (!change.group.empty()) entry["group"] = change.group;
      line["changes"].push_back(std::move(entry));
    }
  } else {
    line["reason"] = answer.sentence;
  }
  // Text from outside may be anything but UTF-8.
  file_ << line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << '\n' << std::flush;
  if (!file_) log::warning("the audit log " + path_ + " cannot be written any more");
}

}  // namespace regatta::control
