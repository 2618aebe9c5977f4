// Every flag of `regatta finetune` reaches its option, from the command line and from a file; what cannot be is
// refused. The job itself is replaced: its ranks tell what they were given.

#include <gtest/gtest.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <set>

#include "cli/commands.h"
#include "cli/finetune/run_rank.h"
#include "runtime/error.h"

namespace regatta {
namespace {

std::mutex mutex;
finetune::Options given;
std::string given_mesh;
std::set<int> ranks;
int exit_code = -1;

}  // namespace

namespace finetune {

void check_device(const Options&, const sharding::Mesh&) {}
void run_rank(const Options& options, const sharding::Mesh& mesh, cli::RankContext& context) {
  const std::lock_guard lock(mutex);
  given = options;
  given_mesh = mesh.text();
  ranks.insert(context.rank);
}

}  // namespace finetune

namespace cli {

void set_exit_code(int code) { exit_code = code; }

namespace {

using finetune::Options;
using Words = std::vector<std::string>;

/// "" when the job was run; otherwise why not.
std::string run(Words words) {
  ranks.clear();
  exit_code = -1;
  CLI::App app;
  add_finetune(app);
  words.insert(words.begin(), "finetune");
  std::reverse(words.begin(), words.end());
  try {
    app.parse(words);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::invalid_argument) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return error.what();
  } catch (const CLI::Error& error) {
    return error.what();
  }
  return ranks.empty() ? "(no rank ran)" : "";
}

std::string run_with(const Words& more) {
  Words words{"--data", "d.txt", "--out", "o"};
  words.insert(words.end(), more.begin(), more.end());
  return run(words);
}

void expect_refused(const Words& more, const std::string& sentence) {
  const std::string said = run_with(more);
  EXPECT_NE(said.find(sentence), std::string::npos)
      << ::testing::PrintToString(more) << " said '" << said << "', expected '" << sentence << "'";
  EXPECT_TRUE(ranks.empty());
}

struct Flag {
  std::string name, value, usual;  ///< as text
  std::function<std::string(const Options&)> get;
};

std::string text(double value) {
  std::ostringstream stream;
  stream << value;
  return stream.str();
}
template <class Number, class = std::enable_if_t<std::is_integral_v<Number>>>
std::string text(Number value) {
  return std::to_string(value);
}
std::string text(const std::string& value) { return value; }
std::string text(const Words& values) {
  std::string all;
  for (const std::string& value : values) all += (all.empty() ? "" : ",") + value;
  return all;
}

#define FLAG(name, value, usual, field)                                \
  Flag {                                                               \
    name, value, usual, [](const Options& o) { return text(o.field); } \
  }

/// Every flag with one value, what it is without, and where it must arrive. Each value is another one.
std::vector<Flag> flags() {
  return {FLAG("hidden", "120", "128", sizes.hidden),
          FLAG("layers", "7", "4", sizes.layers),
          FLAG("heads", "6", "4", sizes.heads),
          FLAG("kv-heads", "3", "6", sizes.kv_heads),
          FLAG("intermediate", "88", "320", sizes.intermediate),
          FLAG("vocab", "301", "256", sizes.vocab),
          FLAG("tie", "true", "0", sizes.tied_head),
          FLAG("init-std", "0.031", "0.02", sizes.init_std),
          FLAG("dtype", "bf16", "fp32", dtype_name),
          FLAG("eval-data", "e.txt", "", eval_data),
          FLAG("eval-every", "9", "0", eval_every),
          FLAG("eval-sequences", "21", "64", eval_sequences),
          FLAG("seq", "77", "128", seq),
          FLAG("seed", "12345678901234567890", "0", seed),
          FLAG("steps", "61", "100", steps),
          FLAG("micro-batch", "5", "4", micro_batch),
          FLAG("global-batch", "40", "4", global_batch),
          FLAG("accumulation", "tree", "sum", accumulation),
          FLAG("rule", "adamw", "reg", rules.rule),
          FLAG("set", "weight_decay=0.3", "", rules.settings),
          FLAG("assign", "*norm*=reg", "", rules.assignments),
          FLAG("preset", "symmetric", "", rules.preset),
          FLAG("lr", "0.0123", "0.001", schedule.base),
          FLAG("schedule", "cosine", "constant", schedule_name),
          FLAG("lr-at", "13=0.5", "", lr_at),
          FLAG("warmup", "17", "0", schedule.warmup),
          FLAG("final-lr-ratio", "0.25", "0", schedule.final_ratio),
          FLAG("loss-scale", "128", "1", engine.loss_scaling.initial),
          FLAG("non-finite", "stop", "skip", non_finite),
          FLAG("mesh", "dp=2", "dp=1", engine_flags.mesh),
          FLAG("mode", "zero2", "zero1", engine_flags.mode),
          FLAG("blocks", "*q_proj*=30,90", "", engine_flags.blocks),
          FLAG("cut", "element", "row", engine_flags.cut),
          FLAG("bucket-bytes", "12345", "26214400", engine_flags.bucket_bytes),
          FLAG("momentum-dtype", "bf16", "fp32", engine_flags.momentum_dtype),
          FLAG("threads", "3", "1", engine_flags.threads),
          FLAG("clip", "1.75", "0", engine_flags.clip),
          FLAG("proof-every", "19", "0", engine_flags.proof_every),
          FLAG("proof-stops", "true", "0", engine_flags.proof_stops),
          FLAG("reduction", "sum", "tree", device.reduction),
          FLAG("device-messages", "never", "auto", device.device_messages),
          FLAG("device-graph", "true", "0", device.graph),
          FLAG("deadline", "345.5", "600", deadline_seconds),
          FLAG("metrics-address", "127.0.0.1:9001", "", metrics.address),
          FLAG("job", "night", "regatta", metrics.job),
          FLAG("metrics-discovery", "found", "", metrics.discovery_dir),
          FLAG("metrics-push", "127.0.0.1:9002", "", metrics.push_address),
          FLAG("metrics-top", "23", "8", metrics.top_params),
          FLAG("checkpoint-every", "29", "0", checkpoints.every),
          FLAG("checkpoint-dir", "cd", "", checkpoints.dir),
          FLAG("keep-last", "4", "0", checkpoints.keep_last),
          FLAG("keep-every", "31", "0", checkpoints.keep_every),
          FLAG("resume", "auto", "", checkpoints.resume),
          FLAG("allow", "schedule", "", checkpoints.allow),
          FLAG("control-audit", "audit", "", control_audit),
          FLAG("out", "o", "o", out),
          FLAG("data", "d.txt", "d.txt", data),
          FLAG("json", "true", "0", json),
          FLAG("transport", "local", "local", transport)};
}

Words as_words(const Flag& flag) {
  if (flag.value == "true") return {"--" + flag.name};
  return {"--" + flag.name, flag.value};
}

/// What the option is when the flag says `value`; flags without a value become 1.
std::string arrived(const std::string& value) { return value == "true" ? "1" : value; }

TEST(FinetuneFlags, EachReachesItsOptionFromTheCommandLine) {
  Words words;
  for (const Flag& flag : flags())
    for (const std::string& word : as_words(flag)) words.push_back(word);
  ASSERT_EQ(run(words), "");
  for (const Flag& flag : flags()) EXPECT_EQ(flag.get(given), arrived(flag.value)) << "--" << flag.name;
  EXPECT_EQ(ranks, (std::set<int>{0, 1}));
  EXPECT_EQ(exit_code, 0);
  // And what follows from them.
  EXPECT_EQ(given.engine.non_finite, NonFinite::stop);
  EXPECT_EQ(given.engine.accumulation, Accumulation::tree);
  EXPECT_EQ(given.engine.mode, Mode::zero2);
  EXPECT_EQ(given.engine.clip, 1.75);
  EXPECT_EQ(given.engine.micro_batches, 4);
  EXPECT_TRUE(given.engine.device_graph);
  EXPECT_EQ(given.dtype, DType::bf16);
  EXPECT_EQ(given.schedule.kind, Schedule::Kind::cosine);
  EXPECT_EQ(given.schedule.steps, 61);
  EXPECT_EQ(given.sizes.head_dim, 20);
}

TEST(FinetuneFlags, WithoutThemTheDefaultsHold) {
  ASSERT_EQ(run({"--data", "d.txt", "--out", "o"}), "");
  for (const Flag& flag : flags()) {
    if (flag.name == "kv-heads" || flag.name == "intermediate") continue;  // they follow others
    EXPECT_EQ(flag.get(given), flag.usual) << "--" << flag.name;
  }
  EXPECT_EQ(given.device.device, "cpu");
  EXPECT_EQ(given.engine.non_finite, NonFinite::skip);
  EXPECT_EQ(given.engine.accumulation, Accumulation::sum);
  EXPECT_EQ(given.engine.micro_batches, 1);
  EXPECT_EQ(given.dtype, DType::f32);
  EXPECT_EQ(given.init, "random");
  EXPECT_FALSE(given.bucket_bytes_given);
  EXPECT_FALSE(given.engine.device);
}

/// Alone, so that no flag takes the value of another.
TEST(FinetuneFlags, EachAloneChangesItsOptionOnly) {
  for (const Flag& flag : flags()) {
    if (flag.name == "out" || flag.name == "data" || flag.name == "transport") continue;
    Words words = as_words(flag);
    if (flag.name == "hidden") words.insert(words.end(), {"--heads", "6"});
    if (flag.name == "kv-heads") words.insert(words.end(), {"--heads", "6", "--hidden", "120"});
    if (flag.name == "heads") words.insert(words.end(), {"--hidden", "120"});
    if (flag.name == "keep-every") words.insert(words.end(), {"--keep-last", "4"});
    if (flag.name == "eval-every") words.insert(words.end(), {"--eval-data", "e.txt"});
    ASSERT_EQ(run_with(words), "") << "--" << flag.name;
    for (const Flag& other : flags()) {
      const bool said = std::find(words.begin(), words.end(), "--" + other.name) != words.end();
      const std::set<std::string> follow{"kv-heads", "intermediate", "global-batch"};
      if (!said && follow.count(other.name) > 0) continue;
      EXPECT_EQ(other.get(given), said ? arrived(other.value) : other.usual)
          << "--" << other.name << " after --" << flag.name;
    }
  }
}

TEST(FinetuneFlags, AFileGivesWhatTheCommandLineLeavesOut) {
  const std::filesystem::path path = ::testing::TempDir() + "finetune_flags" + std::to_string(::getpid()) + ".toml";
  std::ofstream file(path);
  for (const Flag& flag : flags()) {
    const bool bare = flag.value == "true" || (flag.value.find_first_not_of("0123456789.") == std::string::npos);
    file << flag.name << " = " << (bare ? flag.value : '"' + flag.value + '"') << "\n";
  }
  file.close();
  ASSERT_EQ(run({"--config", path}), "");
  for (const Flag& flag : flags()) EXPECT_EQ(flag.get(given), arrived(flag.value)) << flag.name;
  EXPECT_TRUE(given.bucket_bytes_given);
  // The command line wins, for every kind of flag.
  ASSERT_EQ(run({"--config",    path,     "--steps", "70",         "--seed",
                 "8",           "--lr",   "0.5",     "--schedule", "linear",
                 "--data",      "x",      "y",       "--set",      "weight_decay=0.4",
                 "--tie=false", "--mesh", "dp=1",    "--allow",    "data,batch"}),
            "");
  EXPECT_EQ(given.steps, 70);
  EXPECT_EQ(given.seed, 8U);
  EXPECT_EQ(given.schedule.base, 0.5);
  EXPECT_EQ(given.schedule.kind, Schedule::Kind::linear);
  EXPECT_EQ(text(given.data), "x,y");
  EXPECT_EQ(text(given.rules.settings), "weight_decay=0.4");
  EXPECT_FALSE(given.sizes.tied_head);
  EXPECT_EQ(text(given.checkpoints.allow), "data,batch");
  EXPECT_EQ(given.sizes.layers, 7);
  EXPECT_EQ(ranks, (std::set<int>{0}));
  std::filesystem::remove(path);
}

TEST(FinetuneFlags, SizesOfARandomModelFollowFromOthers) {
  ASSERT_EQ(run_with({"--hidden", "200", "--heads", "10"}), "");
  EXPECT_EQ(given.sizes.kv_heads, 10);
  EXPECT_EQ(given.sizes.head_dim, 20);
  EXPECT_EQ(given.sizes.intermediate, 544);  // 533 rounded up to 16
  ASSERT_EQ(run_with({"--hidden", "6", "--heads", "1"}), "");
  EXPECT_EQ(given.sizes.intermediate, 16);  // 8/3 of 6 is 16 already
  const std::int64_t usual = finetune::DecoderConfig().positions;
  for (const std::int64_t seq : {usual - 1, usual, usual + 1}) {
    ASSERT_EQ(run_with({"--seq", std::to_string(seq)}), "");
    EXPECT_EQ(given.sizes.positions, std::max(usual, seq));
  }
  ASSERT_EQ(run_with({"--mesh", "dp=3,tp=2", "--micro-batch", "5"}), "");
  EXPECT_EQ(given.global_batch, 15);
  EXPECT_EQ(given_mesh, "dp=3,tp=2");
  EXPECT_EQ(ranks.size(), 6U);
}

TEST(FinetuneFlags, SeveralValuesStayInOrder) {
  ASSERT_EQ(run_with({"--eval-data", "b", "a", "--set", "weight_decay=0.1", "--set", "adamw.beta1=0.5", "--assign",
                      "*norm*=adamw", "--assign", "*=reg", "--lr-at", "9=0.2", "--lr-at", "3=0.1", "--lr-at", "9=0.3"}),
            "");
  EXPECT_EQ(text(given.eval_data), "b,a");
  EXPECT_EQ(text(given.rules.settings), "weight_decay=0.1,adamw.beta1=0.5");
  EXPECT_EQ(text(given.rules.assignments), "*norm*=adamw,*=reg");
  ASSERT_EQ(given.schedule.changes.size(), 3U);
  EXPECT_EQ(given.schedule.lr(1), 0.001);
  EXPECT_EQ(given.schedule.lr(2), 0.1);  // step 3 of the log
  EXPECT_EQ(given.schedule.lr(7), 0.1);
  EXPECT_EQ(given.schedule.lr(8), 0.3);  // the later of two for the same step
}

TEST(FinetuneFlags, AnyOfThreeAsksForCheckpoints) {
  ASSERT_EQ(run_with({"--keep-last", "3"}), "");
  EXPECT_FALSE(given.checkpoints.wanted());
  EXPECT_EQ(given.checkpoint_dir(), "o/checkpoints");
  for (const Words& flag : {Words{"--checkpoint-every", "5"}, {"--checkpoint-dir", "there"}, {"--resume", "auto"}}) {
    ASSERT_EQ(run_with(flag), "");
    EXPECT_TRUE(given.checkpoints.wanted()) << flag[0];
    EXPECT_EQ(given.checkpoint_dir(), flag[1] == "there" ? "there" : "o/checkpoints");
  }
}

TEST(FinetuneFlags, ValuesOutOfRangeAreRefused) {
  const std::map<std::string, Words> wrong{
      {"--hidden", {"x", "0"}},
      {"--layers", {"0", "-1"}},
      {"--heads", {"0", "-4", "3"}},
      {"--kv-heads", {"0", "3", "8"}},
      {"--intermediate", {"0", "-16"}},
      {"--vocab", {"0"}},
      {"--init-std", {"0", "-1", "nan", "inf"}},
      {"--dtype", {"fp16", "bf32"}},
      {"--eval-every", {"-1"}},
      {"--eval-sequences", {"-1"}},
      {"--seq", {"0", "-1"}},
      {"--seed", {"x", "1.5"}},
      {"--steps", {"0", "-1"}},
      {"--micro-batch", {"0", "-1"}},
      {"--global-batch", {"0", "-4", "6"}},
      {"--accumulation", {"trees"}},
      {"--schedule", {"cos"}},
      {"--warmup", {"-1", "101"}},
      {"--lr", {"-1", "nan", "inf", "-inf"}},
      {"--final-lr-ratio", {"-0.1", "1.1", "nan"}},
      {"--loss-scale", {"0", "-2", "inf"}},
      {"--non-finite", {"go"}},
      {"--lr-at", {"0=1", "101=1", "5", "5=", "=5", "5=-1", "5=inf", "5=nan", "5=1x", "x=1", "5x=1"}},
      {"--mesh", {"dp=0", "pp=2", "dp", "dp=2,dp=2"}},
      {"--mode", {"sharded", "zero3"}},
      {"--place", {"*=tp:0"}},
      {"--cut", {"rows"}},
      {"--bucket-bytes", {"0", "-1"}},
      {"--momentum-dtype", {"fp16"}},
      {"--threads", {"0", "-1"}},
      {"--clip", {"-1", "inf"}},
      {"--proof-every", {"-1"}},
      {"--reduction", {"ring"}},
      {"--device-messages", {"no"}},
      {"--deadline", {"0", "-1", "1000001", "nan", "inf"}},
      {"--metrics-top", {"-1", "1001"}},
      {"--checkpoint-every", {"0", "-1"}},
      {"--keep-last", {"-1"}},
      {"--keep-every", {"0", "-1", "5"}},
      {"--allow", {"everything", "data,x"}},
      {"--transport", {"pigeon"}},
      {"--config", {"/absent.toml"}}};
  for (const auto& [flag, values] : wrong)
    for (const std::string& value : values) {
      const std::string said = run_with({flag + "=" + value});
      EXPECT_TRUE(!said.empty() || exit_code == 2) << flag << " " << value << " was taken";
    }
}

TEST(FinetuneFlags, WhatDoesNotGoTogetherIsSaid) {
  EXPECT_NE(run({"--out", "o"}).find("--data is required"), std::string::npos);
  EXPECT_NE(run({"--data", "d"}).find("--out is required"), std::string::npos);
  for (const char* flag : {"--hidden", "--layers", "--heads", "--kv-heads", "--intermediate", "--vocab", "--init-std"})
    expect_refused({"--init", "base", flag, "8"}, std::string(flag) + " describes a random model, but --init is base");
  expect_refused({"--init", "base", "--tie"}, "--tie describes a random model");
  EXPECT_EQ(run_with({"--init", "base"}), "");
  EXPECT_EQ(given.init, "base");
  expect_refused({"--hidden", "130", "--heads", "4"}, "--hidden 130 is no multiple of --heads 4");
  expect_refused({"--eval-every", "2"}, "--eval-every needs --eval-data");
  expect_refused({"--keep-every", "2"}, "it needs --keep-last");
  expect_refused({"--mode", "sharded"}, "takes zero1 or zero2");
  expect_refused({"--place", "*=tp:0"}, "--place *=tp:0 is not for finetune");
  expect_refused(
      {"--mesh", "dp=2", "--global-batch", "9", "--micro-batch", "3"},
      "--global-batch 9 is no multiple of 6, the sequences of one micro-batch (3) on each of the 2 dp ranks");
  expect_refused({"--mesh", "dp=2", "--global-batch", "24", "--accumulation", "tree"},
                 "3 micro-batches on each of 2 ranks does not make one balanced tree");
  EXPECT_EQ(run_with({"--mesh", "dp=2", "--global-batch", "24", "--accumulation", "sum"}), "");
  EXPECT_EQ(run_with({"--mesh", "dp=1", "--global-batch", "24", "--accumulation", "tree"}), "");
  EXPECT_EQ(run_with({"--mesh", "dp=3", "--global-batch", "24", "--accumulation", "tree"}), "");
  EXPECT_EQ(run_with({"--warmup", "100"}), "");
  EXPECT_EQ(run_with({"--lr-at", "100=0.1", "--lr-at", "1=0"}), "");
}

}  // namespace
}  // namespace cli
}  // namespace regatta
