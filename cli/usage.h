#pragma once
// Turns a command line that did not parse into one sentence for a person. Pure; no printing.

#include <string>

namespace CLI {
class App;
class ParseError;
}  // namespace CLI

namespace regatta::cli {

/// One sentence: which command, what was wrong, the nearest flag when a flag is unknown, and where the help is.
std::string usage_sentence(const CLI::App& app, const CLI::ParseError& error);

}  // namespace regatta::cli
