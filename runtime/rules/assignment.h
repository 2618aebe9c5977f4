#pragma once
// Which rule a parameter gets: GLOB=RULE assignments by name over a default.

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace regatta {

/// Shell-style match of the whole name: * any characters (dots too), ? one character, [abc], [a-z], [!a] one of or none
/// of.
bool matches_glob(std::string_view glob, std::string_view name);

/// "model.layers.*.mlp.*=adamw".
struct Assignment {
  std::string glob;
  std::string rule;

  /// Splits at the last '='. Throws Error(invalid_argument) when either side is empty.
  static Assignment parse(std::string_view text);
};

/// Rules by layer, for decoders with the usual names of parameters.
struct Preset {
  std::string matrices;  ///< rule of the matrices that no assignment names
  std::vector<Assignment> assignments;
};

/// "symmetric": rules that respect the symmetries of each layer, as arXiv 2605.18106 assigns them: attention and other
/// hidden matrices muon; embeddings row_norm; an untied head and routers centred_row_norm, since a shift that all
/// outputs share does nothing; gate and up projections row_norm, down projections column_norm. Throws
/// Error(invalid_argument) with the names there are.
Preset rule_preset(std::string_view preset);

/// The rule of the last assignment whose glob matches, or `otherwise`.
std::string_view assigned_rule(std::span<const Assignment> assignments, std::string_view name,
                               std::string_view otherwise);

/// Throws Error(invalid_argument) naming the first assignment that matches none of `names`: a misspelt glob would
/// otherwise train with another rule than the one asked for.
void check_assignments_used(std::span<const Assignment> assignments, std::span<const std::string> names);

}  // namespace regatta
