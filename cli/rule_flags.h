#pragma once
// The flags that say which rule updates which parameter with which settings, shared by the subcommands.

#include <functional>
#include <string>
#include <vector>

#include "runtime/engine/engine.h"

namespace CLI {
class App;
}

namespace regatta::cli {

struct RuleFlags {
  std::string rule = "reg";
  std::vector<std::string> settings;     ///< NAME=VALUE, or RULE.NAME=VALUE
  std::vector<std::string> assignments;  ///< GLOB=RULE
  std::string preset;                    ///< a name of rule_preset(), or empty
};

/// --rule, --set, --assign, --preset.
void add_rule_flags(CLI::App& app, RuleFlags& flags);

struct RuleChoice {
  std::vector<Group> groups;  ///< one per rule in use, in order of first use
  std::vector<int> group_of;  ///< by parameter
  double lr = 0;              ///< `--set lr=`, or `lr` as given
};

/// Gives every parameter its rule: the last matching assignment, otherwise `usual(name)`. A setting goes to every rule
/// in use that has it. Throws Error(invalid_argument) on a setting that no rule in use has, listing what they have.
RuleChoice choose_rules(const RuleFlags& flags, const std::vector<std::string>& names, double lr,
                        const std::function<std::string(const std::string& name)>& usual);

}  // namespace regatta::cli
