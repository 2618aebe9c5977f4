// Rules by name, from NAME=VALUE settings.

#include <charconv>
#include <cmath>
#include <functional>
#include <sstream>

#include "runtime/error.h"
#include "runtime/rules/adamw.h"
#include "runtime/rules/reg.h"

namespace regatta {
namespace {

// One setting of a rule's settings struct; `set` answers false when the text is not what `expected` says.
template <class Settings>
struct Setting {
  std::string_view name;
  std::string_view expected;
  bool (*set)(Settings&, std::string_view text);
};

template <class Number>
bool parse(std::string_view text, Number& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

bool parse_fraction(std::string_view text, double& value) { return parse(text, value) && value >= 0 && value < 1; }
bool parse_not_negative(std::string_view text, double& value) {
  return parse(text, value) && value >= 0 && std::isfinite(value);
}

constexpr std::string_view fraction = "a number in [0, 1)";
constexpr std::string_view not_negative = "a number of at least 0";

constexpr Setting<RegSettings> reg_settings[] = {
    {"momentum", fraction, [](RegSettings& s, std::string_view text) { return parse_fraction(text, s.momentum); }},
    {"rho", not_negative, [](RegSettings& s, std::string_view text) { return parse_not_negative(text, s.rho); }},
    {"weight_decay", not_negative,
     [](RegSettings& s, std::string_view text) { return parse_not_negative(text, s.weight_decay); }},
    {"p", "1, 2 or inf",
     [](RegSettings& s, std::string_view text) {
       if (text == "1") s.p = RegSettings::Norm::one;
       if (text == "2") s.p = RegSettings::Norm::two;
       if (text == "inf") s.p = RegSettings::Norm::inf;
       return text == "1" || text == "2" || text == "inf";
     }},
    {"passes", "a whole number from 1 to 16",
     [](RegSettings& s, std::string_view text) {
       return parse(text, s.passes) && s.passes >= 1 && s.passes <= RegSettings::most_passes;
     }},
    {"eps", not_negative, [](RegSettings& s, std::string_view text) { return parse_not_negative(text, s.eps); }},
    {"zero_line", "keep or count",
     [](RegSettings& s, std::string_view text) {
       s.zero_line = text == "count" ? RegSettings::ZeroLine::count : RegSettings::ZeroLine::keep;
       return text == "keep" || text == "count";
     }},
};
static_assert(RegSettings::most_passes == 16, "the text above says 16");

constexpr Setting<AdamwSettings> adamw_settings[] = {
    {"beta1", fraction, [](AdamwSettings& s, std::string_view text) { return parse_fraction(text, s.beta1); }},
    {"beta2", fraction, [](AdamwSettings& s, std::string_view text) { return parse_fraction(text, s.beta2); }},
    {"eps", not_negative, [](AdamwSettings& s, std::string_view text) { return parse_not_negative(text, s.eps); }},
    {"weight_decay", not_negative,
     [](AdamwSettings& s, std::string_view text) { return parse_not_negative(text, s.weight_decay); }},
};

template <class Settings, std::size_t count>
std::vector<std::string> names_of(const Setting<Settings> (&known)[count]) {
  std::vector<std::string> names;
  for (const Setting<Settings>& setting : known) names.emplace_back(setting.name);
  return names;
}

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

template <class Settings, std::size_t count>
Settings read(std::string_view rule, const Setting<Settings> (&known)[count],
              std::span<const std::pair<std::string, std::string>> given) {
  Settings settings;
  for (const auto& [name, text] : given) {
    const Setting<Settings>* match = nullptr;
    for (const Setting<Settings>& setting : known)
      if (setting.name == name) match = &setting;
    if (!match)
      throw Error(Code::invalid_argument, "rule " + std::string(rule) + " has no setting \"" + name +
                                              "\"; expected one of " + join(names_of(known)));
    if (!match->set(settings, text))
      throw Error(Code::invalid_argument, "setting " + name + " of rule " + std::string(rule) + " is \"" + text +
                                              "\"; expected " + std::string(match->expected));
  }
  return settings;
}

}  // namespace

std::shared_ptr<const Rule> make_rule(std::string_view name,
                                      std::span<const std::pair<std::string, std::string>> settings) {
  if (name == "reg") return std::make_shared<RegRule>(read(name, reg_settings, settings));
  if (name == "adamw") return std::make_shared<AdamwRule>(read(name, adamw_settings, settings));
  throw Error(Code::invalid_argument,
              "there is no rule \"" + std::string(name) + "\"; expected one of " + join(rule_names()));
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

std::vector<std::string> rule_names() { return {"reg", "adamw"}; }

std::vector<std::string> rule_setting_names(std::string_view rule) {
  if (rule == "reg") return names_of(reg_settings);
  if (rule == "adamw") return names_of(adamw_settings);
  throw Error(Code::invalid_argument,
              "there is no rule \"" + std::string(rule) + "\"; expected one of " + join(rule_names()));
}

}  // namespace regatta
