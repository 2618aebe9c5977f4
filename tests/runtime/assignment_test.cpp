#include "runtime/rules/assignment.h"

#include <fnmatch.h>
#include <gtest/gtest.h>

#include <random>

#include "runtime/error.h"

namespace regatta {
namespace {

TEST(Glob, MatchesWholeNames) {
  EXPECT_TRUE(matches_glob("*", ""));
  EXPECT_TRUE(matches_glob("*", "model.norm.weight"));
  EXPECT_TRUE(matches_glob("model.*.weight", "model.layers.0.mlp.up_proj.weight"));
  EXPECT_FALSE(matches_glob("model.*.weight", "model.layers.0.mlp.up_proj.bias"));
  EXPECT_FALSE(matches_glob("norm", "model.norm"));
  EXPECT_TRUE(matches_glob("layers.?.up", "layers.3.up"));
  EXPECT_FALSE(matches_glob("layers.?.up", "layers.13.up"));
  EXPECT_TRUE(matches_glob("*a*b*c", "xxayybbzzc"));
  EXPECT_FALSE(matches_glob("*a*b*c", "xxayybbzz"));
  EXPECT_TRUE(matches_glob("a**b", "ab"));
  EXPECT_FALSE(matches_glob("", "a"));
}

TEST(Glob, SetsAndRanges) {
  EXPECT_TRUE(matches_glob("*.[qkv]_proj.weight", "self_attn.k_proj.weight"));
  EXPECT_FALSE(matches_glob("*.[qkv]_proj.weight", "self_attn.o_proj.weight"));
  EXPECT_TRUE(matches_glob("layers.[0-3].*", "layers.2.x"));
  EXPECT_FALSE(matches_glob("layers.[!0-3].*", "layers.2.x"));
  EXPECT_TRUE(matches_glob("layers.[!0-3].*", "layers.7.x"));
  EXPECT_TRUE(matches_glob("a[]]b", "a]b"));
  EXPECT_TRUE(matches_glob("a[b", "a[b"));  // an open bracket without its end is itself
}

// The C library's own matcher, on short strings of the characters that mean something.
TEST(Glob, MatchesWhatTheShellMatches) {
  std::mt19937 random(1);
  const std::string_view glob_letters = "ab*?[]!-^.", name_letters = "ab.]-!^[";
  const auto text = [&](std::string_view letters, int most) {
    std::string text(random() % static_cast<unsigned>(most), ' ');
    for (char& c : text) c = letters[random() % letters.size()];
    return text;
  };
  int matches = 0;
  for (int round = 0; round < 200000; ++round) {
    const std::string glob = text(glob_letters, 8), name = text(name_letters, 6);
    // POSIX leaves open what a set without an end is, and "[." begins something else.
    const std::size_t open = glob.rfind('[');
    if (open != std::string::npos && (glob.find(']', open + 3) == std::string::npos || glob.find("[.") < glob.size()))
      continue;
    const bool expected = fnmatch(glob.c_str(), name.c_str(), FNM_NOESCAPE) == 0;
    matches += expected;
    EXPECT_EQ(matches_glob(glob, name), expected) << glob << "  " << name;
  }
  EXPECT_GT(matches, 5000);
}

TEST(Assignment, ThePresetNamesEachKindOfLayer) {
  const Preset preset = rule_preset("symmetric");
  EXPECT_EQ(preset.matrices, "muon");
  const std::vector<std::pair<const char*, const char*>> expected = {
      {"model.embed_tokens.weight", "row_norm"},
      {"lm_head.weight", "centred_row_norm"},
      {"model.layers.0.block_sparse_moe.router.weight", "centred_row_norm"},
      {"model.layers.0.mlp.gate.weight", "centred_row_norm"},
      {"model.layers.0.mlp.gate_proj.weight", "row_norm"},
      {"model.layers.0.mlp.up_proj.weight", "row_norm"},
      {"model.layers.0.mlp.down_proj.weight", "column_norm"},
      {"model.layers.0.mlp.down_proj.bias", "adamw"},
      {"model.layers.0.self_attn.q_proj.bias", "adamw"},
      {"model.layers.0.self_attn.q_proj.weight", "muon"},
      {"model.layers.0.self_attn.o_proj.weight", "muon"}};
  for (const auto& [name, rule] : expected)
    EXPECT_EQ(assigned_rule(preset.assignments, name, preset.matrices), rule) << name;
  try {
    rule_preset("symetric");
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()), "there is no preset \"symetric\"; expected symmetric");
  }
}

TEST(Assignment, LaterOnesWin) {
  const std::vector<Assignment> assignments = {Assignment::parse("*.mlp.*=adamw"), Assignment::parse("*.1.mlp.*=reg")};
  EXPECT_EQ(assigned_rule(assignments, "layers.0.mlp.up", "reg"), "adamw");
  EXPECT_EQ(assigned_rule(assignments, "layers.1.mlp.up", "adamw"), "reg");
  EXPECT_EQ(assigned_rule(assignments, "norm", "adamw"), "adamw");
}

TEST(Assignment, BadTextIsRefused) {
  for (const char* text : {"adamw", "=adamw", "*=", ""}) EXPECT_THROW(Assignment::parse(text), Error) << text;
  const Assignment with_equals = Assignment::parse("a=b=reg");
  EXPECT_EQ(with_equals.glob, "a=b");
  EXPECT_EQ(with_equals.rule, "reg");
}

TEST(Assignment, OneThatMatchesNothingIsRefused) {
  const std::vector<Assignment> assignments = {{"*.mpl.*", "adamw"}};
  const std::vector<std::string> names = {"layers.0.mlp.up"};
  EXPECT_THROW(check_assignments_used(assignments, names), Error);
  // The first that matches nothing is named, wherever it stands; any name will do for a match.
  const std::vector<Assignment> second = {{"*up", "reg"}, {"*.mpl.*", "adamw"}, {"none", "muon"}};
  const std::vector<std::string> more = {"embed", "layers.0.mlp.up"};
  try {
    check_assignments_used(second, more);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()), "assignment '*.mpl.*=adamw' matches no parameter; names look like 'embed'");
  }
  check_assignments_used(std::vector<Assignment>{{"*.mlp.*", "adamw"}}, names);
}

}  // namespace
}  // namespace regatta
