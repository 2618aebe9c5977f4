#pragma once
// The subcommands of the `regatta` program. Each lives in its own file cli/NAME.cpp and registers itself: flags, help
// text with examples, and a callback that runs after parsing. cli/CMakeLists.txt names the ones that are built.
//
// A callback answers in one of three ways:
// - returns: the exit code given to set_exit_code, 0 by default;
// - throws Error: main prints "regatta NAME: SENTENCE" on stderr and exits with 2 for Code::invalid_argument and 1
// otherwise
//   (std::invalid_argument counts as the former);
// - calls set_exit_code(exit_failure) after it has printed the sentence itself, for example once for all ranks.
// Results go to stdout, progress and errors to stderr. Callbacks run on the main thread.

namespace CLI {
class App;
}

namespace regatta::cli {

inline constexpr int exit_ok = 0;
inline constexpr int exit_failure = 1;    ///< the run failed: a peer, a disk, a number
inline constexpr int exit_bad_input = 2;  ///< wrong flag, file or value; nothing was changed

/// Of the commands that two programs know (hand_over.h).
inline constexpr const char* finetune_description = "Fine-tune or pre-train a decoder on text";
inline constexpr const char* doctor_description =
    "What was built in and found, whether transports work, what would go wrong";

/// The exit code of the process when the callback returns. The last call counts.
void set_exit_code(int code);

void add_finetune(CLI::App& app);
void add_replay(CLI::App& app);
void add_ctl(CLI::App& app);
void add_plan(CLI::App& app);
void add_rules(CLI::App& app);
void add_inspect(CLI::App& app);
void add_consolidate(CLI::App& app);
void add_bench(CLI::App& app);
void add_doctor(CLI::App& app);

/// Registers the subcommands that were built, in the order of cli/CMakeLists.txt. Generated.
void add_commands(CLI::App& app);

}  // namespace regatta::cli
