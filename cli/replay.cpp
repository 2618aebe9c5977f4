// `regatta replay`: applies a rule to recorded parameters and gradients on any mesh and writes the result. The same case on two meshes
// must give files whose tensors are equal byte for byte.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/ranks.h"
#include "cli/replay/case.h"
#include "cli/replay/run.h"
#include "cli/rule_flags.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/error.h"
#include "runtime/rules/assignment.h"

namespace regatta::cli {
namespace {

struct Flags {
  std::string in, out;
  RuleFlags rules;
  std::string mesh = "dp=1", mode = "zero1", cut = "row", transport = "local", device = "cpu", momentum_dtype = "fp32";
  std::vector<std::string> places, blocks;
  std::int64_t bucket_bytes = 25 << 20;
  int steps = -1, threads = 1;
  double clip = 0, lr = 1e-3, deadline_seconds = 600;
  bool json = false;
};

// GLOB=VALUE flags, the last match wins.
struct ByName {
  std::string glob, value;
  bool used = false;
};

std::vector<ByName> parse_by_name(const std::vector<std::string>& texts, const std::string& flag, const std::string& expected) {
  std::vector<ByName> parsed;
  for (const std::string& text : texts) {
    const std::size_t equals = text.find('=');
    if (equals == 0 || equals == std::string::npos)
      throw Error(Code::invalid_argument, flag + " got '" + text + "'; expected " + expected);
    parsed.push_back({text.substr(0, equals), text.substr(equals + 1)});
  }
  return parsed;
}

std::string value_for(std::vector<ByName>& entries, const std::string& name) {
  std::string value;
  for (ByName& entry : entries)
    if (matches_glob(entry.glob, name)) {
      value = entry.value;
      entry.used = true;
    }
  return value;
}

void check_used(const std::vector<ByName>& entries, const std::string& flag) {
  for (const ByName& entry : entries)
    if (!entry.used)
      throw Error(Code::invalid_argument, flag + " " + entry.glob + "=" + entry.value + ": no parameter has a name like that");
}

std::vector<std::int64_t> parse_rows(const std::string& text, const std::string& name) {
  std::vector<std::int64_t> rows;
  for (const std::string& part : CLI::detail::split(text, ',')) {
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), value);
    if (error != std::errc{} || end != part.data() + part.size() || value < 1)
      throw Error(Code::invalid_argument, "--blocks " + name + ": '" + text + "' is not a list of row counts such as 64,16,16");
    rows.push_back(value);
  }
  return rows;
}

DType momentum_dtype(const std::string& text) {
  const std::optional<DType> dtype = dtype_of(text);
  if (!dtype || *dtype == DType::f16) throw Error(Code::invalid_argument, "--momentum-dtype is '" + text + "'; expected fp32 or bf16");
  return *dtype;
}

ReplayOptions options_for(const Flags& flags, const ReplayCase& recorded) {
  ReplayOptions options;
  try {
    options.mesh = sharding::Mesh::parse(flags.mesh);
  } catch (const std::invalid_argument& error) {
    throw Error(Code::invalid_argument, error.what());
  }
  static const std::map<std::string, Mode> modes{{"zero1", Mode::zero1}, {"zero2", Mode::zero2}, {"sharded", Mode::sharded}};
  static const std::map<std::string, sharding::Cut> cuts{
      {"element", sharding::Cut::element}, {"row", sharding::Cut::row}, {"matrix", sharding::Cut::matrix}};
  options.engine.mode = modes.at(flags.mode);
  options.engine.cut = cuts.at(flags.cut);
  options.engine.bucket_bytes = flags.bucket_bytes;
  options.engine.threads = flags.threads;
  options.engine.clip = flags.clip;
  options.engine.momentum_dtype = momentum_dtype(flags.momentum_dtype);

  const auto recorded_steps = static_cast<int>(recorded.gradients.size());
  options.steps = flags.steps < 0 ? recorded_steps : flags.steps;
  if (options.steps > recorded_steps)
    throw Error(Code::invalid_argument, fmt::format("--steps is {}, but {} holds gradients of {} steps", options.steps, flags.in,
                                                    recorded_steps));

  RuleChoice choice = choose_rules(flags.rules, recorded.names, flags.lr, [&](const std::string&) { return flags.rules.rule; });
  options.groups = std::move(choice.groups);
  options.group_of = std::move(choice.group_of);
  options.lr = choice.lr;

  std::vector<ByName> places = parse_by_name(flags.places, "--place", "GLOB=AXIS:DIM, for example W=tp:1 or *=tp:0,dp:0");
  std::vector<ByName> blocks = parse_by_name(flags.blocks, "--blocks", "GLOB=ROWS,ROWS,..., for example qkv=64,16,16");
  for (const std::string& name : recorded.names) {
    std::string place = value_for(places, name);
    if (options.engine.mode == Mode::sharded && place.find("dp:") == std::string::npos && options.mesh.size("dp") > 1)
      place += place.empty() ? "dp:0" : ",dp:0";
    try {
      options.placement_of.push_back(sharding::Placement::parse(place));
    } catch (const std::invalid_argument& error) {
      throw Error(Code::invalid_argument, error.what());
    }
    const std::string rows = value_for(blocks, name);
    options.blocks_of.push_back(rows.empty() ? std::vector<std::int64_t>{} : parse_rows(rows, name));
  }
  check_used(places, "--place");
  check_used(blocks, "--blocks");
  return options;
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
      return nlohmann::json{{"reduce_scatter", b.reduce_scatter}, {"all_gather", b.all_gather}, {"exchange", b.exchange}, {"vote", b.vote}};
    };
    std::cout << nlohmann::json{{"out", flags.out},
                                {"step", result.step},
                                {"mesh", options.mesh.text()},
                                {"mode", flags.mode},
                                {"cut", flags.cut},
                                {"transport", flags.transport},
                                {"world_size", options.mesh.world_size()},
                                {"tensors", result.tensors.size()},
                                {"grad_norm", result.last.grad_norm},
                                {"wire_bytes_planned", bytes(result.planned)},
                                {"wire_bytes_counted", bytes(result.counted)},
                                {"bytes_as_planned", result.bytes_as_planned},
                                {"state_bytes", result.state_bytes}}
                     .dump(2)
              << "\n";
    return;
  }
  std::cout << fmt::format("{} steps on mesh {} ({}, cut {}, {}): {} tensors in {}\n", options.steps, options.mesh.text(), flags.mode,
                           flags.cut, flags.transport, result.tensors.size(), flags.out);
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
  if (flags.device != "cpu")
    throw Error(Code::invalid_argument, "--device is '" + flags.device + "'; this build has cpu only");
  set_exit_code(run_on_ranks(
      [&] {
        RankSettings settings;
        settings.transport = flags.transport;
        settings.mesh = flags.mesh;
        settings.deadline_seconds = flags.deadline_seconds;
        return settings;
      }(),
      [&](RankContext& context) {
        const ReplayCase recorded = ReplayCase::read(flags.in);
        const ReplayOptions options = options_for(flags, recorded);
        const ReplayResult result = replay(recorded, options, context.transport);
        if (context.transport.rank() != 0) return;
        write_result(flags.out, result);
        print_result(flags, options, result);
        if (!result.bytes_as_planned) throw Error(Code::transport, "some rank sent other byte counts than the plan predicts");
      }));
}

}  // namespace

void add_replay(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("replay", "Apply a rule to recorded parameters and gradients on any mesh");
  command->footer(
      "The input holds tensors param.NAME, gradients grad.K.NAME of step K = 0, 1, ..., and optional state.STATE.NAME.\n"
      "The output holds param.NAME and state.STATE.NAME after the last step, gathered to whole tensors.\n"
      "The same case on two meshes gives the same bytes:\n"
      "  regatta replay --in case.safetensors --out one.safetensors --rule reg --set lr=0.02\n"
      "  regatta replay --in case.safetensors --out six.safetensors --rule reg --set lr=0.02 --mesh dp=3,tp=2 --place '*=tp:1'\n"
      "  mpirun -n 3 regatta replay --in case.safetensors --out mpi.safetensors --mesh dp=3 --transport mpi");
  command->add_option("--in", flags->in, "Recorded case (safetensors)")->required();
  command->add_option("--out", flags->out, "Result to write (safetensors)")->required();
  add_rule_flags(*command, flags->rules);
  command->add_option("--lr", flags->lr, "Learning rate; --set lr=X does the same")->capture_default_str();
  command->add_option("--mesh", flags->mesh, "Ranks by axis, for example dp=3,tp=2")->capture_default_str();
  command->add_option("--mode", flags->mode, "Who shards over dp")->capture_default_str()->check(CLI::IsMember({"zero1", "zero2", "sharded"}));
  command->add_option("--place", flags->places, "GLOB=AXIS:DIM[,AXIS:DIM]: how parameters lie on the mesh; dp:flat for flat runs")->take_all();
  command->add_option("--blocks", flags->blocks, "GLOB=ROWS,ROWS,...: logical matrices stacked in a parameter")->take_all();
  command->add_option("--cut", flags->cut, "Where a rank's chunk may end")->capture_default_str()->check(CLI::IsMember({"element", "row", "matrix"}));
  command->add_option("--bucket-bytes", flags->bucket_bytes, "Least bytes of a bucket")->capture_default_str();
  command->add_option("--transport", flags->transport, "local (ranks are threads) or mpi (under mpirun)")->capture_default_str();
  command->add_option("--device", flags->device, "cpu")->capture_default_str();
  command->add_option("--steps", flags->steps, "Steps to apply; all recorded ones by default")->check(CLI::NonNegativeNumber);
  command->add_option("--threads", flags->threads, "Threads of a rank's sweeps")->capture_default_str()->check(CLI::PositiveNumber);
  command->add_option("--clip", flags->clip, "Global gradient norm to clip at; 0 is off")->capture_default_str();
  command->add_option("--momentum-dtype", flags->momentum_dtype, "fp32 or bf16")->capture_default_str();
  command->add_option("--deadline", flags->deadline_seconds, "Seconds to wait for a peer")->capture_default_str();
  command->add_flag("--json", flags->json, "One JSON document on stdout");
  command->callback([flags] { run(*flags); });
}

}  // namespace regatta::cli
