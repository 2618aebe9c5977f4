#include "cli/hand_over.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "runtime/error.h"

namespace regatta::cli {
namespace {

[[noreturn]] void become(const std::string& command, std::vector<std::string> flags) {
  namespace fs = std::filesystem;
  std::error_code failed;
  const fs::path program = fs::read_symlink("/proc/self/exe", failed).parent_path() / "regatta-torch";
  std::vector<std::string> words{"regatta", command};
  words.insert(words.end(), flags.begin(), flags.end());
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  ::execv(program.c_str(), arguments.data());
  throw Error(Code::invalid_argument, "the program " + program.string() +
                                          ", which this command is in, cannot be started: " + std::strerror(errno) +
                                          "; it is built and installed with regatta");
}

}  // namespace

void hand_over(CLI::App& app, const char* command, const char* description) {
  CLI::App* sub = app.add_subcommand(command, description);
  sub->set_help_flag();  // --help is the other program's
  sub->prefix_command();
  sub->callback([sub] { become(sub->get_name(), sub->remaining()); });
}

}  // namespace regatta::cli
