#pragma once
// A rule's settings as NAME=VALUE texts: each rule has a table of them in its own file, from which come parsing, the
// settings' text, and what the program lists.

#include <charconv>
#include <cmath>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "runtime/error.h"
#include "runtime/rules/rule_entries.h"

namespace regatta {

/// The shortest text that reads back as the same number.
inline std::string shortest(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

/// One setting of a rule's settings struct; `set` answers false when the text is not what `expected` says.
template <class Settings>
struct Setting {
  std::string_view name;
  std::string_view expected;
  bool (*set)(Settings&, std::string_view text);
  std::string (*get)(const Settings&);
};

template <class Number>
bool parse_number(std::string_view text, Number& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

/// The settings struct a member pointer belongs to.
template <class Member>
struct OwnerOf;
template <class Settings, class Value>
struct OwnerOf<Value Settings::*> {
  using type = Settings;
};
template <auto member>
using SettingsOf = typename OwnerOf<decltype(member)>::type;

// Kinds of settings. `Settings` is named when the member belongs to a base of it.

template <auto member, class Settings = SettingsOf<member>>
constexpr Setting<Settings> fraction_setting(std::string_view name) {
  return {name, "a number in [0, 1)",
          [](Settings& s, std::string_view text) {
            return parse_number(text, s.*member) && s.*member >= 0 && s.*member < 1;
          },
          [](const Settings& s) { return shortest(s.*member); }};
}

template <auto member, class Settings = SettingsOf<member>>
constexpr Setting<Settings> amount_setting(std::string_view name) {
  return {name, "a number of at least 0",
          [](Settings& s, std::string_view text) {
            return parse_number(text, s.*member) && s.*member >= 0 && std::isfinite(s.*member);
          },
          [](const Settings& s) { return shortest(s.*member); }};
}

/// `names` lists the values of an enumeration or of bool in their order, from 0.
template <auto member, const auto& names, class Settings = SettingsOf<member>>
constexpr Setting<Settings> choice_setting(std::string_view name, std::string_view expected) {
  using Value = std::remove_reference_t<decltype(std::declval<Settings&>().*member)>;
  return {name, expected,
          [](Settings& s, std::string_view text) {
            for (std::size_t i = 0; i < std::size(names); ++i)
              if (text == names[i]) {
                s.*member = static_cast<Value>(i);
                return true;
              }
            return false;
          },
          [](const Settings& s) { return std::string(names[static_cast<std::size_t>(s.*member)]); }};
}

inline std::string join(std::span<const std::string> words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

/// Reads texts over a struct of defaults. Throws Error(invalid_argument) naming the rule, the setting or the value.
template <class Settings>
Settings read_settings(std::string_view rule, std::span<const Setting<Settings>> known,
                       std::span<const std::pair<std::string, std::string>> given) {
  Settings settings;
  for (const auto& [name, text] : given) {
    const Setting<Settings>* match = nullptr;
    std::vector<std::string> names;
    for (const Setting<Settings>& setting : known) {
      names.emplace_back(setting.name);
      if (setting.name == name) match = &setting;
    }
    if (!match)
      throw Error(Code::invalid_argument,
                  "rule " + std::string(rule) + " has no setting \"" + name + "\"; expected one of " + join(names));
    if (!match->set(settings, text))
      throw Error(Code::invalid_argument, "setting " + name + " of rule " + std::string(rule) + " is \"" + text +
                                              "\"; expected " + std::string(match->expected));
  }
  return settings;
}

/// "NAME A=1 B=2", which read_settings reads back to the same settings.
template <class Settings>
std::string text_of_settings(std::string_view rule, std::span<const Setting<Settings>> known,
                             const Settings& settings) {
  std::string text(rule);
  for (const Setting<Settings>& setting : known) text += " " + std::string(setting.name) + "=" + setting.get(settings);
  return text;
}

/// `info` with the settings of `known` and their defaults.
template <class Settings>
RuleInfo info_of(RuleInfo info, std::span<const Setting<Settings>> known) {
  const Settings usual;
  for (const Setting<Settings>& setting : known)
    info.settings.push_back({setting.name, setting.expected, setting.get(usual)});
  return info;
}

}  // namespace regatta
