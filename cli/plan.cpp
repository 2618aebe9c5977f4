// `regatta plan`: where every parameter lies, what travels in a step, and what a rank must remember, without running
// anything.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/engine_flags.h"
#include "cli/plan/model_shapes.h"
#include "cli/rule_flags.h"
#include "runtime/engine/memory.h"
#include "runtime/engine/setup.h"
#include "runtime/error.h"

namespace regatta::cli {
namespace {

struct Flags {
  std::string model;
  std::vector<std::string> shapes;
  RuleFlags rules;
  EngineFlags engine;
  std::string dtype = "fp32";
  int micro_batches = 1;
  bool json = false;
};

struct Described {
  std::vector<Param> params;
  RuleChoice rules;
};

Described describe(const Flags& flags, const sharding::Mesh& mesh) {
  std::vector<finetune::ParamShape> shapes;
  if (flags.model.empty() == flags.shapes.empty())
    throw Error(Code::invalid_argument,
                "plan needs either --model DIR (a folder with config.json) or --shape NAME=ROWSxCOLS");
  if (!flags.model.empty()) shapes = finetune::decoder_shapes(finetune::read_decoder_config(flags.model));
  for (const std::string& text : flags.shapes) shapes.push_back(parse_shape(text));
  const std::optional<DType> dtype = dtype_of(flags.dtype);
  if (!dtype) throw Error(Code::invalid_argument, "--dtype is '" + flags.dtype + "'; expected fp32, bf16 or fp16");

  std::vector<std::string> names;
  for (const finetune::ParamShape& shape : shapes) names.push_back(shape.name);
  Described described;
  // As in training: embeddings, the head and vectors belong to AdamW.
  described.rules = choose_rules(flags.rules, names, 1e-3, [&](const std::string& name) -> std::string {
    for (const finetune::ParamShape& shape : shapes)
      if (shape.name == name && shape.shape.size() == 1) return "adamw";
    if (name.find("embed") != std::string::npos || name.find("lm_head") != std::string::npos) return "adamw";
    return flags.rules.rule;
  });
  const std::vector<sharding::Placement> placements = placements_for(flags.engine, names, mesh);
  const std::vector<std::vector<std::int64_t>> blocks = blocks_for(flags.engine, names);
  for (std::size_t p = 0; p < shapes.size(); ++p)
    described.params.push_back(
        {shapes[p].name, shapes[p].shape, *dtype, {}, placements[p], blocks[p], described.rules.group_of[p]});
  return described;
}

// Lines of a parameter on the whole mesh: all, and those that are open on their way to the update.
struct LineCount {
  std::int64_t all = 0, open = 0;
};

LineCount count_lines(const sharding::Plan& plan, int param) {
  LineCount count;
  const sharding::ParamSpec& spec = plan.params()[param];
  for (std::size_t b = 0; b < spec.blocks.size(); ++b)
    for (Line line : spec.views[b].passes) count.all += line == Line::row ? spec.blocks[b].rows : spec.blocks[b].cols;
  for (const auto& round : plan.rounds())
    for (const sharding::Share& share : round)
      if (share.param == param && plan.primary(share.owner, param) &&
          share.pass < static_cast<int>(spec.views[share.block].passes.size()))
        count.open += share.lines.size();
  return count;
}

std::string view_text(const sharding::View& view) {
  if (view.kind == sharding::View::Kind::elements) return "elements";
  std::string text;
  for (Line line : view.passes) text += std::string(text.empty() ? "" : "+") + (line == Line::row ? "rows" : "columns");
  return text + (view.block_scale ? "+block" : "");
}

std::string shape_text(const std::vector<std::int64_t>& shape) { return fmt::format("{}", fmt::join(shape, "x")); }

nlohmann::json to_json(const sharding::Plan& plan, const Described& described, const std::vector<RankMemory>& memory) {
  nlohmann::json params = nlohmann::json::array(), ranks = nlohmann::json::array(), rounds = nlohmann::json::array();
  for (std::size_t p = 0; p < plan.params().size(); ++p) {
    const sharding::ParamSpec& spec = plan.params()[p];
    const LineCount lines = count_lines(plan, static_cast<int>(p));
    params.push_back({{"name", spec.name},
                      {"shape", spec.shape},
                      {"rule", described.rules.groups[described.rules.group_of[p]].name},
                      {"placement", spec.placement.text()},
                      {"view", view_text(spec.views[0])},
                      {"blocks", spec.blocks.size()},
                      {"lines", lines.all},
                      {"open_lines", lines.open},
                      {"bucket", plan.layout(0).params[p].bucket}});
  }
  for (int r = 0; r < plan.mesh().world_size(); ++r) {
    const sharding::WireBytes bytes = plan.wire_bytes(r);
    ranks.push_back({{"rank", r},
                     {"wire_bytes",
                      {{"reduce_scatter", bytes.reduce_scatter},
                       {"all_gather", bytes.all_gather},
                       {"exchange", bytes.exchange},
                       {"vote", bytes.vote}}},
                     {"memory_bytes",
                      {{"parameters", memory[r].parameters},
                       {"gradients", memory[r].gradients},
                       {"state", memory[r].state},
                       {"master", memory[r].master}}}});
  }
  for (const auto& round : plan.rounds()) rounds.push_back({{"shares", round.size()}});
  return {{"mesh", plan.mesh().text()},
          {"fingerprint", fmt::format("{:016x}", plan.fingerprint())},
          {"buckets", plan.bucket_count()},
          {"params", params},
          {"rounds", rounds},
          {"ranks", ranks}};
}

void print(const sharding::Plan& plan, const Described& described, const std::vector<RankMemory>& memory) {
  std::cout << fmt::format("{:<48} {:>14} {:<7} {:<10} {:<16} {:>9} {:>9} {:>6}\n", "parameter", "shape", "rule",
                           "placement", "view", "lines", "open", "bucket");
  for (std::size_t p = 0; p < plan.params().size(); ++p) {
    const sharding::ParamSpec& spec = plan.params()[p];
    const LineCount lines = count_lines(plan, static_cast<int>(p));
    std::cout << fmt::format("{:<48} {:>14} {:<7} {:<10} {:<16} {:>9} {:>9} {:>6}\n", spec.name, shape_text(spec.shape),
                             described.rules.groups[described.rules.group_of[p]].name,
                             spec.placement.cuts.empty() ? "replicate" : spec.placement.text(),
                             view_text(spec.views[0]), lines.all, lines.open, plan.layout(0).params[p].bucket);
  }
  std::cout << fmt::format("\nA step on mesh {}, in order:\n", plan.mesh().text());
  std::cout << fmt::format("  reduce-scatter of gradients       {} buckets, behind backward\n", plan.bucket_count());
  std::cout << "  vote: finite gradients, their norms  one small all-gather\n";
  for (std::size_t k = 0; k < plan.rounds().size(); ++k) {
    std::int64_t lines = 0;
    for (const sharding::Share& share : plan.rounds()[k]) lines += share.lines.size();
    std::cout << fmt::format(
        "  exchange of open lines, round {}   {} lines to their owners and back, behind closed lines' sweep\n", k,
        lines);
  }
  std::cout << fmt::format("  all-gather of parameters          {} buckets, behind later buckets' sweep\n\n",
                           plan.bucket_count());
  std::cout << fmt::format(
      "{:>4} | bytes sent in a step: {:>14} {:>14} {:>12} {:>10} | bytes kept: {:>14} {:>14} {:>14} {:>14}\n", "rank",
      "reduce-scatter", "all-gather", "line exchange", "vote", "parameters", "gradients", "state", "master");
  constexpr int shown = 16;
  for (int r = 0; r < std::min(plan.mesh().world_size(), shown); ++r) {
    const sharding::WireBytes bytes = plan.wire_bytes(r);
    std::cout << fmt::format(
        "{:>4} |                       {:>14} {:>14} {:>12} {:>10} |             {:>14} {:>14} {:>14} {:>14}\n", r,
        bytes.reduce_scatter, bytes.all_gather, bytes.exchange, bytes.vote, memory[r].parameters, memory[r].gradients,
        memory[r].state, memory[r].master);
  }
  if (plan.mesh().world_size() > shown)
    std::cout << fmt::format("  ... and {} more ranks; --json lists all\n", plan.mesh().world_size() - shown);
  std::cout << fmt::format("plan fingerprint {:016x}\n", plan.fingerprint());
}

void run(const Flags& flags) {
  const sharding::Mesh mesh = parse_mesh(flags.engine.mesh);
  const Described described = describe(flags, mesh);
  EngineOptions options = engine_options(flags.engine);
  options.micro_batches = flags.micro_batches;
  const sharding::Plan plan = make_plan(described.params, described.rules.groups, mesh, options);
  std::vector<RankMemory> memory;
  for (int r = 0; r < mesh.world_size(); ++r)
    memory.push_back(memory_of(plan, r, described.params, described.rules.groups, options));
  if (flags.json)
    std::cout << to_json(plan, described, memory).dump(2) << "\n";
  else
    print(plan, described, memory);
}

}  // namespace

void add_plan(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command =
      app.add_subcommand("plan", "Print placement, messages and memory of a model on a mesh, without running it");
  command->footer(
      "Examples:\n"
      "  regatta plan --model ~/models/qwen2-1.5b --mesh dp=8 --dtype bf16\n"
      "  regatta plan --shape up=8960x1536 --shape down=1536x8960 --mesh dp=4,tp=2 --place 'up=tp:0' --place "
      "'down=tp:1'");
  command->add_option("--model", flags->model, "Folder with the config.json of a Llama-family decoder");
  command->add_option("--shape", flags->shapes, "NAME=ROWSxCOLS, repeated")->take_all();
  add_rule_flags(*command, flags->rules);
  add_engine_flags(*command, flags->engine);
  command->add_option("--dtype", flags->dtype, "Of parameters and gradients: fp32, bf16 or fp16")
      ->capture_default_str();
  command->add_option("--micro-batches", flags->micro_batches, "Per rank and step")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_flag("--json", flags->json, "One JSON document on stdout");
  command->callback([flags] { run(*flags); });
}

}  // namespace regatta::cli
