// Rules by name, from NAME=VALUE settings. A rule is known by its line in rule_entries.h.

#include <sstream>

#include "runtime/error.h"
#include "runtime/rules/rule_entries.h"
#include "runtime/rules/settings.h"

namespace regatta {

namespace {

const RuleEntry& find(std::string_view name) {
  for (const RuleEntry* entry : rule_entries)
    if (entry->info().name == name) return *entry;
  const std::vector<std::string> names = rule_names();
  throw Error(Code::invalid_argument, "there is no rule \"" + std::string(name) + "\"; expected one of " + join(names));
}

}  // namespace

std::shared_ptr<const Rule> make_rule(std::string_view name,
                                      std::span<const std::pair<std::string, std::string>> settings) {
  return find(name).make(settings);
}

std::vector<std::pair<std::string, std::string>> settings_of(const Rule& rule) {
  std::vector<std::pair<std::string, std::string>> settings;
  std::istringstream words(rule.settings_text());
  for (std::string word; words >> word;) {
    if (const std::size_t equals = word.find('='); equals != std::string::npos)
      settings.emplace_back(word.substr(0, equals), word.substr(equals + 1));
  }
  return settings;
}

std::shared_ptr<const Rule> changed_rule(const Rule& rule,
                                         std::span<const std::pair<std::string, std::string>> changes) {
  std::vector<std::pair<std::string, std::string>> settings = settings_of(rule);
  settings.insert(settings.end(), changes.begin(), changes.end());  // the last one counts
  return make_rule(rule.name(), settings);
}

std::vector<std::string> rule_names() {
  std::vector<std::string> names;
  for (const RuleEntry* entry : rule_entries) names.emplace_back(entry->info().name);
  return names;
}

RuleInfo rule_info(std::string_view rule) { return find(rule).info(); }

std::vector<std::string> rule_setting_names(std::string_view rule) {
  std::vector<std::string> names;
  for (const RuleInfo::Setting& setting : rule_info(rule).settings) names.emplace_back(setting.name);
  return names;
}

MatrixShape state_shape(StateExtent extent, MatrixShape block) {
  switch (extent) {
    case StateExtent::elements: break;
    case StateExtent::rows: return {block.rows, 1};
    case StateExtent::columns: return {1, block.cols};
    case StateExtent::block: return {1, 1};
  }
  return block;
}

}  // namespace regatta
