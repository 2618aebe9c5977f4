#pragma once
// What the runtime tells a person while it works: levels, and the rank that speaks. One line per message on stderr,
// written whole, so that lines of several ranks do not mix. Callable from any thread. Failures are not logged but
// thrown.
//
//     log::set_rank(3, 8);
//     log::warning("parameter lm_head.weight got no gradient in step 12");     ->  [3/8] warning: parameter ...

#include <string>
#include <string_view>

namespace regatta::log {

enum class Level { debug, info, warning, error, off };

/// Messages below `level` are dropped; the start value is Level::info. Holds for the whole process.
void set_level(Level level);
Level level();
/// "debug", "info", "warning", "error" or "off"; anything else throws Error(invalid_argument).
Level level_by_name(std::string_view name);

/// The prefix of the calling thread's lines, as ranks may be threads of one process. A world of one has no prefix.
void set_rank(int rank, int world_size);

void debug(std::string_view message);
void info(std::string_view message);
void warning(std::string_view message);
void error(std::string_view message);

}  // namespace regatta::log
