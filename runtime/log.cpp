#include "runtime/log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <memory>

#include "runtime/error.h"

namespace regatta::log {
namespace {

thread_local std::string rank_prefix;

spdlog::level::level_enum native(Level level) {
  switch (level) {
    case Level::debug: return spdlog::level::debug;
    case Level::info: return spdlog::level::info;
    case Level::warning: return spdlog::level::warn;
    case Level::error: return spdlog::level::err;
    case Level::off: return spdlog::level::off;
  }
  return spdlog::level::info;
}

// A logger of our own, not spdlog's default: an application that uses spdlog keeps its settings, and we ours.
spdlog::logger& logger() {
  static spdlog::logger instance = [] {
    spdlog::logger made("regatta", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made.set_pattern("%v");
    made.set_level(spdlog::level::info);
    made.flush_on(spdlog::level::debug);
    return made;
  }();
  return instance;
}

void write(Level level, std::string_view word, std::string_view message) {
  const spdlog::level::level_enum as = native(level);
  if (logger().should_log(as)) logger().log(as, "{}{}{}", rank_prefix, word, message);
}

}  // namespace

void set_level(Level level) { logger().set_level(native(level)); }

Level level() {
  const spdlog::level::level_enum now = logger().level();
  if (now <= spdlog::level::debug) return Level::debug;
  if (now == spdlog::level::info) return Level::info;
  if (now == spdlog::level::warn) return Level::warning;
  return now == spdlog::level::off ? Level::off : Level::error;
}

Level level_by_name(std::string_view name) {
  if (name == "debug") return Level::debug;
  if (name == "info") return Level::info;
  if (name == "warning") return Level::warning;
  if (name == "error") return Level::error;
  if (name == "off") return Level::off;
  throw Error(Code::invalid_argument,
              "log level is '" + std::string(name) + "'; expected debug, info, warning, error or off");
}

void set_rank(int rank, int world_size) {
  rank_prefix = world_size > 1 ? "[" + std::to_string(rank) + "/" + std::to_string(world_size) + "] " : "";
}

void debug(std::string_view message) { write(Level::debug, "debug: ", message); }
void info(std::string_view message) { write(Level::info, "", message); }
void warning(std::string_view message) { write(Level::warning, "warning: ", message); }
void error(std::string_view message) { write(Level::error, "error: ", message); }

}  // namespace regatta::log
