// Settings that change in the middle of a job.

#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/engine/engine_impl.h"
#include "runtime/rules/settings.h"

namespace regatta {
namespace {

[[noreturn]] void refuse(const std::string& sentence) { throw Error(Code::invalid_argument, sentence); }

struct Named {
  Command::Field field;
  const char* name;
  double value;
};

// The settings of rules among those that the command gives.
std::vector<Named> rule_settings(const Command& command) {
  std::vector<Named> given;
  for (const Named& setting : {Named{Command::weight_decay_given, "weight_decay", command.weight_decay},
                               {Command::momentum_given, "momentum", command.momentum},
                               {Command::rho_given, "rho", command.rho}})
    if (command.has(setting.field)) given.push_back(setting);
  return given;
}

std::string names_of(const std::vector<Group>& groups) {
  std::string text;
  for (const Group& group : groups) text += (text.empty() ? "" : ", ") + group.name;
  return text;
}

const std::string* find(const std::vector<std::pair<std::string, std::string>>& settings, const char* name) {
  for (const auto& [known, value] : settings)
    if (known == name) return &value;
  return nullptr;
}

}  // namespace

void Engine::Impl::find_changes(const Command& command, std::vector<SettingChange>& changes,
                                std::vector<Group>& changed) const {
  changed = groups;
  if (command.kind != Command::Kind::set) return;
  const int count = static_cast<int>(groups.size());
  if (command.group < Command::all_groups || command.group >= count)
    refuse("there is no group " + std::to_string(command.group) + "; the groups are " + names_of(groups));
  const bool one = command.group != Command::all_groups;
  constexpr std::uint32_t known = Command::lr_given | Command::weight_decay_given | Command::momentum_given |
                                  Command::rho_given | Command::clip_given;
  if ((command.fields & known) == 0)
    refuse("the command changes nothing; expected lr, weight_decay, momentum, rho or clip");

  if (command.has(Command::lr_given)) {
    if (!(command.lr >= 0) || !(command.lr <= 1e6))
      refuse("lr is " + shortest(command.lr) + "; expected a learning rate from 0 to 1e6");
    for (int g = one ? command.group : 0; g < (one ? command.group + 1 : count); ++g)
      changes.push_back({groups[g].name, "lr",
                         last_lr ? group_lr(g, *last_lr) : std::numeric_limits<double>::quiet_NaN(),
                         one ? command.lr : command.lr * groups[g].lr_scale});
  }
  if (command.has(Command::clip_given)) {
    if (one) refuse("clip is of the whole gradient; give it without a group");
    if (!(command.clip >= 0) || std::isinf(command.clip))
      refuse("clip is " + shortest(command.clip) + "; expected 0 (off) or more");
    changes.push_back({"", "clip", options.clip, command.clip});
  }
  for (const Named& setting : rule_settings(command)) {
    bool used = false;
    for (int g = one ? command.group : 0; g < (one ? command.group + 1 : count); ++g) {
      const auto settings = settings_of(*changed[g].rule);
      const std::string* from = find(settings, setting.name);
      if (from == nullptr) continue;
      changed[g].rule = changed_rule(
          *changed[g].rule, std::vector{std::pair<std::string, std::string>{setting.name, shortest(setting.value)}});
      changes.push_back({groups[g].name, setting.name, std::stod(*from), setting.value});
      used = true;
    }
    if (!used)
      refuse(one ? "group " + groups[command.group].name + " has no setting " + setting.name + "; its rule is " +
                       groups[command.group].rule->settings_text()
                 : std::string("no group has a setting ") + setting.name + "; the groups are " + names_of(groups));
  }
}

// Works and exchanges keep plain pointers to rules.
void Engine::Impl::refresh_rules() {
  for (std::size_t p = 0; p < params.size(); ++p) rules[p] = groups[params[p].group].rule.get();
  for (const std::unique_ptr<LineExchange>& exchange : exchanges) exchange->set_rules(rules);
  if (device_side) device_side->rules_changed();
}

std::vector<SettingChange> Engine::changes_of(const Command& command) const {
  std::vector<SettingChange> changes;
  std::vector<Group> changed;
  impl_->find_changes(command, changes, changed);
  return changes;
}

void Engine::post(const Command& command) {
  if (impl_->rank != 0) refuse("rank " + std::to_string(impl_->rank) + " cannot post a command; only rank 0 can");
  if (impl_->pending.kind != Command::Kind::none) refuse("a command is waiting for the next step already");
  changes_of(command);
  impl_->pending = command;
}

void Engine::apply(const Command& command) {
  std::vector<SettingChange> changes;
  std::vector<Group> changed;
  impl_->find_changes(command, changes, changed);
  if (command.kind != Command::Kind::set) return;
  impl_->groups.swap(changed);  // the old rules live on until nobody points at them
  impl_->refresh_rules();
  if (command.has(Command::lr_given)) {
    if (command.group == Command::all_groups) {
      impl_->commanded_lr = command.lr;
      std::fill(impl_->own_lr.begin(), impl_->own_lr.end(), std::nullopt);
    } else {
      impl_->own_lr[command.group] = command.lr;
    }
  }
  if (command.has(Command::clip_given)) impl_->options.clip = command.clip;
}

const std::vector<Group>& Engine::groups() const { return impl_->groups; }

}  // namespace regatta
