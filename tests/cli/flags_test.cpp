// The flags that the subcommands share: which rule with which settings and learning rate a parameter gets, how
// parameters lie, what the engine is asked for, and flags from a file.

#include <gtest/gtest.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <fstream>

#include "cli/config_file.h"
#include "cli/device_flags.h"
#include "cli/engine_flags.h"
#include "cli/rule_flags.h"
#include "runtime/error.h"
#include "tests/support/refusal.h"

namespace regatta::cli {
namespace {

using regatta::testing::expect_says;
using Words = std::vector<std::string>;

template <class Call>
std::string refusal(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::invalid_argument) << error.what();
    return error.what();
  }
  return "(was taken)";
}

const Words names{"embed", "a.up", "a.gain", "b.up", "b.down"};

/// As training does: embeddings and vectors adamw.
std::string usual(const std::string& name, const std::string& matrices) {
  return name == "embed" || name.ends_with("gain") ? "adamw" : matrices;
}

RuleChoice choose(const RuleFlags& flags, double lr = 0.01) {
  return choose_rules(flags, names, lr, [&](const std::string& name) { return usual(name, flags.rule); });
}

std::string rule_of(const RuleChoice& choice, const std::string& name) {
  const auto at = std::find(names.begin(), names.end(), name) - names.begin();
  return choice.groups[static_cast<std::size_t>(choice.group_of[static_cast<std::size_t>(at)])].name;
}

const Group& group(const RuleChoice& choice, const std::string& rule) {
  for (const Group& each : choice.groups)
    if (each.name == rule) return each;
  throw std::out_of_range(rule);
}

std::string setting(const RuleChoice& choice, const std::string& rule, const std::string& name) {
  for (const auto& [key, value] : settings_of(*group(choice, rule).rule))
    if (key == name) return value;
  return "(none)";
}

TEST(RuleFlags, GroupsAreInTheOrderOfFirstUse) {
  const RuleChoice choice = choose({.rule = "row_norm", .assignments = {"b.*=reg", "b.down=column_norm"}});
  ASSERT_EQ(choice.groups.size(), 4U);
  const char* const order[] = {"adamw", "row_norm", "reg", "column_norm"};
  for (std::size_t g = 0; g < 4; ++g) {
    EXPECT_EQ(choice.groups[g].name, order[g]);
    EXPECT_EQ(choice.groups[g].rule->name(), order[g]);
    EXPECT_EQ(choice.groups[g].lr_scale, 1);
  }
  EXPECT_EQ(choice.group_of, (std::vector<int>{0, 1, 0, 2, 3}));
  EXPECT_EQ(choice.lr, 0.01);
  EXPECT_EQ(choose({.rule = "adamw"}).groups.size(), 1U);
}

TEST(RuleFlags, TheLastMatchWins) {
  EXPECT_EQ(rule_of(choose({.assignments = {"*=adamw", "a.*=row_norm"}}), "a.gain"), "row_norm");
  EXPECT_EQ(rule_of(choose({.assignments = {"a.*=row_norm", "*=adamw"}}), "a.gain"), "adamw");
  EXPECT_EQ(rule_of(choose({.assignments = {"a.*=row_norm"}}), "b.up"), "reg");
}

TEST(RuleFlags, APresetStandsBehindAssignmentsAndLeavesOthersRules) {
  const RuleChoice choice = choose({.assignments = {"b.up=reg", "[ef]mbed=column_norm"}, .preset = "symmetric"});
  EXPECT_EQ(rule_of(choose({.preset = "symmetric"}), "embed"), "row_norm");
  EXPECT_EQ(rule_of(choice, "embed"), "column_norm");
  EXPECT_EQ(rule_of(choice, "a.up"), "muon");
  EXPECT_EQ(rule_of(choice, "b.down"), "muon");
  EXPECT_EQ(rule_of(choice, "b.up"), "reg");
  EXPECT_EQ(rule_of(choice, "a.gain"), "adamw");
  expect_says(refusal([] { choose({.preset = "symetric"}); }), "symetric");
}

TEST(RuleFlags, ASettingGoesToEveryRuleThatHasIt) {
  const RuleChoice choice = choose({.settings = {"weight_decay=0.25", "rho=0.5", "adamw.eps=1e-3", "beta2=0.5"}});
  EXPECT_EQ(setting(choice, "reg", "weight_decay"), "0.25");
  EXPECT_EQ(setting(choice, "adamw", "weight_decay"), "0.25");
  EXPECT_EQ(setting(choice, "reg", "rho"), "0.5");
  EXPECT_EQ(std::stod(setting(choice, "adamw", "eps")), 1e-3);
  EXPECT_EQ(std::stod(setting(choice, "reg", "eps")), 1e-12);
  EXPECT_EQ(setting(choice, "adamw", "beta2"), "0.5");
  EXPECT_EQ(setting(choice, "adamw", "beta1"), "0.9");
  const RuleChoice own = choose({.settings = {"reg.weight_decay=0.125"}});
  EXPECT_EQ(setting(own, "reg", "weight_decay"), "0.125");
  EXPECT_EQ(setting(own, "adamw", "weight_decay"), "0.01");
}

TEST(RuleFlags, LearningRates) {
  EXPECT_EQ(choose({.settings = {"lr=0.5"}}).lr, 0.5);
  EXPECT_EQ(group(choose({.settings = {"lr=0.5"}}), "reg").lr_scale, 1);
  const RuleChoice own = choose({.settings = {"adamw.lr=0.002"}}, 0.008);
  EXPECT_EQ(own.lr, 0.008);
  EXPECT_EQ(group(own, "adamw").lr_scale, 0.25);
  EXPECT_EQ(group(own, "reg").lr_scale, 1);
  // A rule's own is a multiple of the one that was set, in whichever order they come.
  for (const Words& settings : {Words{"lr=0.5", "reg.lr=2"}, Words{"reg.lr=2", "lr=0.5"}}) {
    const RuleChoice both = choose({.settings = settings}, 0.008);
    EXPECT_EQ(both.lr, 0.5);
    EXPECT_EQ(group(both, "reg").lr_scale, 4);
    EXPECT_EQ(group(both, "adamw").lr_scale, 1);
  }
  EXPECT_EQ(choose({.settings = {"lr=0"}}).lr, 0);
  EXPECT_EQ(choose({.settings = {"lr=1e6"}}).lr, 1e6);
  expect_says(refusal([] {
                choose({.settings = {"reg.lr=1", "lr=0"}});
              }),
              "--set reg.lr=1 needs a learning rate above 0");
  for (const char* wrong : {"-1", "x", "1x", "nan", "1000001", "inf"})
    for (const std::string who : {"", "reg."})
      expect_says(refusal([&] { choose({.settings = {who + "lr=" + wrong}}); }),
                  "expected a learning rate of 0 or more");
}

TEST(RuleFlags, WhatFitsNothingIsRefused) {
  expect_says(refusal([] { choose({.rule = "rag"}); }), "there is no rule 'rag'; rules are reg, adamw");
  expect_says(refusal([] { choose({.assignments = {"*=rag"}}); }), "there is no rule 'rag'");
  expect_says(refusal([] { choose({.assignments = {"c.*=reg"}}); }), "matches no parameter");
  for (const char* wrong : {"rho", "=1", "rho=", ""})
    expect_says(refusal([&] { choose({.settings = {wrong}}); }), "--set got '" + std::string(wrong) + "'");
  expect_says(refusal([] { choose({.settings = {"rhoo=1"}}); }), "no rule in use has a setting 'rhoo'; adamw has");
  expect_says(refusal([] { choose({.settings = {"muon.momentum=0.5"}}); }),
              "no parameter uses rule muon; in use are adamw, reg");
  expect_says(refusal([] { choose({.settings = {"rag.rho=1"}}); }), "there is no rule 'rag'");
  expect_says(refusal([] { choose({.settings = {"adamw.rho=1"}}); }), "rho");
  expect_says(refusal([] { choose({.settings = {"momentum=2"}}); }), "momentum");
}

TEST(EngineFlags, EachBecomesItsOption) {
  const EngineOptions usual_options = engine_options({});
  EXPECT_EQ(usual_options.mode, Mode::zero1);
  EXPECT_EQ(usual_options.cut, sharding::Cut::row);
  EXPECT_EQ(usual_options.momentum_dtype, DType::f32);
  EXPECT_EQ(usual_options.bucket_bytes, 25 << 20);
  EXPECT_EQ(usual_options.threads, 1);
  EXPECT_EQ(usual_options.clip, 0);
  EXPECT_EQ(usual_options.proof_every, 0);
  EXPECT_FALSE(usual_options.proof_stops);
  EngineFlags flags;
  CLI::App app;
  add_engine_flags(app, flags);
  app.parse(
      "--mesh dp=6 --mode zero2 --cut matrix --momentum-dtype bf16 --bucket-bytes 77 --threads 3 --clip 0.5 "
      "--place a=tp:0 --place b=tp:1 --blocks q=1,2");
  flags.proof_every = 9;
  flags.proof_stops = true;
  const EngineOptions options = engine_options(flags);
  EXPECT_EQ(flags.mesh, "dp=6");
  EXPECT_EQ(options.mode, Mode::zero2);
  EXPECT_EQ(options.cut, sharding::Cut::matrix);
  EXPECT_EQ(options.momentum_dtype, DType::bf16);
  EXPECT_EQ(options.bucket_bytes, 77);
  EXPECT_EQ(options.threads, 3);
  EXPECT_EQ(options.clip, 0.5);
  EXPECT_EQ(options.proof_every, 9);
  EXPECT_TRUE(options.proof_stops);
  EXPECT_EQ(flags.places, (Words{"a=tp:0", "b=tp:1"}));
  EXPECT_EQ(flags.blocks, (Words{"q=1,2"}));
  EXPECT_EQ(engine_options({.mode = "sharded"}).mode, Mode::sharded);
  EXPECT_EQ(engine_options({.cut = "element"}).cut, sharding::Cut::element);
}

TEST(EngineFlags, PlacementsByName) {
  const sharding::Mesh mesh({{"dp", 2}, {"tp", 2}});
  const auto texts = [&](const EngineFlags& flags, bool with_usual = false,
                         const sharding::Mesh& on = sharding::Mesh({{"dp", 2}, {"tp", 2}})) {
    Words all;
    const auto by_model = [](const std::string& name) {
      return sharding::Placement::parse(name.ends_with("up") ? "tp:0" : name.ends_with("down") ? "tp:1" : "");
    };
    for (const sharding::Placement& each :
         with_usual ? placements_for(flags, names, on, by_model) : placements_for(flags, names, on))
      all.push_back(each.text());
    return all;
  };
  EXPECT_EQ(texts({}), (Words{"", "", "", "", ""}));
  EXPECT_EQ(texts({}, true), (Words{"", "tp:0", "", "tp:0", "tp:1"}));
  EXPECT_EQ(texts({.places = {"*=tp:1", "a.*=tp:0", "a.gain="}}), (Words{"tp:1", "tp:0", "", "tp:1", "tp:1"}));
  EXPECT_EQ(texts({.places = {"b.*=", "a.up=tp:1"}}, true), (Words{"", "tp:1", "", "", ""}));
  // Rows over dp where nothing is said of dp; behind tp.
  EXPECT_EQ(texts({.mode = "sharded", .places = {"a.*=tp:1", "embed=dp:1", "b.up=tp:0,dp:flat"}}),
            (Words{"dp:1", "tp:1,dp:0", "tp:1,dp:0", "tp:0,dp:flat", "dp:0"}));
  EXPECT_EQ(texts({.mode = "sharded"}, true), (Words{"dp:0", "tp:0,dp:0", "dp:0", "tp:0,dp:0", "tp:1,dp:0"}));
  EXPECT_EQ(texts({.mode = "sharded"}, false, sharding::Mesh({{"dp", 1}, {"tp", 2}})), (Words{"", "", "", "", ""}));
  expect_says(refusal([&] { texts({.places = {"c.*=tp:0"}}); }), "--place c.*=tp:0: no parameter has a name like that");
  // The earlier one is used although a later one wins.
  EXPECT_EQ(texts({.places = {"a.up=tp:0", "*=tp:1"}}), (Words{"tp:1", "tp:1", "tp:1", "tp:1", "tp:1"}));
  for (const char* wrong : {"tp:0", "=tp:0"})
    expect_says(refusal([&] { texts({.places = {wrong}}); }),
                "--place got '" + std::string(wrong) + "'; expected GLOB=AXIS:DIM");
  EXPECT_NE(refusal([&] { texts({.places = {"*=tp:9"}}); }), "(was taken)");
}

TEST(EngineFlags, BlocksByName) {
  using Rows = std::vector<std::vector<std::int64_t>>;
  EXPECT_EQ(blocks_for({}, names), (Rows{{}, {}, {}, {}, {}}));
  EXPECT_EQ(blocks_for({.blocks = {"*.up=3,1,2", "b.up=9"}}, names), (Rows{{}, {3, 1, 2}, {}, {9}, {}}));
  EXPECT_EQ(blocks_for({.blocks = {"*=4", "a.*="}}, names), (Rows{{4}, {}, {}, {4}, {4}}));
  for (const char* wrong : {"0", "-1", "x", "1,x", "1x", "1,,2"})
    expect_says(refusal([&] { blocks_for({.blocks = {"a.up=" + std::string(wrong)}}, names); }),
                "--blocks a.up: '" + std::string(wrong) + "' is not a list of row counts");
  expect_says(refusal([] { blocks_for({.blocks = {"c=1"}}, names); }),
              "--blocks c=1: no parameter has a name like that");
  expect_says(refusal([] { blocks_for({.blocks = {"c"}}, names); }), "--blocks got 'c'");
}

TEST(EngineFlags, AMeshThatIsNoneIsBadInput) {
  EXPECT_EQ(parse_mesh("dp=2,tp=3").text(), "dp=2,tp=3");
  for (const char* wrong : {"dp", "dp=0", "dp=x", "dp=2,dp=2", "=2"})
    EXPECT_NE(refusal([&] { parse_mesh(wrong); }), "(was taken)");
}

TEST(DeviceFlags, WordsBecomeValues) {
  using Options = TransportOptions;
  DeviceFlags flags;
  EXPECT_EQ(device_of(flags), nullptr);
  EXPECT_EQ(reduction_of(flags), Options::Reduction::tree);
  EXPECT_EQ(device_messages_of(flags), Options::DeviceMessages::automatic);
  CLI::App app;
  add_device_flags(app, flags);
  app.parse("--device-graph --reduction sum --device-messages always");
  EXPECT_TRUE(flags.graph);
  EXPECT_EQ(reduction_of(flags), Options::Reduction::sum);
  EXPECT_EQ(device_messages_of(flags), Options::DeviceMessages::always);
  flags.device_messages = "never";
  EXPECT_EQ(device_messages_of(flags), Options::DeviceMessages::never);
}

class ConfigFile : public ::testing::Test {
 protected:
  void SetUp() override {
    sub_ = app_.add_subcommand("job");
    sub_->add_option("--steps", steps_)->check(CLI::PositiveNumber);
    sub_->add_option("--data", data_);
    sub_->add_option("--name", name_);
    sub_->add_flag("--tie", tie_);
    sub_->add_option("--config", config_);
    sub_->callback([this] {
      if (!config_.empty()) apply_config(*sub_, config_);
    });
  }
  void TearDown() override { std::filesystem::remove(path_); }
  std::string run(const std::string& text, const std::string& words = "") {
    std::ofstream(path_) << text;
    return refusal([&] { app_.parse("job --config " + path_ + " " + words); });
  }
  const std::string path_ = ::testing::TempDir() + "config_file_test" + std::to_string(::getpid()) + ".toml";
  CLI::App app_;
  CLI::App* sub_ = nullptr;
  int steps_ = 1;
  Words data_;
  std::string name_ = "none", config_;
  bool tie_ = false;
};

TEST_F(ConfigFile, FillsWhatTheCommandLineLeftOut) {
  EXPECT_EQ(run("# a job\nsteps = 7\ndata = [\"a b\", \"c\"]\nname = \"x = y\"\ntie = true\n"), "(was taken)");
  EXPECT_EQ(steps_, 7);
  EXPECT_EQ(data_, (Words{"a b", "c"}));
  EXPECT_EQ(name_, "x = y");
  EXPECT_TRUE(tie_);
}

TEST_F(ConfigFile, TheCommandLineWins) {
  EXPECT_EQ(run("steps = 7\ndata = [\"a\", \"b\"]\ntie = false\nname = \"file\"\n", "--steps 3 --data z --tie"),
            "(was taken)");
  EXPECT_EQ(steps_, 3);
  EXPECT_EQ(data_, (Words{"z"}));
  EXPECT_TRUE(tie_);
  EXPECT_EQ(name_, "file");
}

TEST_F(ConfigFile, SectionsOfOtherCommandsAreNotRead) {
  EXPECT_EQ(run("name = \"top\"\n[plan]\nsteps = 8\nunheard = 1\n[job]\nsteps = 9\n[replay]\ntie = true\n"),
            "(was taken)");
  EXPECT_EQ(steps_, 9);
  EXPECT_EQ(name_, "top");
  EXPECT_FALSE(tie_);
}

TEST_F(ConfigFile, WhatDoesNotFitIsNamed) {
  for (const char* flag : {"stepz = 1", "config = \"x\"", "help = true"})
    expect_says(run(std::string(flag) + "\n"), "--config " + path_ + ": there is no flag --" +
                                                   std::string(flag).substr(0, std::string(flag).find(' ')));
  expect_says(run("steps = 0\n"), "--config " + path_ + ": steps: ");
  expect_says(run("steps = \"many\"\n"), "steps: ");
  expect_says(run("tie = maybe\n"), "tie: ");
  expect_says(refusal([&] { app_.parse("job --config /absent.toml"); }), "--config /absent.toml: cannot be opened");
  EXPECT_EQ(steps_, 1);
}

}  // namespace
}  // namespace regatta::cli
