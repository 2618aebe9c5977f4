// `regatta plan`: where every parameter lies, what travels in a step, what a rank must remember, and what other
// optimizers would cost there, without running anything.

#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/commands.h"
#include "cli/engine_flags.h"
#include "cli/finetune/tensor_parallel.h"
#include "cli/plan/comparison.h"
#include "cli/plan/model_shapes.h"
#include "cli/plan/report.h"
#include "cli/rule_flags.h"
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
  std::optional<finetune::DecoderConfig> decoder;
  if (!flags.model.empty()) {
    const std::filesystem::path path(flags.model);  // the file itself will do, too
    decoder =
        finetune::read_decoder_config(path.filename() == "config.json" ? path.parent_path().string() : flags.model);
    shapes = finetune::decoder_shapes(*decoder);
  }
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
  // As the decoder of `regatta finetune` lies over tp; a list of shapes says nothing of how it is computed.
  const std::vector<sharding::Placement> placements =
      placements_for(flags.engine, names, mesh, [&](const std::string& name) {
        return decoder ? finetune::decoder_placement(*decoder, name, mesh) : sharding::Placement{};
      });
  const std::vector<std::vector<std::int64_t>> blocks = blocks_for(flags.engine, names);
  for (std::size_t p = 0; p < shapes.size(); ++p)
    described.params.push_back(
        {shapes[p].name, shapes[p].shape, *dtype, {}, placements[p], blocks[p], described.rules.group_of[p]});
  return described;
}

void run(const Flags& flags) {
  const sharding::Mesh mesh = parse_mesh(flags.engine.mesh);
  const Described described = describe(flags, mesh);
  const std::vector<Group>& groups = described.rules.groups;
  EngineOptions options = engine_options(flags.engine);
  options.micro_batches = flags.micro_batches;
  const sharding::Plan plan = make_plan(described.params, groups, mesh, options);
  PlanReport report{plan, {}, compare(plan, described.params, groups, options)};
  for (int group : described.rules.group_of) report.rules.push_back(groups[group].name);
  if (flags.json)
    std::cout << plan_json(report).dump(2) << "\n";
  else
    std::cout << plan_text(report);
}

}  // namespace

void add_plan(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command =
      app.add_subcommand("plan", "Print placement, messages and memory of a model on a mesh, without running it");
  command->footer(
      "Examples:\n"
      "  regatta plan --model ~/models/qwen2-1.5b --mesh dp=8 --dtype bf16\n"
      "  regatta plan --model ~/models/llama-7b --mesh dp=64,tp=8 --dtype bf16 --json\n"
      "  regatta plan --shape up=8960x1536 --shape down=1536x8960 --mesh dp=4,tp=2 --place 'up=tp:0' --place "
      "'down=tp:1'");
  command->add_option("--model", flags->model,
                      "Folder with the config.json of a Llama-family decoder, laid over tp as `regatta finetune` does");
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
