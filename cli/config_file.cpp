#include "cli/config_file.h"

#include <CLI/CLI.hpp>
#include <fstream>
#include <vector>

#include "runtime/error.h"

namespace regatta::cli {

namespace {

[[noreturn]] void refuse(const std::string& path, const std::string& what) {
  throw Error(Code::invalid_argument, "--config " + path + ": " + what);
}

std::string first_line(const char* text) {
  const std::string all = text;
  return all.substr(0, all.find('\n'));
}

}  // namespace

// CLI11 reads configuration files for the program as a whole only, not for a subcommand.
void apply_config(CLI::App& command, const std::string& path) {
  std::ifstream file(path);
  if (!file) refuse(path, "cannot be opened");
  std::vector<CLI::ConfigItem> items;
  try {
    items = CLI::ConfigTOML().from_config(file);
  } catch (const CLI::Error& error) {
    refuse(path, first_line(error.what()));
  }
  for (const CLI::ConfigItem& item : items) {
    if (item.name == "++" || item.name == "--") continue;  // where a section begins or ends
    if (!item.parents.empty() && item.parents != std::vector<std::string>{command.get_name()}) continue;
    CLI::Option* option = command.get_option_no_throw("--" + item.name);
    if (option == nullptr || item.name == "config" || item.name == "help")
      refuse(path, "there is no flag --" + item.name);
    if (option->count() > 0) continue;
    try {
      if (option->get_expected_min() == 0) {  // a flag without a value
        option->add_result(
            CLI::detail::to_flag_value(item.inputs.empty() ? "true" : item.inputs.front()) > 0 ? "true" : "false");
      } else {
        for (const std::string& value : item.inputs) option->add_result(value);
      }
      option->run_callback();
    } catch (const std::exception& error) {
      refuse(path, item.name + ": " + first_line(error.what()));
    }
  }
}

}  // namespace regatta::cli
