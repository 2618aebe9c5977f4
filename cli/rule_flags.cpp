#include "cli/rule_flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <map>

#include "runtime/error.h"
#include "runtime/rules/assignment.h"

namespace regatta::cli {
namespace {

struct Setting {
  std::string text, rule, name, value;
  bool used = false;
};

std::string listed(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

Setting parse(const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == 0 || equals == std::string::npos || equals + 1 == text.size())
    throw Error(Code::invalid_argument,
                "--set got '" + text + "'; expected NAME=VALUE or RULE.NAME=VALUE, for example rho=0.2");
  Setting setting{text, {}, text.substr(0, equals), text.substr(equals + 1)};
  if (const std::size_t dot = setting.name.find('.'); dot != std::string::npos) {
    setting.rule = setting.name.substr(0, dot);
    setting.name = setting.name.substr(dot + 1);
  }
  return setting;
}

double learning_rate(const Setting& setting) {
  double lr = 0;
  const auto [end, error] = std::from_chars(setting.value.data(), setting.value.data() + setting.value.size(), lr);
  if (error != std::errc{} || end != setting.value.data() + setting.value.size() || !(lr >= 0) || lr > 1e6)
    throw Error(Code::invalid_argument, "--set " + setting.text + ": expected a learning rate of 0 or more");
  return lr;
}

void check_rule(const std::string& rule) {
  const std::vector<std::string> names = rule_names();
  if (std::find(names.begin(), names.end(), rule) == names.end())
    throw Error(Code::invalid_argument, "there is no rule '" + rule + "'; rules are " + listed(names));
}

}  // namespace

void add_rule_flags(CLI::App& app, RuleFlags& flags) {
  app.add_option("--rule", flags.rule, "Rule of the matrices (see `regatta rules`): " + listed(rule_names()))
      ->capture_default_str();
  app.add_option("--set", flags.settings, "Setting NAME=VALUE of every rule in use that has it, or RULE.NAME=VALUE")
      ->take_all();
  app.add_option("--assign", flags.assignments,
                 "GLOB=RULE: parameters whose name matches use that rule; the last match wins")
      ->take_all();
  app.add_option("--preset", flags.preset,
                 "Rules by layer, before --assign: symmetric (each respects its layer's symmetries; docs/rules.md)");
}

RuleChoice choose_rules(const RuleFlags& flags, const std::vector<std::string>& names, double lr,
                        const std::function<std::string(const std::string& name)>& usual) {
  check_rule(flags.rule);
  std::vector<Assignment> assignments;
  for (const std::string& text : flags.assignments) {
    assignments.push_back(Assignment::parse(text));
    check_rule(assignments.back().rule);
  }
  check_assignments_used(assignments, names);
  Preset preset;
  if (!flags.preset.empty()) {  // globs of a preset need not all be used
    preset = rule_preset(flags.preset);
    assignments.insert(assignments.begin(), preset.assignments.begin(), preset.assignments.end());
  }

  RuleChoice choice{{}, {}, lr};
  std::vector<std::string> used;
  for (const std::string& name : names) {
    std::string otherwise = usual(name);
    if (!flags.preset.empty() && otherwise == flags.rule) otherwise = preset.matrices;
    const std::string rule(assigned_rule(assignments, name, otherwise));
    auto at = std::find(used.begin(), used.end(), rule);
    if (at == used.end()) at = used.insert(at, rule);
    choice.group_of.push_back(static_cast<int>(at - used.begin()));
  }

  std::vector<Setting> settings;
  for (const std::string& text : flags.settings) settings.push_back(parse(text));
  for (Setting& setting : settings) {
    if (setting.name != "lr" || !setting.rule.empty()) continue;
    choice.lr = learning_rate(setting);
    setting.used = true;
  }
  for (const std::string& rule : used) {
    const std::vector<std::string> known = rule_setting_names(rule);
    Group group{rule, nullptr, 1};
    std::vector<std::pair<std::string, std::string>> mine;
    for (Setting& setting : settings) {
      if (setting.used && setting.rule.empty() && setting.name == "lr") continue;
      if (!setting.rule.empty() && setting.rule != rule) continue;
      if (setting.name == "lr" && !setting.rule.empty()) {
        // The step carries one learning rate; a rule's own is a multiple of it.
        if (choice.lr <= 0)
          throw Error(Code::invalid_argument, "--set " + setting.text + " needs a learning rate above 0");
        group.lr_scale = learning_rate(setting) / choice.lr;
        setting.used = true;
      } else if (!setting.rule.empty() || std::find(known.begin(), known.end(), setting.name) != known.end()) {
        mine.emplace_back(setting.name, setting.value);
        setting.used = true;
      }
    }
    group.rule = make_rule(rule, mine);
    choice.groups.push_back(std::move(group));
  }
  for (const Setting& setting : settings) {
    if (setting.used) continue;
    if (!setting.rule.empty()) {
      check_rule(setting.rule);
      throw Error(Code::invalid_argument, "--set " + setting.text + ": no parameter uses rule " + setting.rule +
                                              "; in use are " + listed(used));
    }
    std::string known;
    for (const std::string& rule : used)
      known += (known.empty() ? "" : "; ") + rule + " has " + listed(rule_setting_names(rule));
    throw Error(Code::invalid_argument, "--set " + setting.text + ": no rule in use has a setting '" + setting.name +
                                            "'; " + known + "; and lr");
  }
  return choice;
}

}  // namespace regatta::cli
