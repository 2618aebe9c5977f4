// `regatta replay`: applies a rule to recorded parameters and gradients on any mesh and writes the result. The same
// case on two meshes must give files whose tensors are equal byte for byte.

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/device_flags.h"
#include "cli/engine_flags.h"
#include "cli/mesh_ranks.h"
#include "cli/replay/case.h"
#include "cli/replay/run.h"
#include "cli/rule_flags.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/error.h"

namespace regatta::cli {
namespace {

struct Flags {
  std::string in, out;
  RuleFlags rules;
  EngineFlags engine;
  DeviceFlags device;
  std::string transport = "local";
  int steps = -1;
  double lr = 1e-3, deadline_seconds = 600;
  bool json = false;
};

ReplayOptions options_for(const Flags& flags, const ReplayCase& recorded) {
  ReplayOptions options;
  options.mesh = parse_mesh(flags.engine.mesh);
  options.engine = engine_options(flags.engine);
  const auto recorded_steps = static_cast<int>(recorded.gradients.size());
  options.steps = flags.steps < 0 ? recorded_steps : flags.steps;
  if (options.steps > recorded_steps)
    throw Error(Code::invalid_argument, fmt::format("--steps is {}, but {} holds gradients of {} steps", options.steps,
                                                    flags.in, recorded_steps));

  RuleChoice choice =
      choose_rules(flags.rules, recorded.names, flags.lr, [&](const std::string&) { return flags.rules.rule; });
  options.groups = std::move(choice.groups);
  options.group_of = std::move(choice.group_of);
  options.lr = choice.lr;

  options.placement_of = placements_for(flags.engine, recorded.names, options.mesh);
  options.blocks_of = blocks_for(flags.engine, recorded.names);
  return options;
}

// Before the work, not after it.
void check_writable(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::absolute(path).parent_path();
  if (!std::filesystem::is_directory(folder) || access(folder.c_str(), W_OK) != 0)
    throw Error(Code::invalid_argument,
                "--out is " + path + ", but " + folder.string() + " is no folder this user can write to");
}

void write_result(const std::string& path, const ReplayResult& result) {
  std::vector<safetensors::Source> sources;
  for (const auto& [name, tensor] : result.tensors)
    sources.push_back({name, tensor.dtype, tensor.shape, tensor.values.data()});
  safetensors::write(path, sources, {{"step", std::to_string(result.step)}});
}

void print_result(const Flags& flags, const ReplayOptions& options, const ReplayResult& result) {
  if (flags.json) {
    const auto bytes = [](const sharding::WireBytes& b) {
      return nlohmann::json{{"reduce_scatter", b.reduce_scatter},
                            {"all_gather", b.all_gather},
                            {"exchange", b.exchange},
                            {"vote", b.vote}};
    };
    std::cout << nlohmann::json{{"out", flags.out},
                                {"step", result.step},
                                {"mesh", options.mesh.text()},
                                {"mode", flags.engine.mode},
                                {"cut", flags.engine.cut},
                                {"transport", flags.transport},
                                {"device", options.engine.device ? options.engine.device->name() : "cpu"},
                                {"world_size", options.mesh.world_size()},
                                {"tensors", result.tensors.size()},
                                {"grad_norm", result.last.grad_norm},
                                {"clip_factor", result.last.clip_factor},
                                {"wire_bytes_planned", bytes(result.planned)},
                                {"wire_bytes_counted", bytes(result.counted)},
                                {"bytes_as_planned", result.bytes_as_planned},
                                {"state_bytes", result.state_bytes}}
                     .dump(2)
              << "\n";
    return;
  }
  std::cout << fmt::format("{} steps on mesh {} ({}, cut {}, {}): {} tensors in {}\n", options.steps,
                           options.mesh.text(), flags.engine.mode, flags.engine.cut, flags.transport,
                           result.tensors.size(), flags.out);
  std::cout << fmt::format("{:<16} {:>14} {:>14}\n", "bytes sent", "planned", "counted");
  const auto row = [](const char* name, std::int64_t planned, std::int64_t counted) {
    std::cout << fmt::format("{:<16} {:>14} {:>14}\n", name, planned, counted);
  };
  row("reduce-scatter", result.planned.reduce_scatter, result.counted.reduce_scatter);
  row("all-gather", result.planned.all_gather, result.counted.all_gather);
  row("line exchange", result.planned.exchange, result.counted.exchange);
  row("vote", result.planned.vote, result.counted.vote);
  std::cout << "(rank 0, one step)\n";
}

void run(const Flags& flags) {
  const std::shared_ptr<Device> device = device_of(flags.device);
  const RankSettings settings{"regatta replay",
                              flags.transport,
                              flags.engine.mesh,
                              flags.deadline_seconds,
                              device,
                              reduction_of(flags.device),
                              device_messages_of(flags.device)};
  set_exit_code(run_on_ranks(settings, [&](RankContext& context) {
    ReplayCase recorded;
    ReplayOptions options;
    context.agree([&] {
      recorded = ReplayCase::read(flags.in);
      options = options_for(flags, recorded);
      options.engine.device = device;
      options.engine.device_graph = flags.device.graph;
      check_replay(recorded, options);
      check_writable(flags.out);
    });
    const ReplayResult result = replay(recorded, options, context.transport);
    if (context.transport.rank() != 0) return;
    write_result(flags.out, result);
    print_result(flags, options, result);
    if (!result.bytes_as_planned)
      throw Error(Code::transport, "some rank sent other byte counts than the plan predicts");
  }));
}

}  // namespace

void add_replay(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("replay", "Apply a rule to recorded parameters and gradients on any mesh");
  command->footer(
      "The input holds tensors param.NAME, gradients grad.K.NAME of step K = 0, 1, ..., and optional "
      "state.STATE.NAME.\n"
      "The output holds param.NAME and state.STATE.NAME after the last step, gathered to whole tensors.\n"
      "The same case on two meshes gives the same bytes:\n"
      "  regatta replay --in case.safetensors --out one.safetensors --rule reg --set lr=0.02\n"
      "  regatta replay --in case.safetensors --out six.safetensors --rule reg --set lr=0.02 --mesh dp=3,tp=2 --place "
      "'*=tp:1'\n"
      "  mpirun -n 3 regatta replay --in case.safetensors --out mpi.safetensors --mesh dp=3 --transport mpi");
  command->add_option("--in", flags->in, "Recorded case (safetensors)")->required();
  command->add_option("--out", flags->out, "Result to write (safetensors)")->required();
  add_rule_flags(*command, flags->rules);
  add_engine_flags(*command, flags->engine);
  command->add_option("--lr", flags->lr, "Learning rate; --set lr=X does the same")->capture_default_str();
  command
      ->add_option("--transport", flags->transport,
                   "local (ranks are threads), mpi (under mpirun) or nccl (GPUs, under torchrun or mpirun)")
      ->capture_default_str();
  add_device_flags(*command, flags->device);
  command->add_option("--steps", flags->steps, "Steps to apply; all recorded ones by default")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--deadline", flags->deadline_seconds, "Seconds to wait for a peer")->capture_default_str();
  command->add_flag("--json", flags->json, "One JSON document on stdout");
  command->callback([flags] { run(*flags); });
}

}  // namespace regatta::cli
