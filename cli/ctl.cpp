// `regatta ctl`: sees and steers a running job.

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdio>
#include <memory>

#include "cli/commands.h"
#include "cli/ctl/client.h"
#include "cli/ctl/show.h"
#include "runtime/error.h"

namespace regatta::cli {
namespace {

struct Flags {
  CtlSettings connection;
  bool json = false;
  std::vector<std::string> changes;
  std::string group;
  bool dry_run = false;
  std::int64_t steps = 0;
};

v1::SetHyperparametersRequest request_of(const Flags& flags) {
  v1::SetHyperparametersRequest request;
  request.set_group(flags.group);
  request.set_dry_run(flags.dry_run);
  for (const std::string& text : flags.changes) {
    const std::size_t equals = text.find('=');
    const std::string name = text.substr(0, equals);
    double value = 0;
    const char* end = text.data() + text.size();
    const auto parsed = equals == std::string::npos ? std::from_chars_result{nullptr, std::errc::invalid_argument}
                                                    : std::from_chars(text.data() + equals + 1, end, value);
    if (parsed.ec != std::errc() || parsed.ptr != end)
      throw Error(Code::invalid_argument, "'" + text + "' is not NAME=NUMBER, such as lr=0.001");
    if (name == "lr")
      request.set_lr(value);
    else if (name == "weight_decay")
      request.set_weight_decay(value);
    else if (name == "momentum")
      request.set_momentum(value);
    else if (name == "rho")
      request.set_rho(value);
    else if (name == "clip")
      request.set_clip(value);
    else
      throw Error(Code::invalid_argument, "'" + name +
                                              "' cannot be changed in a running job; expected lr, weight_decay, "
                                              "momentum, rho or clip");
  }
  return request;
}

template <class Message>
void print(const Flags& flags, const Message& message) {
  std::fputs((flags.json ? json_text(message) + "\n" : plain_text(message)).c_str(), stdout);
}

void print(const Flags& flags, const v1::CommandReply& reply, const std::string& done) {
  std::fputs((flags.json ? json_text(reply) + "\n" : plain_text(reply, done)).c_str(), stdout);
}

void watch(const Flags& flags) {
  WatchTable table(!flags.json && ::isatty(STDOUT_FILENO) == 1);
  std::int64_t seen = 0;
  CtlClient(flags.connection).watch([&](const v1::Step& step) {
    if (flags.json) {
      std::printf("%s\n", json_text(step).c_str());
      std::fflush(stdout);
    } else {
      table.add(step);
    }
    return flags.steps == 0 || ++seen < flags.steps;
  });
}

}  // namespace

void add_ctl(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* ctl = app.add_subcommand("ctl", "See and steer a running job");
  ctl->footer(
      "Examples:\n"
      "  regatta ctl 127.0.0.1:7070 status\n"
      "  regatta ctl 127.0.0.1:7070 watch\n"
      "  regatta ctl 127.0.0.1:7070 set lr=0.001 weight_decay=0.05\n"
      "  regatta ctl 127.0.0.1:7070 set rho=0.1 --group reg --dry-run\n"
      "  regatta ctl node7:7070 --tls-ca ca.pem --tls-cert me.pem --tls-key me.key --token-file token pause\n"
      "A command holds on all ranks from the step that is printed, or on none.");
  CtlSettings& connection = flags->connection;
  ctl->add_option("ADDRESS", connection.address, "HOST:PORT of the job's --control-address")->required();
  ctl->add_option("--token-file", connection.token_file, "File with the job's token");
  ctl->add_option("--tls-ca", connection.tls_ca, "PEM certificate of the authority that signs the job's");
  ctl->add_option("--tls-cert", connection.tls_cert, "PEM certificate of this client");
  ctl->add_option("--tls-key", connection.tls_key, "PEM key of this client");
  ctl->add_option("--tls-name", connection.tls_name, "Name in the job's certificate, when it is not HOST");
  ctl->add_option("--timeout", connection.timeout_seconds,
                  "Seconds to wait; 15 for questions and 600 for commands by default, as those end with a step")
      ->check(CLI::PositiveNumber);
  ctl->add_flag("--json", flags->json, "JSON on stdout; watch prints one document per line");
  ctl->require_subcommand(1);
  ctl->fallthrough();  // flags of ctl may come after the subcommand

  const auto add = [&](const char* name, const char* text, auto&& body) {
    CLI::App* command = ctl->add_subcommand(name, text);
    command->callback([flags, body] { body(*flags); });
    return command;
  };
  add("status", "What the job does and how it is doing", [](Flags& f) { print(f, CtlClient(f.connection).status()); });
  add("plan", "Placement and bytes per rank", [](Flags& f) { print(f, CtlClient(f.connection).plan()); });
  add("watch", "Every step as it ends", [](Flags& f) { watch(f); })
      ->add_option("--steps", flags->steps, "Stop after so many")
      ->check(CLI::PositiveNumber);
  CLI::App* set = add("set", "Change settings on all ranks", [](Flags& f) {
    const v1::SetHyperparametersRequest request = request_of(f);
    print(f, CtlClient(f.connection).set(request), "in effect on all ranks from");
  });
  set->add_option("NAME=VALUE", flags->changes, "lr, weight_decay, momentum, rho, clip")->required();
  set->add_option("--group", flags->group, "Only this group; its lr is then its own, without the group's scale");
  set->add_flag("--dry-run", flags->dry_run, "Only say what would change");
  add("checkpoint", "Save a checkpoint after the step in progress",
      [](Flags& f) { print(f, CtlClient(f.connection).checkpoint(), "saved before"); });
  add("pause", "Hold all ranks between two steps",
      [](Flags& f) { print(f, CtlClient(f.connection).pause(), "paused before"); });
  add("resume", "Go on after a pause", [](Flags& f) { print(f, CtlClient(f.connection).resume(), "goes on with"); });
  add("drain", "End after the step in progress, weights saved",
      [](Flags& f) { print(f, CtlClient(f.connection).drain(), "ends before"); });
}

}  // namespace regatta::cli
