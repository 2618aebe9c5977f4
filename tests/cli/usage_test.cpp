// One sentence for a command line that did not parse: which command, what was wrong, the nearest flag.

#include "cli/usage.h"

#include <gtest/gtest.h>

#include <CLI/CLI.hpp>

namespace regatta::cli {
namespace {

std::string sentence(const std::string& words) {
  CLI::App app{"", "regatta"};
  app.require_subcommand(1);
  app.add_subcommand("plan");
  CLI::App* const job = app.add_subcommand("job");
  int steps = 0;
  job->add_option("--steps,-s", steps, "Steps")->check(CLI::PositiveNumber);
  std::string rule;
  job->add_option("--rule", rule)->required();
  job->add_option("--set", rule);
  try {
    app.parse(words);
  } catch (const CLI::ParseError& error) {
    return usage_sentence(app, error);
  }
  return "(was parsed)";
}

TEST(Usage, NamesTheCommandAndItsHelp) {
  EXPECT_EQ(sentence(""), "regatta: no command given; the commands are plan, job; see regatta --help");
  EXPECT_EQ(sentence("jb"), "regatta: unknown command 'jb'; the commands are plan, job; see regatta --help");
  EXPECT_EQ(sentence("job"), "regatta job: --rule is required; see regatta job --help");
  EXPECT_EQ(sentence("job --rule x more"), "regatta job: unexpected argument 'more'; see regatta job --help");
  EXPECT_EQ(sentence("job --rule x"), "(was parsed)");
  const std::string wrong = sentence("job --rule x --steps 0");
  EXPECT_EQ(wrong.find("regatta job: --steps: "), 0U) << wrong;
  EXPECT_EQ(wrong.find('\n'), std::string::npos) << wrong;
}

/// A third of the word's letters, and one, may be wrong.
TEST(Usage, GuessesTheNearestFlag) {
  const auto guess = [](const std::string& flag) {
    const std::string said = sentence("job --rule x " + flag);
    const std::string start = "regatta job: unknown flag " + flag.substr(0, flag.find('='));
    EXPECT_EQ(said.find(start), 0U) << said;
    const std::size_t at = said.find("(did you mean ");
    return at == std::string::npos ? std::string() : said.substr(at + 14, said.find("?)") - at - 14);
  };
  EXPECT_EQ(guess("--step"), "--steps");
  EXPECT_EQ(guess("--stepss"), "--steps");
  EXPECT_EQ(guess("--setps"), "--steps");
  EXPECT_EQ(guess("--sett"), "--set");
  EXPECT_EQ(guess("--ruel=3"), "--rule");
  EXPECT_EQ(guess("--ulr"), "--rule");       // two letters of five
  EXPECT_EQ(guess("--xxxx"), "");            // four of six are too many
  EXPECT_EQ(guess("--stxyzps"), "--steps");  // three of nine
  EXPECT_EQ(guess("--accumulation"), "");
}

}  // namespace
}  // namespace regatta::cli
