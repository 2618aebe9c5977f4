#pragma once
// Flags of a subcommand from a TOML file.

#include <string>

namespace CLI {
class App;
}

namespace regatta::cli {

/// Gives every flag of `command` that the command line left out the value that `path` has for it: NAME = VALUE with the
/// flag's name without dashes, lists as [A, B], true for flags without a value; at the top or in a section named after
/// the command. To be called from the command's callback. Throws Error(invalid_argument) naming the file and the line's
/// name when there is no such flag or its value does not fit.
void apply_config(CLI::App& command, const std::string& path);

}  // namespace regatta::cli
