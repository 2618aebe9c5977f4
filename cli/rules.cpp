// `regatta rules`: every rule with its view, state, settings, source, and how sure we are of it.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "runtime/rules/rule.h"

namespace regatta::cli {
namespace {

// Views depend on the shape; these stand for wide and tall ones.
constexpr MatrixShape wide{64, 128}, tall{128, 64};

std::string passes_text(const std::vector<Line>& passes) {
  std::string text;
  for (Line line : passes) text += std::string(text.empty() ? "" : ", ") + (line == Line::row ? "rows" : "columns");
  return text;
}

std::string view_text(const sharding::View& view) {
  switch (view.kind) {
    case sharding::View::Kind::elements: return "elements";
    case sharding::View::Kind::lines: return passes_text(view.passes);
    case sharding::View::Kind::matrix: break;
  }
  return view.passes.empty() ? "the whole matrix" : "the whole matrix, then " + passes_text(view.passes);
}

std::string view_text(const Rule& rule) {
  const std::string of_wide = view_text(rule.view(wide)), of_tall = view_text(rule.view(tall));
  return of_wide == of_tall ? of_wide : of_wide + " of wide matrices, " + of_tall + " of tall ones";
}

const char* extent_text(StateExtent extent) {
  switch (extent) {
    case StateExtent::elements: break;
    case StateExtent::rows: return "row";
    case StateExtent::columns: return "column";
    case StateExtent::block: return "matrix";
  }
  return "element";
}

nlohmann::json json_of(const std::string& name) {
  const RuleInfo info = rule_info(name);
  const std::shared_ptr<const Rule> rule = make_rule(name, {});
  nlohmann::json states = nlohmann::json::array(), settings = nlohmann::json::array();
  for (const StateSpec& state : rule->state(DType::f32))
    states.push_back({{"name", state.name}, {"per", extent_text(state.extent)}});
  for (const RuleInfo::Setting& setting : info.settings)
    settings.push_back({{"name", setting.name}, {"expected", setting.expected}, {"default", setting.usual}});
  return {{"name", name},         {"summary", info.summary}, {"view", view_text(*rule)},     {"states", states},
          {"settings", settings}, {"source", info.source},   {"confidence", info.confidence}};
}

void print(const nlohmann::json& rule) {
  const auto word = [&](const char* key) { return rule[key].get<std::string>(); };
  std::string states, settings;
  for (const auto& state : rule["states"])
    states += fmt::format("{}{} (per {})", states.empty() ? "" : ", ", state["name"].get<std::string>(),
                          state["per"].get<std::string>());
  for (const auto& setting : rule["settings"])
    settings += fmt::format("{}{}={}", settings.empty() ? "" : " ", setting["name"].get<std::string>(),
                            setting["default"].get<std::string>());
  std::cout << fmt::format(
      "{}\n  {}\n  sees        {}\n  keeps       {}\n  settings    {}\n  source      {}\n"
      "  confidence  {}\n\n",
      word("name"), word("summary"), word("view"), states, settings, word("source"), word("confidence"));
}

void run(const std::vector<std::string>& wanted, bool as_json) {
  nlohmann::json rules = nlohmann::json::array();
  for (const std::string& name : wanted.empty() ? rule_names() : wanted) rules.push_back(json_of(name));
  if (as_json) {
    std::cout << nlohmann::json{{"rules", rules}}.dump(2) << "\n";
    return;
  }
  for (const nlohmann::json& rule : rules) print(rule);
}

}  // namespace

void add_rules(CLI::App& app) {
  struct Flags {
    std::vector<std::string> names;
    bool json = false;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("rules", "List the update rules: what they see and keep, settings, sources");
  command->footer(
      "Settings are listed with their defaults; --json also says what each may be.\n"
      "Examples:\n"
      "  regatta rules\n"
      "  regatta rules muon --json");
  command->add_option("names", flags->names, "Only these rules");
  command->add_flag("--json", flags->json, "One JSON document on stdout");
  command->callback([flags] { run(flags->names, flags->json); });
}

}  // namespace regatta::cli
