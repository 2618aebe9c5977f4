#include "runtime/rules/assignment.h"

#include <algorithm>
#include <optional>

#include "runtime/error.h"

namespace regatta {

namespace {

/// Matches one character against the set that starts at glob[at] == '['; moves `at` behind the set. nullopt when no ']'
/// ends it.
std::optional<bool> in_set(std::string_view glob, std::size_t& at, char character) {
  std::size_t i = at + 1;
  const bool inverted = i < glob.size() && (glob[i] == '!' || glob[i] == '^');
  if (inverted) ++i;
  bool found = false;
  for (bool first = true; i < glob.size() && (first || glob[i] != ']'); first = false) {
    const char low = glob[i++];
    char high = low;
    if (i + 1 < glob.size() && glob[i] == '-' && glob[i + 1] != ']') {
      high = glob[i + 1];
      i += 2;
    }
    found = found || (low <= character && character <= high);
  }
  if (i >= glob.size()) return std::nullopt;
  at = i + 1;
  return found != inverted;
}

}  // namespace

bool matches_glob(std::string_view glob, std::string_view name) {
  // On a mismatch, let the last * take one character more; earlier stars need no second look.
  std::size_t g = 0;
  std::size_t n = 0;
  std::size_t star = std::string_view::npos;
  std::size_t star_name = 0;
  while (n < name.size()) {
    if (g < glob.size() && glob[g] == '*') {
      star = g++;
      star_name = n;
      continue;
    }
    if (g < glob.size()) {
      std::size_t next = g + 1;
      bool same = glob[g] == '?' || glob[g] == name[n];
      if (glob[g] == '[') {
        std::size_t behind = g;
        if (const std::optional<bool> found = in_set(glob, behind, name[n])) {
          same = *found;
          next = behind;
        }
      }
      if (same) {
        g = next;
        ++n;
        continue;
      }
    }
    if (star == std::string_view::npos) return false;
    g = star + 1;
    n = ++star_name;
  }
  while (g < glob.size() && glob[g] == '*') ++g;
  return g == glob.size();
}

Assignment Assignment::parse(std::string_view text) {
  const std::size_t equals = text.rfind('=');
  if (equals == std::string_view::npos || equals == 0 || equals + 1 == text.size()) {
    throw Error(Code::invalid_argument,
                "assignment '" + std::string(text) + "' is not GLOB=RULE, for example '*.mlp.*=adamw'");
  }
  return {std::string(text.substr(0, equals)), std::string(text.substr(equals + 1))};
}

Preset rule_preset(std::string_view preset) {
  if (preset == "symmetric")
    return {"muon",
            {{"*embed*", "row_norm"},
             {"*lm_head*", "centred_row_norm"},
             {"*router*", "centred_row_norm"},
             {"*mlp.gate.weight", "centred_row_norm"},
             {"*gate_proj*", "row_norm"},
             {"*up_proj*", "row_norm"},
             {"*down_proj*", "column_norm"},
             {"*bias*", "adamw"}}};
  throw Error(Code::invalid_argument, "there is no preset \"" + std::string(preset) + "\"; expected symmetric");
}

std::string_view assigned_rule(std::span<const Assignment> assignments, std::string_view name,
                               std::string_view otherwise) {
  std::string_view rule = otherwise;
  for (const Assignment& assignment : assignments) {
    if (matches_glob(assignment.glob, name)) rule = assignment.rule;
  }
  return rule;
}

void check_assignments_used(std::span<const Assignment> assignments, std::span<const std::string> names) {
  for (const Assignment& assignment : assignments) {
    const bool used = std::any_of(names.begin(), names.end(),
                                  [&](const std::string& name) { return matches_glob(assignment.glob, name); });
    if (!used) {
      throw Error(Code::invalid_argument, "assignment '" + assignment.glob + "=" + assignment.rule +
                                              "' matches no parameter; names look like '" +
                                              (names.empty() ? std::string() : names.front()) + "'");
    }
  }
}

}  // namespace regatta
