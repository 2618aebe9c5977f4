// Facts as messages, and messages as what `regatta ctl` prints: every number differs from every other, and each is
// found in its own place.

#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <regex>

#include "cli/commands.h"
#include "cli/ctl/show.h"
#include "runtime/control/messages.h"
#include "runtime/version.h"
#include "tests/telemetry/figures.h"

namespace regatta::control {
namespace {

using nlohmann::json;
using testing::Fresh;

StepFacts fresh_facts(Fresh& fresh) {
  StepFacts facts{
      .step = fresh.whole(), .loss = fresh.number(), .seconds = fresh.number(), .tokens_per_second = fresh.number()};
  facts.report = testing::fresh_report(fresh.whole(), fresh.whole(), fresh);
  facts.report.clip_factor = fresh.number();
  facts.report.skipped = true;
  facts.report.culprit = "the culprit";
  return facts;
}

JobFacts fresh_job(Fresh& fresh) {
  JobFacts job{.steps = fresh.whole(), .world_size = static_cast<int>(fresh.whole()), .mesh = "the mesh"};
  for (int rank = 0; rank < 3; ++rank)
    job.ranks.push_back({fresh.whole(), fresh.whole(), fresh.whole(), fresh.whole()});
  job.plan_text = "the plan\nof two lines";
  job.fingerprint = 0xfedcba9876543210;
  return job;
}

void check(const v1::Step& message, const StepFacts& facts) {
  const StepReport& r = facts.report;
  EXPECT_EQ(message.step(), facts.step);
  EXPECT_EQ(message.loss(), facts.loss);
  EXPECT_EQ(message.lr(), r.lr);
  EXPECT_EQ(message.grad_norm(), r.grad_norm);
  EXPECT_EQ(message.clip_factor(), r.clip_factor);
  EXPECT_EQ(message.skipped(), r.skipped);
  EXPECT_EQ(message.culprit(), r.culprit);
  EXPECT_EQ(message.skipped_steps(), r.skipped_steps);
  EXPECT_EQ(message.seconds(), facts.seconds);
  EXPECT_EQ(message.tokens_per_second(), facts.tokens_per_second);
  ASSERT_EQ(message.groups_size(), static_cast<int>(r.groups.size()));
  for (int g = 0; g < message.groups_size(); ++g) {
    const GroupReport& group = r.groups[static_cast<std::size_t>(g)];
    const v1::GroupStep& out = message.groups(g);
    EXPECT_EQ(out.name(), group.name);
    EXPECT_EQ(out.lr(), group.lr);
    EXPECT_EQ(out.grad_norm(), group.grad_norm);
    EXPECT_EQ(out.update_rms(), group.update_rms);
    EXPECT_EQ(out.weight_rms(), group.weight_rms);
    EXPECT_EQ(out.update_to_weight(), group.update_to_weight);
    EXPECT_EQ(out.zero_lines(), group.zero_lines);
  }
}

json json_of(const StepFacts& facts) {
  const StepReport& r = facts.report;
  json groups = json::array();
  for (const GroupReport& g : r.groups)
    groups.push_back({{"name", g.name},
                      {"lr", g.lr},
                      {"grad_norm", g.grad_norm},
                      {"update_rms", g.update_rms},
                      {"weight_rms", g.weight_rms},
                      {"update_to_weight", g.update_to_weight},
                      {"zero_lines", g.zero_lines}});
  return {{"step", facts.step},
          {"loss", facts.loss},
          {"lr", r.lr},
          {"grad_norm", r.grad_norm},
          {"clip_factor", r.clip_factor},
          {"skipped", r.skipped},
          {"culprit", r.culprit},
          {"skipped_steps", r.skipped_steps},
          {"seconds", facts.seconds},
          {"tokens_per_second", facts.tokens_per_second},
          {"groups", groups}};
}

TEST(Figures, OfAStep) {
  Fresh fresh(0);
  for (int step = 0; step < 4; ++step) {
    StepFacts facts = fresh_facts(fresh);
    facts.report.skipped = step % 2 == 0;
    if (!facts.report.skipped) facts.report.culprit.clear();
    v1::Step message;
    fill(message, facts);
    check(message, facts);
    EXPECT_EQ(json::parse(cli::json_text(message)), json_of(facts));
  }
}

TEST(Figures, OfAStatus) {
  Fresh fresh(0);
  const std::vector<std::pair<State, std::string>> states{{State::starting, "starting"},
                                                          {State::running, "running"},
                                                          {State::paused, "paused"},
                                                          {State::draining, "draining"},
                                                          {State::ended, "ended"}};
  for (const auto& [state, word] : states) {
    for (const bool stepped : {true, false}) {
      const JobFacts job = fresh_job(fresh);
      Mailbox::View view{.state = state, .seconds = fresh.number(), .clip = fresh.number()};
      view.groups = {{"matrices", "rule one", fresh.number()}, {"rest", "rule two", fresh.number()}};
      StepFacts facts = fresh_facts(fresh);
      if (stepped) view.last = std::make_shared<StepFacts>(facts);
      v1::Status message;
      fill(message, view, job);
      EXPECT_EQ(message.has_last_step(), stepped);
      if (stepped) check(message.last_step(), facts);
      const json expected{{"state", word},
                          {"steps", job.steps},
                          {"world_size", job.world_size},
                          {"mesh", job.mesh},
                          {"version", std::string(build_facts().version)},
                          {"seconds", view.seconds},
                          {"clip", view.clip},
                          {"groups",
                           {{{"name", "matrices"}, {"rule", "rule one"}, {"lr_scale", view.groups[0].lr_scale}},
                            {{"name", "rest"}, {"rule", "rule two"}, {"lr_scale", view.groups[1].lr_scale}}}},
                          {"last_step", stepped ? json_of(facts) : json()}};
      EXPECT_EQ(json::parse(cli::json_text(message)), expected);
      const std::string text = cli::plain_text(message);
      EXPECT_EQ(text.rfind(word + ", " + std::to_string(job.world_size) + " ranks (the mesh), regatta ", 0), 0U)
          << text;
    }
  }
}

TEST(Figures, OfAPlan) {
  Fresh fresh(0);
  const JobFacts job = fresh_job(fresh);
  v1::Plan message;
  fill(message, job);
  json ranks = json::array();
  std::string lines;
  for (std::size_t rank = 0; rank < job.ranks.size(); ++rank) {
    const sharding::WireBytes& b = job.ranks[rank];
    ranks.push_back({{"reduce_scatter", b.reduce_scatter},
                     {"all_gather", b.all_gather},
                     {"exchange", b.exchange},
                     {"vote", b.vote}});
    lines += "rank " + std::to_string(rank) + " " + std::to_string(b.reduce_scatter) + " " +
             std::to_string(b.all_gather) + " " + std::to_string(b.exchange) + " " + std::to_string(b.vote) + " ";
  }
  EXPECT_EQ(
      json::parse(cli::json_text(message)),
      json({{"mesh", job.mesh}, {"fingerprint", job.fingerprint}, {"wire_bytes", ranks}, {"text", job.plan_text}}));
  const std::string text = std::regex_replace(cli::plain_text(message), std::regex("\\s+"), " ");
  EXPECT_EQ(text, "the plan of two lines bytes sent per step: reduce-scatter, all-gather, exchange, vote " + lines);
}

v1::Status status_of(double seconds, double clip, bool stepped) {
  v1::Status status;
  status.set_state(v1::Status::STATE_PAUSED);
  status.set_steps(2000);
  status.set_world_size(6);
  status.set_mesh("dp=6");
  status.set_version("9.8.7");
  status.set_seconds(seconds);
  status.set_clip(clip);
  v1::Group& group = *status.add_groups();
  group.set_name("matrices");
  group.set_rule("reg rho=0.2");
  group.set_lr_scale(0.5);
  if (!stepped) return status;
  v1::Step& step = *status.mutable_last_step();
  step.set_step(17);
  step.set_loss(2.34567);
  step.set_lr(0.001);
  step.set_grad_norm(1.23456);
  step.set_seconds(0.6789);
  step.set_tokens_per_second(4321.6);
  step.set_skipped_steps(3);
  return status;
}

TEST(Printed, Status) {
  EXPECT_EQ(
      cli::plain_text(status_of(99.6, 1.5, true)),
      "paused, 6 ranks (dp=6), regatta 9.8.7, 100 s since the start\n"
      "  group matrices     reg rho=0.2, lr scale 0.5\n"
      "  clip 1.5\n"
      "  step 17 of 2000: loss 2.3457, lr 0.001, gradient norm 1.235, 0.679 s, 4322 tokens/s, 3 skipped so far\n");
  EXPECT_EQ(cli::plain_text(status_of(0, 0, false)),
            "paused, 6 ranks (dp=6), regatta 9.8.7, 0 s since the start\n"
            "  group matrices     reg rho=0.2, lr scale 0.5\n"
            "  no clipping\n"
            "  no step of 2000 made yet\n");
}

TEST(Printed, CommandsAndTheirChanges) {
  v1::CommandReply reply;
  reply.set_applies_at_step(12);
  EXPECT_EQ(cli::plain_text(reply, "paused before"), "paused before step 12\n");
  const auto change = [&](const char* group, const char* name, std::optional<double> from, double to) {
    v1::Change& out = *reply.add_changes();
    out.set_group(group);
    out.set_name(name);
    if (from) out.set_from(*from);
    out.set_to(to);
  };
  change("matrices", "lr", std::nullopt, 0.001);
  change("", "clip", 0, 2.5);
  reply.set_dry_run(true);
  EXPECT_EQ(cli::plain_text(reply, "in effect from"),
            "not sent; would be in effect from step 12\n"
            "  matrices lr: by the schedule -> 0.001\n"
            "  clip: 0 -> 2.5\n");
  EXPECT_EQ(
      json::parse(cli::json_text(reply)),
      json::parse(
          R"({"applies_at_step":12,"dry_run":true,"changes":[{"group":"matrices","name":"lr","from":null,"to":0.001},
                            {"group":"","name":"clip","from":0.0,"to":2.5}]})"));
}

v1::Step step_of(int n, bool skipped) {
  v1::Step step;
  step.set_step(n);
  step.set_loss(n + 0.12344);
  step.set_lr(n * 1e-4);
  step.set_grad_norm(n * 10.5);
  step.set_seconds(n * 0.001);
  step.set_tokens_per_second(n * 1000.4);
  step.set_skipped(skipped);
  if (skipped) step.set_culprit("layer.0");
  for (int g = 1; g <= 2; ++g) {
    v1::GroupStep& group = *step.add_groups();
    group.set_name("group" + std::to_string(g));
    group.set_lr(n + g * 0.001);
    group.set_grad_norm(7777);
    group.set_update_rms(n + g * 0.01);
    group.set_weight_rms(8888);
    group.set_update_to_weight(n + g * 0.1);
    group.set_zero_lines(n * 100 + g);
  }
  return step;
}

std::string squeezed(const std::string& text) { return std::regex_replace(text, std::regex(" +"), " "); }

TEST(Printed, StepsAsLines) {
  ::testing::internal::CaptureStdout();
  cli::WatchTable table(false);
  table.add(step_of(1, false));
  table.add(step_of(2, true));
  table.add(step_of(3, false));
  EXPECT_EQ(squeezed(::testing::internal::GetCapturedStdout()),
            " step loss lr grad norm seconds tokens/s\n"
            " 1 1.1234 0.0001 10.5 0.001 1000\n"
            " 2 2.1234 0.0002 21 0.002 2001 skipped: layer.0\n"
            " 3 3.1234 0.0003 31.5 0.003 3001\n");
}

// Drawn over itself: the screen shows the last dozen of steps and the groups of the last one, each time from the top.
TEST(Printed, StepsOnATerminal) {
  cli::WatchTable table(true);
  std::vector<std::string> screen;
  for (int n = 1; n <= 15; ++n) {
    ::testing::internal::CaptureStdout();
    table.add(step_of(n, false));
    std::string text = ::testing::internal::GetCapturedStdout();
    std::smatch up;
    const bool moved = std::regex_search(text, up, std::regex("^\x1b\\[(\\d+)A"));
    EXPECT_EQ(moved, n > 1);
    if (moved)
      EXPECT_EQ(std::stoul(up[1]), screen.size()) << "it starts at another line than the last time, step " << n;
    text = std::regex_replace(text, std::regex("\x1b\\[\\d*[AKJ]"), "");
    screen.clear();
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) screen.push_back(squeezed(line));
    const int shown = std::min(n, 12);
    ASSERT_EQ(screen.size(), static_cast<std::size_t>(1 + shown + 1 + 1 + 2));
    EXPECT_EQ(screen[0], " step loss lr grad norm seconds tokens/s");
    for (int row = 0; row < shown; ++row)
      EXPECT_EQ(screen[static_cast<std::size_t>(1 + row)].rfind(" " + std::to_string(n - shown + 1 + row) + " ", 0),
                0U);
    const auto last = screen.end() - 3;
    EXPECT_EQ(last[0], " group lr update RMS upd/weight zero lines");
    for (int g = 1; g <= 2; ++g) {
      char expected[100];
      std::snprintf(expected, sizeof expected, " group%d %.4g %.4g %.4g %d", g, n + g * 0.001, n + g * 0.01,
                    n + g * 0.1, n * 100 + g);
      EXPECT_EQ(last[g], expected);
    }
  }
}

}  // namespace
}  // namespace regatta::control
