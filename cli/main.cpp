#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>

#include "cli/commands.h"
#include "cli/usage.h"
#include "runtime/error.h"
#include "runtime/version.h"

namespace regatta::cli {
namespace {

int process_exit_code = exit_ok;

constexpr const char* about =
    "Regatta: a sharded optimizer runtime whose results do not change by one bit with the number of ranks.\n";

constexpr const char* examples =
    "Examples:\n"
    "  regatta doctor                                what was built in, what was found, what would go wrong\n"
    "  regatta plan --help                           memory and bytes per rank of a model, without running\n"
    "  regatta rules                                 the update rules, what they see and keep, their settings\n"
    "  mpirun -n 2 regatta finetune --transport mpi --mesh dp=2 --init DIR --data text.txt --out DIR\n"
    "  regatta replay --in case.safetensors --out result.safetensors --rule reg --mesh dp=4\n"
    "  regatta COMMAND --help                        all flags of one command, with examples\n"
    "\n"
    "Results go to stdout, progress and errors to stderr. With --json a command prints one JSON document.\n"
    "Exit codes: 0 success, 1 a failure at run time, 2 wrong usage or bad input.\n";

void complain(const CLI::App& app, const std::string& sentence) {
  const std::vector<CLI::App*> chosen = app.get_subcommands();
  const std::string command = chosen.empty() ? "" : " " + chosen.front()->get_name();
  std::fprintf(stderr, "regatta%s: %s\n", command.c_str(), sentence.c_str());
}

int run(int argc, char** argv) {
  CLI::App app{about, "regatta"};
  app.footer(examples);
  app.set_version_flag("--version", "regatta " + version_text());
  app.require_subcommand(1);
  add_commands(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help_or_version) {
    return app.exit(help_or_version);
  } catch (const CLI::RuntimeError& code) {
    return code.get_exit_code();
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "%s\n", usage_sentence(app, error).c_str());
    return exit_bad_input;
  } catch (const Error& error) {
    complain(app, error.what());
    return error.code() == Code::invalid_argument ? exit_bad_input : exit_failure;
  } catch (const std::invalid_argument& error) {
    complain(app, error.what());
    return exit_bad_input;
  } catch (const std::exception& error) {
    complain(app, error.what());
    return exit_failure;
  }
  return process_exit_code;
}

}  // namespace

void set_exit_code(int code) { process_exit_code = code; }

}  // namespace regatta::cli

int main(int argc, char** argv) { return regatta::cli::run(argc, argv); }
