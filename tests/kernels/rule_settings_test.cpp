// Settings of every rule, from what the rule itself says of them: their bounds, their defaults, and the way there and
// back.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "runtime/error.h"
#include "runtime/rules/rule.h"

namespace regatta {
namespace {

using Settings = std::vector<std::pair<std::string, std::string>>;

struct Texts {
  std::vector<std::string> good, bad;
};

std::vector<std::string> choices_of(const std::string& expected) {
  std::string text = expected;
  if (const std::size_t at = text.find(" or "); at != std::string::npos) text.replace(at, 4, ", ");
  std::vector<std::string> choices;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    if (word.back() == ',') word.pop_back();
    choices.push_back(word);
  }
  return choices;
}

bool is_number(const std::string& expected) { return expected.find("number") != std::string::npos; }

// What the sentence allows and what it does not, at its borders.
Texts texts_of(const std::string& expected) {
  Texts texts{{}, {"", " ", "x", "nan", "-nan", "inf", "-inf", "0.5x", " 0.5", "0.5 ", "1,5", "+0.5", "0x1", "--1"}};
  const auto good = [&](std::vector<std::string> more) {
    texts.good.insert(texts.good.end(), more.begin(), more.end());
  };
  const auto bad = [&](std::vector<std::string> more) { texts.bad.insert(texts.bad.end(), more.begin(), more.end()); };
  int low = 0, high = 0;
  if (expected == "a number in [0, 1)") {
    good({"0", "1e-300", "0.5", "0.95", "0.9999999999999999"});
    bad({"1", "1.0", "1.5", "-0.1", "-1e-300"});
  } else if (expected == "a number in [0, 1]") {
    good({"0", "0.5", "1", "0.9999999999999999"});
    bad({"1.0000000000000002", "2", "-1e-300"});
  } else if (expected == "a number of at least 0") {
    good({"0", "1e-300", "0.5", "1", "3", "1e300"});
    bad({"-1e-300", "-1", "1e999"});
  } else if (expected == "a number above 0") {
    good({"1e-300", "1", "2.5"});
    bad({"0", "0.0", "-1"});
  } else if (std::sscanf(expected.c_str(), "a whole number from %d to %d", &low, &high) == 2) {
    good({std::to_string(low), std::to_string(low + 1), std::to_string(high - 1), std::to_string(high)});
    bad({std::to_string(low - 1), std::to_string(high + 1), "2.0", "1.5", "1e1", "-1", "99999999999"});
  } else {
    for (const std::string& choice : choices_of(expected)) {
      good({choice});
      bad({choice + "x", choice.substr(0, choice.size() - 1), "-" + choice});
    }
    // "1, 2 or inf" and so on: what is a choice is not wrong.
    std::erase_if(texts.bad, [&](const std::string& text) {
      return std::find(texts.good.begin(), texts.good.end(), text) != texts.good.end();
    });
  }
  return texts;
}

std::string good_text(const RuleInfo::Setting& setting) { return texts_of(std::string(setting.expected)).good.back(); }

std::map<std::string, std::string> all_of(const Rule& rule) {
  std::map<std::string, std::string> all;
  for (const auto& [name, text] : settings_of(rule)) all[name] = text;
  return all;
}

TEST(RuleSettings, BoundsAreWhatTheSentenceSays) {
  for (const std::string& rule : rule_names())
    for (const RuleInfo::Setting& setting : rule_info(rule).settings) {
      const std::string name(setting.name);
      const Texts texts = texts_of(std::string(setting.expected));
      ASSERT_FALSE(texts.good.empty());
      for (const std::string& text : texts.good) {
        const auto made = make_rule(rule, Settings{{name, text}});
        const std::string got = all_of(*made).at(name);
        if (is_number(std::string(setting.expected))) {
          EXPECT_EQ(std::stod(got), std::stod(text)) << rule << ' ' << name;
        } else {
          EXPECT_EQ(got, text) << rule << ' ' << name;
        }
        // One setting changes itself alone; muon's variant sets others, which has a test of its own.
        std::map<std::string, std::string> others = all_of(*made), usual = all_of(*make_rule(rule, Settings{}));
        others.erase(name);
        usual.erase(name);
        if (name == "variant") continue;
        EXPECT_EQ(others, usual) << rule << ' ' << name << '=' << text;
      }
      for (const std::string& text : texts.bad) {
        try {
          make_rule(rule, Settings{{name, text}});
          ADD_FAILURE() << rule << " took " << name << "=" << text;
        } catch (const Error& error) {
          EXPECT_EQ(error.code(), Code::invalid_argument);
          EXPECT_EQ(std::string(error.what()), "setting " + name + " of rule " + rule + " is \"" + text +
                                                   "\"; expected " + std::string(setting.expected));
        }
      }
      EXPECT_THROW(make_rule(rule, Settings{{name + "x", "1"}}), Error);
    }
}

// Checkpoints, the fingerprint of ranks and `regatta ctl` depend on these texts.
TEST(RuleSettings, AllOfThemGoThereAndBack) {
  for (const std::string& rule : rule_names()) {
    Settings given;
    int turn = 0;
    for (const RuleInfo::Setting& setting : rule_info(rule).settings) {
      const bool fraction = setting.expected == "a number in [0, 1)" || setting.expected == "a number in [0, 1]";
      ++turn;
      given.emplace_back(setting.name, fraction ? "0.1234567890123" + std::to_string(turn)
                                       : setting.expected.find("a number") == 0 ? std::to_string(turn) + ".062500001"
                                                                                : good_text(setting));
    }
    const auto made = make_rule(rule, given);
    EXPECT_EQ(settings_of(*made), given) << rule;
    const auto again = make_rule(rule, settings_of(*made));
    EXPECT_EQ(again->settings_text(), made->settings_text());
    // Of two texts for one setting the last one counts; the others stay as they were.
    for (const RuleInfo::Setting& setting : rule_info(rule).settings) {
      const std::string name(setting.name), other = texts_of(std::string(setting.expected)).good.front();
      if (name == "variant") continue;
      const auto changed = changed_rule(*made, Settings{{name, good_text(setting)}, {name, other}});
      std::map<std::string, std::string> expected = all_of(*made);
      expected[name] = all_of(*make_rule(rule, Settings{{name, other}})).at(name);
      EXPECT_EQ(all_of(*changed), expected) << rule << ' ' << name;
      EXPECT_EQ(changed->name(), rule);
    }
  }
}

TEST(RuleSettings, DefaultsAreThoseOfTheDocuments) {
  const std::string shared = "momentum=0.95 nesterov=on weight_decay=";
  const std::string iteration = " steps=5 coefficients=classic precision=bf16";
  const std::vector<std::string> expected = {
      "reg momentum=0.95 rho=0.2 weight_decay=0.01 p=2 passes=1 eps=1e-12 zero_line=keep",
      "adamw beta1=0.9 beta2=0.999 eps=1e-08 weight_decay=0.01",
      "muon variant=moonlight scale=match_rms " + shared + "0.1" + iteration,
      "normuon beta2=0.95 eps=1e-10 scale=paper " + shared + "0" + iteration,
      "adamuon eps=1e-08 " + shared + "0.01" + iteration,
      "trasmuon beta2=0.95 eps=1e-08 damping=trigger alpha=1 trigger=1 damping_min=0.1 damping_beta=0.9 "
      "energy_beta=0.95 momentum=0.95 nesterov=off weight_decay=0" +
          iteration,
      "namo beta2=0.99 eps=1e-08 form=code " + shared + "0.1" + iteration,
      "namo_d beta2=0.99 eps=1e-08 c=0.75 form=code " + shared + "0.1" + iteration,
      "row_norm momentum=0.95 weight_decay=0 eps=1e-08 guard=add",
      "column_norm momentum=0.95 weight_decay=0 eps=1e-08 guard=add",
      "centred_row_norm momentum=0.95 weight_decay=0 eps=1e-08 guard=add"};
  std::vector<std::string> texts;
  for (const std::string& rule : rule_names()) {
    texts.push_back(make_rule(rule, Settings{})->settings_text());
    // What is listed as the default is what one gets.
    std::string listed = rule;
    for (const RuleInfo::Setting& setting : rule_info(rule).settings)
      listed += " " + std::string(setting.name) + "=" + setting.usual;
    EXPECT_EQ(listed, texts.back());
    EXPECT_FALSE(rule_info(rule).summary.empty() || rule_info(rule).source.empty() ||
                 rule_info(rule).confidence.empty());
  }
  EXPECT_EQ(texts, expected);
  const auto muon = [](const char* variant) {
    return make_rule("muon", Settings{{"variant", variant}})->settings_text();
  };
  EXPECT_EQ(muon("keller_jordan"), "muon variant=keller_jordan scale=original " + shared + "0" + iteration);
  EXPECT_EQ(muon("torch"), "muon variant=torch scale=original " + shared + "0.1" + iteration);
  EXPECT_EQ(muon("moonlight"), texts[2]);
}

// The longest line that an exact sum takes is allowed, one element more is not, in both directions.
TEST(RuleSettings, RegTakesLinesUpToTheLongest) {
  const auto rule = make_rule("reg", Settings{});
  constexpr std::int64_t longest = kernels::LineSum::max_count;
  EXPECT_NO_THROW(rule->view({1, longest}));
  EXPECT_NO_THROW(rule->view({longest, 1}));
  EXPECT_THROW(rule->view({1, longest + 1}), Error);
  EXPECT_THROW(rule->view({longest + 1, 1}), Error);
}

TEST(RuleSettings, StatesHaveTheShapeOfTheirExtent) {
  const MatrixShape block{7, 3};
  EXPECT_EQ(state_shape(StateExtent::elements, block), block);
  EXPECT_EQ(state_shape(StateExtent::rows, block), (MatrixShape{7, 1}));
  EXPECT_EQ(state_shape(StateExtent::columns, block), (MatrixShape{1, 3}));
  EXPECT_EQ(state_shape(StateExtent::block, block), (MatrixShape{1, 1}));
  for (const std::string& name : rule_names())
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const std::vector<StateSpec> state = make_rule(name, Settings{})->state(dtype);
      EXPECT_EQ(state[0].dtype, dtype) << name;  // the momentum alone follows the option
      for (std::size_t i = 1; i < state.size(); ++i) EXPECT_EQ(state[i].dtype, DType::f32) << name;
    }
}

}  // namespace
}  // namespace regatta
