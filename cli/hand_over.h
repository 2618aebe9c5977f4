#pragma once
// Commands that live in the program `regatta-torch`: this process becomes that one, with the same arguments,
// environment and process number, so that mpirun, signals and exit codes know no difference.

namespace CLI {
class App;
}

namespace regatta::cli {

/// Registers `command`, whose flags only the other program knows.
void hand_over(CLI::App& app, const char* command, const char* description);

}  // namespace regatta::cli
