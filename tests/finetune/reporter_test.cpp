// What a run shows: every figure on its own line of the log, the summary and the table, from reports in which every
// number is another one.

#include "cli/finetune/reporter.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "runtime/error.h"
#include "tests/finetune/distinct_step.h"
#include "tests/support/refusal.h"

namespace regatta::finetune {
namespace {

using regatta::testing::expect_says;
namespace fs = std::filesystem;
using nlohmann::json;

class Reports : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() / ("reporter_test." + std::to_string(::getpid()) + "." + info->name());
    options_.out = (folder_ / "a" / "b").string();
    options_.steps = 40;
    options_.engine_flags.mesh = "dp=3";
    options_.engine_flags.mode = "zero2";
    options_.transport = "mpi";
    options_.rules.rule = "muon";
    options_.init = "random";
    summary_.params = 1'234'567;
    summary_.tokens_per_step = 4096;
    summary_.world_size = 3;
    summary_.steps = 7;
    summary_.first_step = 2;
    summary_.skipped_steps = 1;
    summary_.train_loss_first = 5.5;
    summary_.train_loss_last = 4.25;
    summary_.eval_before = 5.75;
    summary_.eval_after = 4.125;
    summary_.evals = {{2, 5.75, 0.5}, {7, 4.125, 0.625}};
    summary_.totals.phases = {0.5, 1, 2, 4};
    summary_.totals.times = {0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 1, 0.5};
    summary_.totals.counted = {11, 22, 33, 44};
    summary_.totals.planned = {55, 66, 77, 88};
    summary_.bytes_as_planned = false;
    summary_.state_bytes = {1'500'000, 2'500'000, 500'000};
    summary_.files = {"one", "two"};
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string read(const std::string& name) const {
    std::ifstream file(fs::path(options_.out) / name, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  std::vector<json> log() const {
    std::vector<json> lines;
    std::istringstream text(read("log.jsonl"));
    for (std::string line; std::getline(text, line);) lines.push_back(json::parse(line));
    return lines;
  }
  /// What `call` writes to stderr and stdout.
  template <class Call>
  std::pair<std::string, std::string> said(const Call& call) {
    ::testing::internal::CaptureStderr();
    ::testing::internal::CaptureStdout();
    call();
    const std::string out = ::testing::internal::GetCapturedStdout();
    return {::testing::internal::GetCapturedStderr(), out};
  }
  fs::path folder_;
  Options options_;
  Summary summary_;
};

TEST_F(Reports, ALineOfTheLogHasEveryFigureOfItsStep) {
  Reporter reporter(options_);
  said([&] { reporter.stepped(record_of(1)); });
  const std::vector<json> lines = log();
  ASSERT_EQ(lines.size(), 1U);
  EXPECT_EQ(lines[0], json::parse(R"({"step": 1, "loss": 2.625, "lr": 0.0123, "grad_norm": 17.5, "clip_factor": 0.75,
    "loss_scale": 256.0, "skipped": false,
    "groups": [{"name": "matrices", "grad_norm": 3.5, "update_rms": 4.5, "weight_rms": 5.5, "update_to_weight": 6.5, "zero_lines": 9},
               {"name": "rest", "grad_norm": 13.5, "update_rms": 14.5, "weight_rms": 15.5, "update_to_weight": 16.5, "zero_lines": 19}],
    "seconds": {"data": 0.25, "forward": 0.5, "backward": 1.0, "step": 2.0, "wait_grad": 0.0625, "vote": 0.03125, "sweep": 0.015625,
                "wait_exchange": 0.0078125, "wait_gather": 0.00390625, "grad_comm": 0.125, "gather_comm": 0.0009765625},
    "bytes": {"reduce_scatter": 100, "all_gather": 200, "exchange": 400, "vote": 800, "total": 1500}, "grad_overlap": 0.5})"));
}

/// However the folder is spelled.
TEST_F(Reports, TheBaseIsNotWrittenOver) {
  fs::create_directories(folder_ / "base");
  fs::create_directory_symlink(folder_ / "base", folder_ / "link");
  options_.init = (folder_ / "base").string();
  for (const char* name : {"base", "base/.", "link", "../base"}) {
    options_.out = (std::string(name) == "../base" ? folder_ / "base" / name : folder_ / name).string();
    try {
      const Reporter reporter(options_);
      ADD_FAILURE() << options_.out << " was taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_argument);
      expect_says(error.what(), "--out " + options_.out + " is the folder of --init");
    }
  }
  EXPECT_TRUE(fs::is_empty(folder_ / "base"));
}

TEST_F(Reports, ASkippedStepIsLoggedAndToldWithItsCulprit) {
  Reporter reporter(options_);
  StepRecord record = record_of(3);
  record.report.skipped = true;
  record.report.culprit = "layers.1.up";
  record.report.groups.clear();
  const std::string err = said([&] { reporter.stepped(record); }).first;
  expect_says(err, "step 3: skipped, the gradient of layers.1.up is not finite\n");
  EXPECT_EQ(log()[0]["skipped"], true);
  EXPECT_EQ(log()[0]["culprit"], "layers.1.up");
  EXPECT_FALSE(log()[0].contains("groups"));
}

/// Each is there as soon as it is told: somebody may be reading along, and the job may be killed.
TEST_F(Reports, EveryKindOfLineIsInTheFileAtOnce) {
  Reporter reporter(options_);
  said([&] { reporter.evaluated({0, 5.5, 0.75}); });
  EXPECT_EQ(log().back(), json::parse(R"({"step": 0, "eval_loss": 5.5, "eval_seconds": 0.75})"));
  said([&] { reporter.stepped(record_of(1)); });
  EXPECT_EQ(log().size(), 2U);
  reporter.saved({.step = 1, .problem = "", .bytes = 77, .copy_seconds = 0.5, .write_seconds = 2.5});
  EXPECT_EQ(log().size(), 3U);
  EXPECT_EQ(log().back(),
            json::parse(R"({"step": 1, "checkpoint": {"bytes": 77, "copy_seconds": 0.5, "write_seconds": 2.5}})"));
}

TEST_F(Reports, ANewJobBeginsTheLogAnew) {
  {
    Reporter first(options_);
    said([&] { first.stepped(record_of(1)); });
  }
  EXPECT_EQ(log().size(), 1U);
  Reporter second(options_);
  EXPECT_TRUE(log().empty());
}

TEST_F(Reports, OneThatGoesOnKeepsTheLinesOfStepsThatCount) {
  {
    Reporter first(options_);
    said([&] {
      first.evaluated({0, 9, 1});
      for (int step = 1; step <= 4; ++step) {
        first.stepped(record_of(step));
        first.saved({.step = step, .problem = "", .bytes = 1, .copy_seconds = 1, .write_seconds = 1});
      }
      first.evaluated({4, 9, 1});
    });
  }
  std::ofstream(fs::path(options_.out) / "log.jsonl", std::ios::app) << "{\"no\": \"step\"}\n[1]\n{\"step\": 2, \"cut";
  Reporter second(options_, 3);
  std::vector<std::int64_t> steps;
  for (const json& line : log()) steps.push_back(line.at("step"));
  EXPECT_EQ(steps, (std::vector<std::int64_t>{0, 1, 1, 2, 2, 3, 3}));
  said([&] { second.stepped(record_of(4)); });
  EXPECT_EQ(log().size(), 8U);
}

TEST_F(Reports, WhereNothingCanBeWrittenIsSaid) {
  std::ofstream(folder_.string()) << "a file";
  try {
    Reporter reporter(options_);
    ADD_FAILURE() << "was taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::invalid_argument);
    expect_says(error.what(), "--out " + options_.out + " cannot be made");
  }
  fs::remove(folder_);
  fs::create_directories(fs::path(options_.out) / "log.jsonl");
  try {
    Reporter reporter(options_);
    ADD_FAILURE() << "was taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::invalid_argument);
    expect_says(error.what(), "cannot be written to");
  }
  options_.init = options_.out;
  try {
    Reporter reporter(options_);
    ADD_FAILURE() << "was taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::invalid_argument);
    expect_says(error.what(), "is the folder of --init");
  }
}

TEST_F(Reports, TheFirstLineSaysWhatTheJobIs) {
  Reporter reporter(options_);
  const std::string err = said([&] { reporter.started(summary_); }).first;
  EXPECT_EQ(err, "1.23 M parameters, 4096 tokens per step, mesh dp=3, 40 steps, rule muon\n");
}

TEST_F(Reports, NumbersAreShortened) {
  Reporter reporter(options_);
  const auto shown = [&](std::int64_t params) {
    summary_.params = params;
    const std::string err = said([&] { reporter.started(summary_); }).first;
    return err.substr(0, err.find(" parameters"));
  };
  EXPECT_EQ(shown(999), "999 ");
  EXPECT_EQ(shown(1000), "1 k");
  EXPECT_EQ(shown(999'000), "999 k");
  EXPECT_EQ(shown(1'000'000), "1 M");
  EXPECT_EQ(shown(7'500'000'000), "7.5 G");
}

/// Every twentieth of the steps, the first and the last; speeds of this run only.
TEST_F(Reports, ProgressIsShownNowAndThen) {
  options_.steps = 60;
  Reporter reporter(options_);
  said([&] { reporter.started(summary_); });  // two steps were made by an earlier run
  std::vector<std::string> shown;
  for (int step = 3; step <= 60; ++step) {
    // 3.75 s, then half of it.
    const std::string err = said([&] { reporter.stepped(record_of(step, step == 3 ? 1 : 0.5)); }).first;
    if (!err.empty()) shown.push_back(err);
  }
  EXPECT_EQ(shown.size(), 20U);
  EXPECT_EQ(shown[0], "step 3/60  loss 2.8750  lr 1.23e-02  1.09 ktokens/s  3m34s left\n");  // 4096 / 3.75; 57 * 3.75 s
  // Four steps in 3.75 + 3 * 1.875 s; 54 more at 3.75, three times a tenth nearer to 1.875.
  EXPECT_EQ(shown[1], "step 6/60  loss 3.2500  lr 1.23e-02  1.75 ktokens/s  2m55s left\n");
  expect_says(shown[19], "step 60/60  loss 10.0000");
  expect_says(shown[19], " 0s left");
}

TEST_F(Reports, FewStepsAreAllShown) {
  options_.steps = 39;
  summary_.first_step = 0;
  Reporter reporter(options_);
  said([&] { reporter.started(summary_); });
  for (int step = 1; step <= 39; ++step) EXPECT_NE(said([&] { reporter.stepped(record_of(step)); }).first, "") << step;
}

TEST_F(Reports, TimesToGoAreWrittenInTheirUnits) {
  const auto left = [&](double seconds_per_step, std::int64_t steps) {
    options_.steps = steps;
    Reporter reporter(options_);
    summary_.first_step = 0;
    return said([&] {
             reporter.started(summary_);
             StepRecord record = record_of(1, seconds_per_step / 3.75);
             reporter.stepped(record);
           })
        .first;
  };
  expect_says(left(59.4, 2), "  59s left");
  expect_says(left(59.5, 2), "  1m00s left");
  expect_says(left(3599.4, 2), "  59m59s left");
  expect_says(left(3600, 2), "  1h00m left");
  expect_says(left(3600, 27), "  26h00m left");
  expect_says(left(3725, 2), "  1h02m left");
}

TEST_F(Reports, EvaluationsAndWarningsAreTold) {
  Reporter reporter(options_);
  EXPECT_EQ(said([&] {
              reporter.evaluated({12, 3.14159, 1.25});
            }).first,
            "evaluation loss 3.1416 after 12 updates (1.2 s)\n");
  EXPECT_EQ(said([&] { reporter.warned("the disk is full"); }).first, "warning: the disk is full\n");
}

TEST_F(Reports, TheSummaryHasEveryFigure) {
  options_.json = true;
  options_.dtype = DType::bf16;
  Reporter reporter(options_);
  const auto [err, out] = said([&] { reporter.finished(summary_); });
  EXPECT_EQ(read("summary.json"), out);
  json expected = json::parse(
      R"({"command": "finetune", "init": "random", "rule": "muon", "mesh": "dp=3", "transport": "mpi", "mode": "zero2",
    "dtype": "bf16", "world_size": 3, "params": 1234567, "steps": 7, "first_step": 2, "skipped_steps": 1, "tokens_per_step": 4096,
    "train_loss_first": 5.5, "train_loss_last": 4.25, "eval_loss_before": 5.75, "eval_loss_after": 4.125,
    "evals": [{"step": 2, "loss": 5.75}, {"step": 7, "loss": 4.125}], "step_ms": 1500.0, "grad_overlap": 0.75,
    "seconds": {"data": 0.5, "forward": 1.0, "backward": 2.0, "step": 4.0, "wait_grad": 0.25, "vote": 0.125, "sweep": 0.0625,
                "wait_exchange": 0.03125, "wait_gather": 0.015625, "grad_comm": 1.0, "gather_comm": 0.5},
    "bytes_planned": {"reduce_scatter": 55, "all_gather": 66, "exchange": 77, "vote": 88, "total": 286},
    "bytes_counted": {"reduce_scatter": 11, "all_gather": 22, "exchange": 33, "vote": 44, "total": 110},
    "bytes_as_planned": false, "state_bytes_per_rank": 2500000, "state_bytes": [1500000, 2500000, 500000], "files": ["one", "two"]})");
  expected["out"] = options_.out;
  expected["tokens_per_second"] = 4096 * 5 / 7.5;
  EXPECT_EQ(json::parse(out), expected);
  // With --json the table goes to stderr.
  expect_says(err, "7 steps on dp=3 (mpi, zero2), 1.23 M parameters, 4096 tokens per step\n");
}

TEST_F(Reports, FiguresThatAreNotThereAreNull) {
  options_.json = true;
  Reporter reporter(options_);
  summary_.eval_before.reset();
  summary_.eval_after.reset();
  const auto [err, out] = said([&] { reporter.finished(summary_); });
  const json document = json::parse(out);
  EXPECT_TRUE(document["eval_loss_before"].is_null() && document["eval_loss_after"].is_null());
  EXPECT_EQ(document["dtype"], "fp32");
  EXPECT_EQ(err.find("evaluation loss"), std::string::npos);
}

/// "name value" -> the rest of the line that begins with a name.
std::string row(const std::string& text, const std::string& name) {
  const std::size_t at = text.find("\n  " + name);
  if (at == std::string::npos) return "(no " + name + ")";
  std::string line = text.substr(at + 1, text.find('\n', at + 1) - at - 1);
  std::string words;
  std::istringstream stream(line.substr(2 + name.size()));
  for (std::string word; stream >> word;) words += (words.empty() ? "" : " ") + word;
  return words;
}

TEST_F(Reports, TheTableHasThem) {
  Reporter reporter(options_);
  const auto [err, table] = said([&] { reporter.finished(summary_); });
  EXPECT_EQ(err, "");
  EXPECT_EQ(row(table, "training loss"), "5.5000 -> 4.2500");
  EXPECT_EQ(row(table, "evaluation loss"), "5.7500 -> 4.1250");
  EXPECT_EQ(row(table, "skipped steps"), "1");
  EXPECT_EQ(row(table, "tokens per second"), "2731");  // 5 steps of 4096 in 7.5 s
  EXPECT_EQ(row(table, "step "), "1500.0 ms = data 100.0 + forward 200.0 + backward 400.0 + optimizer 800.0");
  EXPECT_EQ(row(table, "optimizer "),
            "800.00 ms: wait for gradients 50.00, vote 25.00, sweep 12.50, wait for lines 6.25, for parameters 3.12");
  EXPECT_EQ(row(table, "gradient communication"), "200.00 ms per step, 75 % of it hidden behind backward");
  EXPECT_EQ(row(table, "bytes sent by rank 0"), "planned counted");
  EXPECT_EQ(row(table, "  reduce-scatter (gradients)"), "55 11");
  EXPECT_EQ(row(table, "  all-gather (parameters)"), "66 22");
  EXPECT_EQ(row(table, "  exchange (lines)"), "77 33");
  EXPECT_EQ(row(table, "  vote"), "88 44");
  expect_says(table, "some rank sent OTHER byte counts than the plan predicts");
  EXPECT_EQ(row(table, "optimizer state per rank"), "2.5 MB");
  EXPECT_EQ(row(table, "results"), options_.out);
  summary_.bytes_as_planned = true;
  summary_.skipped_steps = 0;
  const std::string good = said([&] { reporter.finished(summary_); }).second;
  expect_says(good, "every rank sent what the plan predicts");
  EXPECT_EQ(good.find("skipped steps"), std::string::npos);
  summary_.world_size = 1;
  EXPECT_EQ(said([&] { reporter.finished(summary_); }).second.find("bytes sent"), std::string::npos);
}

}  // namespace
}  // namespace regatta::finetune
