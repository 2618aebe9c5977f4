#include "runtime/rules/assignment.h"

#include <gtest/gtest.h>

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
  check_assignments_used(std::vector<Assignment>{{"*.mlp.*", "adamw"}}, names);
}

}  // namespace
}  // namespace regatta
