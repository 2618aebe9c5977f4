// Every line of a page against reports in which every number differs: over several steps, skipped ones among them, on
// every rank of a mesh.

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>

#include "runtime/telemetry/metrics.h"
#include "tests/support/spmd.h"
#include "tests/telemetry/expected_page.h"

namespace regatta {
namespace {

using testing::ExpectedPage;
using testing::Fresh;
using testing::MetricsPage;
using testing::unix_time;

ParamReport param(const std::string& name, double update_rms, double smallest, double largest) {
  ParamReport report{.name = name};
  report.update_rms = update_rms;
  report.smallest_line_norm = smallest;
  report.largest_line_norm = largest;
  return report;
}

TEST(MetricsPage, SaysEveryFigureOfEveryStepOnEveryRank) {
  const sharding::Mesh mesh({{"dp", 2}, {"tp", 3}});
  testing::run_ranks(6, [&](Transport& transport) {
    const int rank = transport.rank();
    Fresh fresh(1000 * rank);
    const double started = unix_time();
    const auto began = std::chrono::steady_clock::now();
    const std::int64_t state_bytes = fresh.whole();
    Telemetry telemetry({.job = "j", .top_params = 2}, {mesh, "the rule", "the transport", state_bytes}, transport);
    ExpectedPage expected(mesh, rank, 6, state_bytes);
    const auto check = [&](const char* after) {
      SCOPED_TRACE("rank " + std::to_string(rank) + ", after " + after);
      expected.check(telemetry.page(), started,
                     std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
    };
    check("nothing");

    // Clipped, settings changed, a proof that failed.
    StepReport report = fresh_report(5, 2, fresh);  // a job that goes on has made steps
    report.clip_factor = 0.75;
    report.command.kind = Command::Kind::set;
    report.proof = ProofReport{0, 0, fresh.whole(), fresh.whole()};
    TrainerFacts facts = fresh_trainer_facts(fresh);
    telemetry.record(
        report, std::vector{param("a", 3, 1, 8), param("b", 9, 2, 4), param("c", 5, 1, 30), param("none", 0, 0, 7)},
        facts);
    expected.step(report, facts);
    expected.top({{"b", 9}, {"c", 5}}, {{"c", 30}, {"a", 8}});
    check("a clipped step");

    // Skipped: the figures of groups and parameters stay, tokens too; the rest goes on.
    report = fresh_report(5, 3, fresh);
    report.skipped = true;
    report.culprit = "a";
    facts = fresh_trainer_facts(fresh);
    telemetry.record(report, std::vector{param("a", 100, 1, 800)}, facts);
    expected.step(report, facts);
    check("a skipped step");

    // A command that changes no setting, a proof that held, times at, just below and just above bounds.
    report = fresh_report(6, 3, fresh);
    report.command.kind = Command::Kind::pause;
    report.proof = ProofReport{0, 0, fresh.whole(), 0};
    report.groups[0].lr = 0;
    report.groups[1].smallest_line_norm = 0;
    facts = fresh_trainer_facts(fresh);
    facts.data_seconds = metrics::time_bounds[3];
    facts.forward_seconds = std::nextafter(metrics::time_bounds[5], 0);
    facts.backward_seconds = std::nextafter(metrics::time_bounds[5], 1);
    report.times.vote_seconds = metrics::time_bounds.front() / 2;
    report.times.sweep_seconds = metrics::time_bounds.back();
    report.times.wait_grad_seconds = metrics::time_bounds.back() * 2;
    telemetry.record(report, std::vector{param("d", 0, 3, 6)}, facts);
    expected.step(report, facts);
    expected.top({}, {{"d", 2}});
    check("a paused step");

    // Several more, of every order of magnitude.
    for (int step = 7; step < 12; ++step) {
      report = fresh_report(step, 3, fresh);
      report.clip_factor = step % 2 == 0 ? 1 : 0.5 + 0.01 * step;
      facts = fresh_trainer_facts(fresh);
      facts.forward_seconds = std::pow(10, step - 11);
      report.times.vote_seconds = std::pow(10, step - 9);
      telemetry.record(report, std::vector{param("e", step, 0, 1)}, facts);
      expected.step(report, facts);
      expected.top({{"e", step}}, {});
      check("one of many");
    }
  });
}

// Names and kinds as dashboards and alerts have them.
TEST(MetricsPage, EveryMetricHasItsKindAndHelp) {
  const sharding::Mesh mesh({{"dp", 1}});
  testing::run_ranks(1, [&](Transport& transport) {
    Fresh fresh(0);
    Telemetry telemetry({.job = "j"}, {mesh, "r", "t", 1}, transport);
    telemetry.record(fresh_report(1, 0, fresh), std::vector{param("a", 3, 1, 8)}, fresh_trainer_facts(fresh));
    const MetricsPage page(telemetry.page());
    std::map<std::string, std::string> kinds;
    for (const char* name :
         {"steps", "skipped_steps", "clipped_steps", "setting_changes", "tokens", "live_proofs",
          "live_proof_differences", "sent_bytes", "communication_seconds", "exposed_communication_seconds"})
      kinds["regatta_" + std::string(name) + "_total"] = "counter";
    for (const char* name : {"info",
                             "world_size",
                             "last_save_timestamp_seconds",
                             "last_step_timestamp_seconds",
                             "loss",
                             "learning_rate",
                             "loss_scale_ratio",
                             "grad_norm",
                             "clip_ratio",
                             "group_grad_norm",
                             "update_rms",
                             "normalized_update_rms",
                             "weight_rms",
                             "update_to_weight_ratio",
                             "line_norm_min",
                             "line_norm_max",
                             "line_norm_spread_ratio",
                             "zero_lines",
                             "clamped_lines",
                             "non_finite_lines",
                             "param_update_rms",
                             "param_line_norm_spread_ratio",
                             "state_bytes",
                             "resident_memory_bytes"})
      kinds["regatta_" + std::string(name)] = "gauge";
    for (const char* name : {"step_seconds", "step_phase_seconds"}) kinds["regatta_" + std::string(name)] = "histogram";
    EXPECT_EQ(page.type, kinds);
    // A help text per metric, none said of two; a few words that tell neighbours apart.
    std::map<std::string, std::string> by_text;
    for (const auto& [name, text] : page.help) {
      EXPECT_TRUE(kinds.contains(name)) << name;
      EXPECT_TRUE(by_text.emplace(text, name).second) << name << " and " << by_text[text] << " say the same";
    }
    EXPECT_EQ(page.help.size(), kinds.size());
    for (const auto& [name, word] : std::map<std::string, std::string>{{"regatta_line_norm_min", "Smallest"},
                                                                       {"regatta_line_norm_max", "Largest"},
                                                                       {"regatta_zero_lines", "zero"},
                                                                       {"regatta_clamped_lines", "below eps"},
                                                                       {"regatta_non_finite_lines", "NaN or Inf"},
                                                                       {"regatta_grad_norm", "before clipping"},
                                                                       {"regatta_steps_total", "applied"},
                                                                       {"regatta_skipped_steps_total", "skipped"}})
      EXPECT_NE(page.help.at(name).find(word), std::string::npos) << name << ": " << page.help.at(name);
  });
}

TEST(MetricsPage, BoundsOfTimesRiseAndPhasesDiffer) {
  for (std::size_t i = 1; i < metrics::time_bounds.size(); ++i)
    EXPECT_LT(metrics::time_bounds[i - 1], metrics::time_bounds[i]);
}

// A loss that the trainer does not know is not made up, not even from the step before.
TEST(MetricsPage, NoLossWithoutOne) {
  testing::run_ranks(1, [&](Transport& transport) {
    Fresh fresh(0);
    Telemetry telemetry({.job = "j"}, {sharding::Mesh({{"dp", 1}}), "r", "t", 1}, transport);
    for (const bool known : {true, false}) {
      TrainerFacts facts = fresh_trainer_facts(fresh);
      if (!known) facts.loss.reset();
      telemetry.record(fresh_report(1, 0, fresh), {}, facts);
      EXPECT_EQ(telemetry.page().find("regatta_loss{") != std::string::npos, known);
    }
  });
}

// The two clocks: a step moves one, a save the other, by themselves.
TEST(MetricsPage, StepsAndSavesHaveClocksOfTheirOwn) {
  testing::run_ranks(1, [&](Transport& transport) {
    Fresh fresh(0);
    Telemetry telemetry({.job = "j"}, {sharding::Mesh({{"dp", 1}}), "r", "t", 1}, transport);
    const auto now = [&] {
      double save = 0, step = 0, steps = 0;
      for (const auto& [line, value] : MetricsPage(telemetry.page()).samples) {
        if (line.rfind("regatta_last_save_timestamp_seconds{", 0) == 0) save = value;
        if (line.rfind("regatta_last_step_timestamp_seconds{", 0) == 0) step = value;
        if (line.rfind("regatta_steps_total{", 0) == 0) steps = value;
      }
      return std::tuple(save, step, steps);
    };
    // The page has the clock to a microsecond or so; wait until it has moved on.
    const auto tick = [] {
      for (const double from = unix_time(); unix_time() < from + 0.002;) {
      }
    };
    const auto [save0, step0, none] = now();
    EXPECT_EQ(none, 0);
    tick();
    telemetry.record(fresh_report(4, 0, fresh), {}, fresh_trainer_facts(fresh));
    const auto [save1, step1, steps1] = now();
    EXPECT_EQ(save1, save0);
    EXPECT_GT(step1, step0);
    EXPECT_EQ(steps1, 4);
    tick();
    telemetry.saved();
    const auto [save2, step2, steps2] = now();
    EXPECT_GT(save2, save1);
    EXPECT_EQ(step2, step1);
    EXPECT_EQ(steps2, 4);
    tick();
    telemetry.record(fresh_report(5, 0, fresh), {}, fresh_trainer_facts(fresh));
    const auto [save3, step3, steps3] = now();
    EXPECT_EQ(save3, save2);
    EXPECT_GT(step3, step2);
  });
}

}  // namespace
}  // namespace regatta
