// Going on: from which checkpoint, and what two jobs must share, each fact by itself.

#include "cli/finetune/resume.h"

#include <map>
#include <nlohmann/json.hpp>

#include "cli/finetune/run_rank.h"
#include "runtime/error.h"
#include "tests/finetune/small_training.h"

namespace regatta::finetune {
namespace {

namespace fs = std::filesystem;

class Resume : public testing::SmallTraining {
 protected:
  Options saving(const std::string& out) const {
    Options o = options(out);
    o.schedule.base = 0.01;
    o.global_batch = 4;
    o.accumulation = "tree";
    o.engine_flags.clip = 1;
    o.checkpoints.every = 2;
    return o;
  }
  /// The folder of a checkpoint after three steps of `o`.
  std::string saved(Options o) const {
    o.steps = 3;
    train(o, "dp=2");
    return o.checkpoint_dir() + "/step-00000003";
  }
};

struct Change {
  std::string kind;  ///< the word that --allow takes
  std::string told;  ///< a part of the sentence
  std::function<void(Options&)> make;
};

TEST_F(Resume, EveryFactThatDiffersIsRefusedByNameAndGoesOnWhenAllowed) {
  Options o = saving("job");
  o.schedule_name = "linear";
  o.schedule.final_ratio = 0.5;
  o.schedule.warmup = 1;
  o.schedule.steps = 3;
  o.lr_at = {"2=0.02"};
  o.rules.settings = {"adamw.beta2=0.99"};
  const std::string folder = saved(o);
  Options same = o;
  same.steps = 3;
  same.out = (folder_ / "same").string();
  EXPECT_EQ(refusal([&] { train(same, "dp=1", folder); }), "");

  const std::string shuffled = put("a2.txt", 70, 8);
  const std::vector<Change> changes{
      {"data", "fingerprint was ", [&](Options& c) { c.data[0] = shuffled; }},
      {"data", "fingerprint was ", [&](Options& c) { std::swap(c.data[0], c.data[1]); }},
      {"data", "tokens was 111 and is 71", [&](Options& c) { c.data.erase(c.data.begin() + 1); }},
      {"data", "seq was 11 and is 10", [](Options& c) { c.seq = 10; }},
      {"data", "seed was 1311768467463790320 and is 1", [](Options& c) { c.seed = 1; }},
      {"batch", "global_batch was 4 and is 8", [](Options& c) { c.global_batch = 8; }},
      {"schedule", "kind was \"linear\" and is \"cosine\"", [](Options& c) { c.schedule_name = "cosine"; }},
      {"schedule", "lr was 0.01 and is 0.02", [](Options& c) { c.schedule.base = 0.02; }},
      {"schedule", "warmup was 1 and is 2", [](Options& c) { c.schedule.warmup = 2; }},
      {"schedule", "steps was 3 and is 4", [](Options& c) { c.steps = 4; }},
      {"schedule", "final_ratio was 0.5 and is 0.25", [](Options& c) { c.schedule.final_ratio = 0.25; }},
      {"schedule", "lr_at.2 was 0.02 and is 0.03", [](Options& c) { c.lr_at = {"2=0.03"}; }},
      {"schedule", "lr_at.3 was not set and is 0.02",
       [](Options& c) {
         c.lr_at = {"2=0.02", "3=0.02"};
       }},
      {"schedule", "lr_at.2 was 0.02 and is not set", [](Options& c) { c.lr_at = {}; }},
      {"rules", "reg was ", [](Options& c) { c.rules.settings.push_back("reg.rho=0.3"); }},
      {"rules", "adamw was ", [](Options& c) { c.rules.settings = {}; }},
      {"rules", "adamw was ", [](Options& c) { c.rules.settings.push_back("weight_decay=0.3"); }},
      {"rules", "clip was 1.0 and is 2.0", [](Options& c) { c.engine_flags.clip = 2; }},
      {"arithmetic", "dtype was \"fp32\" and is \"bf16\"", [](Options& c) { c.dtype_name = "bf16"; }},
      {"arithmetic", "accumulation was \"tree\" and is \"sum\"", [](Options& c) { c.accumulation = "sum"; }},
      {"state", "has another shape or dtype", [](Options& c) { c.engine_flags.momentum_dtype = "bf16"; }},
      {"state", "lm_head.weight moment1 has no place in this job", [](Options& c) { c.sizes.tied_head = true; }},
      {"tensors", "missing (model.layers.2.", [](Options& c) { c.sizes.layers = 3; }},
      {"tensors", "of another shape or type (", [](Options& c) { c.sizes.intermediate = 24; }},
      // Not seen in any shape.
      {"tensors", "heads was 4 and is 2",
       [](Options& c) { c.sizes.heads = 2, c.sizes.kv_heads = 1, c.sizes.head_dim = 8; }},
      {"tensors", "rope_theta was ", [](Options& c) { c.sizes.rope_theta = 500; }},
      {"tensors", "norm_eps was ", [](Options& c) { c.sizes.norm_eps = 1e-6; }},
      {"tensors", "rope_scaling.factor was not set and is 2.0",
       [](Options& c) {
         c.sizes.rope_scaling = RopeScaling{RopeScaling::Kind::linear, 2};
       }},
  };
  int number = 0;
  for (const Change& change : changes) {
    SCOPED_TRACE(change.kind + ": " + change.told);
    Options other = same;
    change.make(other);
    other.out = (folder_ / ("other" + std::to_string(++number))).string();
    const std::string said = refusal([&] { train(other, "dp=1", folder); });
    expect_says(said, change.told);
    expect_says(said, "--allow " + change.kind);
    EXPECT_FALSE(fs::exists(other.out + "/model.safetensors"));
    // Other words do not help; the right one does.
    other.checkpoints.allow = {"data", "batch", "schedule", "rules", "arithmetic", "state", "tensors"};
    EXPECT_EQ(refusal([&] { train(other, "dp=1", folder); }), "");
    std::erase(other.checkpoints.allow, change.kind);
    if (change.kind != "tensors" || change.told.find(" was ") != std::string::npos)
      expect_says(refusal([&] { train(other, "dp=1", folder); }), "--allow " + change.kind);
  }
}

/// Short data is read whole: no byte may differ.
TEST_F(Resume, OneOtherTokenAnywhereIsOtherData) {
  Options o = saving("job");
  const std::string folder = saved(o);
  o.steps = 3;
  std::ifstream file(o.data[0], std::ios::binary);
  const std::string content{std::istreambuf_iterator<char>(file), {}};
  for (const std::size_t at : {std::size_t{0}, std::size_t{1}, std::size_t{34}, content.size() - 1}) {
    std::string changed = content;
    changed[at] = static_cast<char>(changed[at] ^ 1);
    std::ofstream(o.data[0], std::ios::binary) << changed;
    o.out = (folder_ / ("at" + std::to_string(at))).string();
    expect_says(refusal([&] { train(o, "dp=1", folder); }), "fingerprint was ");
  }
}

/// Of long data 4,096 tokens are read, from its beginning to its end.
TEST_F(Resume, LongDataIsSampledToItsEnd) {
  Options o = saving("long");
  std::string content;
  for (int i = 0; i < 3 * 4096; ++i) content += static_cast<char>('a' + i * i % 23);
  o.data = {(folder_ / "long.txt").string()};
  std::ofstream(o.data[0], std::ios::binary) << content;
  const std::string folder = saved(o);
  o.steps = 3;
  for (const std::size_t at : {std::size_t{3} * 4095, std::size_t{3} * 2048, std::size_t{3}}) {
    std::string changed = content;
    changed[at] = static_cast<char>(changed[at] ^ 1);
    std::ofstream(o.data[0], std::ios::binary) << changed;
    o.out = (folder_ / ("long_at" + std::to_string(at))).string();
    expect_says(refusal([&] { train(o, "dp=1", folder); }), "fingerprint was ");
  }
}

TEST_F(Resume, TheStepsAfterAreThoseOfAJobThatWasNeverStopped) {
  for (const char* rule : {"reg", "adamw"}) {
    Options o = saving(std::string("straight") + rule);
    o.rules.rule = rule;
    o.eval_data = eval_files_;
    o.eval_every = 2;
    o.steps = 6;
    const Run straight = train(o, "dp=2");
    const std::string folder = o.checkpoint_dir() + "/step-00000002";
    for (const char* mesh : {"dp=1", "dp=2", "dp=4"}) {
      SCOPED_TRACE(std::string(rule) + " on " + mesh);
      o.out = (folder_ / (std::string(rule) + mesh)).string();
      const Run on = train(o, mesh, folder);
      ASSERT_EQ(on.steps.size(), 4U);
      for (std::size_t i = 0; i < 4; ++i) {
        EXPECT_EQ(on.steps[i].step, straight.steps[i + 2].step);
        EXPECT_EQ(on.steps[i].loss, straight.steps[i + 2].loss);
        EXPECT_EQ(on.steps[i].report.grad_norm, straight.steps[i + 2].report.grad_norm);
      }
      EXPECT_EQ(on.weights, straight.weights);
      EXPECT_EQ(on.summaries[0].first_step, 2);
      EXPECT_EQ(on.summaries[0].own_steps(), 4);
      EXPECT_FALSE(on.summaries[0].eval_before);
      std::vector<std::int64_t> evals;
      for (const EvalRecord& eval : on.evals) evals.push_back(eval.step);
      EXPECT_EQ(evals, (std::vector<std::int64_t>{4, 6}));
      EXPECT_EQ(on.evals.back().loss, straight.evals.back().loss);
      ASSERT_EQ(on.told.size(), 1U);
      EXPECT_EQ(on.told[0], "goes on after step 2 and 88 tokens from " + folder + ": rule " + rule +
                                ", mesh dp=2 then and " + mesh + " now");
    }
  }
}

TEST_F(Resume, AJobThatIsDoneMakesNoStepAndOneThatIsBeyondItsEndIsRefused) {
  Options o = saving("job");
  const std::string folder = saved(o);
  o.steps = 3;
  const Run done = train(o, "dp=1", folder);
  EXPECT_TRUE(done.steps.empty());
  EXPECT_FALSE(done.weights.empty());
  o.steps = 2;
  expect_says(refusal([&] { train(o, "dp=1", folder); }), "is of step 3, beyond the 2 steps of this job");
}

TEST_F(Resume, CheckpointsAreMadeWhenAskedForAndAtTheEnd) {
  const auto steps_of = [&](std::int64_t steps, const std::function<void(CheckpointFlags&)>& set) {
    Options o = saving("every");
    fs::remove_all(o.out);
    o.steps = steps;
    o.checkpoints = {};
    set(o.checkpoints);
    const Run run = train(o, "dp=2");
    EXPECT_TRUE(run.warned.empty());
    std::vector<std::int64_t> kept;
    for (const checkpoint::Listed& each : checkpoint::list_checkpoints(o.checkpoint_dir())) {
      checkpoint::Checkpoint found(each.path);
      kept.push_back(found.manifest().step);
      const auto job = nlohmann::json::parse(found.manifest().job);
      EXPECT_EQ(job.at("step"), found.manifest().step);
      EXPECT_EQ(job.at("tokens"), found.manifest().step * 44);
      EXPECT_EQ(job.at("mesh"), "dp=2");
      EXPECT_EQ(job.at("rule"), "reg");
      EXPECT_EQ(job.at("mode"), "zero1");
      EXPECT_EQ(job.at("transport"), "local");
      EXPECT_EQ(job.at("init"), "random");
      EXPECT_EQ(job.at("data"), nlohmann::json(o.data));
    }
    EXPECT_LE(run.saves.size(), static_cast<std::size_t>(steps));
    for (std::size_t i = 1; i < run.saves.size(); ++i) EXPECT_LT(run.saves[i - 1].step, run.saves[i].step);
    if (!kept.empty()) {
      EXPECT_EQ(run.saves.back().step, steps);
      EXPECT_GT(run.saves.back().bytes, 0);
    }
    return kept;
  };
  using Steps = std::vector<std::int64_t>;
  EXPECT_EQ(steps_of(5, [](CheckpointFlags& c) { c.every = 2; }), (Steps{2, 4, 5}));
  EXPECT_EQ(steps_of(4, [](CheckpointFlags& c) { c.every = 2; }), (Steps{2, 4}));
  EXPECT_EQ(steps_of(3, [&](CheckpointFlags& c) { c.dir = (folder_ / "every" / "there").string(); }), (Steps{3}));
  EXPECT_EQ(steps_of(9, [](CheckpointFlags& c) { c.every = 1, c.keep_last = 2, c.keep_every = 3; }),
            (Steps{3, 6, 8, 9}));
  EXPECT_EQ(steps_of(5, [](CheckpointFlags& c) { c.every = 1, c.keep_last = 1; }), (Steps{5}));
  EXPECT_EQ(steps_of(2, [](CheckpointFlags&) {}), (Steps{}));
}

class Choose : public Resume {
 protected:
  struct Chosen {
    std::string refused, path;
    std::vector<std::string> warned;
  };
  Chosen choose(Options o, int ranks = 2) {
    o.engine_flags.mesh = "dp=" + std::to_string(ranks);
    complete(o, mesh_of(o));
    Chosen chosen;
    chosen.refused = refusal([&] {
      regatta::testing::run_ranks(ranks, [&](Transport& transport) {
        cli::RankContext context(transport);
        const auto found = choose_checkpoint(o, context, [&](const std::string& sentence) {
          if (transport.rank() == 0) chosen.warned.push_back(sentence);
        });
        if (transport.rank() == ranks - 1 && found) chosen.path = fs::path(found->path()).filename().string();
      });
    });
    return chosen;
  }
  /// Flips a bit near the end of a file of tensors.
  static void damage(const fs::path& folder, bool of_state) {
    for (const auto& entry : fs::directory_iterator(folder)) {
      const std::string name = entry.path().filename().string();
      if (name.ends_with(".safetensors") && name.starts_with("state-") == of_state) {
        std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
        file.seekg(-3, std::ios::end);
        const auto byte = static_cast<char>(file.get() ^ 8);
        file.seekp(-3, std::ios::end);
        file.put(byte);
        return;
      }
    }
    FAIL() << folder << " has no such file";
  }
};

TEST_F(Choose, TheNewestSoundOneIsTaken) {
  Options o = saving("job");
  o.checkpoints.every = 1;
  o.steps = 3;
  train(o, "dp=2");
  const fs::path there = o.checkpoint_dir();
  expect_says(choose(o).refused, "holds checkpoints of an earlier job, up to step-00000003; give --resume auto");
  o.checkpoints.resume = "auto";
  EXPECT_EQ(choose(o).path, "step-00000003");
  EXPECT_TRUE(choose(o).warned.empty());
  damage(there / "step-00000003", false);
  for (const int ranks : {1, 2, 4}) {
    const Chosen chosen = choose(o, ranks);
    EXPECT_EQ(chosen.path, "step-00000002") << ranks << " ranks: " << chosen.refused;
    ASSERT_EQ(chosen.warned.size(), 1U);
    expect_says(chosen.warned[0], "skipped " + (there / "step-00000003").string() + ": ");
  }
  o.checkpoints.resume = (there / "step-00000003").string();
  expect_says(choose(o).refused, "no checkpoint to go on from is sound; the last one tried: ");
  o.checkpoints.resume = there.string();
  EXPECT_EQ(choose(o).path, "step-00000002");
  o.checkpoints.resume = (there / "step-00000001").string();
  expect_says(choose(o).refused, "has newer checkpoints, up to step-00000003; move them away");
  Options elsewhere = o;
  elsewhere.checkpoints.dir = (folder_ / "elsewhere").string();
  EXPECT_EQ(choose(elsewhere).path, "step-00000001");
  o.checkpoints.resume = (folder_ / "nowhere").string();
  expect_says(choose(o).refused, "nowhere: there is no checkpoint");
  for (const char* wish : {"auto", ""}) {
    elsewhere.checkpoints.resume = wish;
    elsewhere.checkpoints.dir = (there / "step-00000001").string();
    expect_says(choose(elsewhere).refused, "is a checkpoint itself");
  }
  damage(there / "step-00000001", true);
  damage(there / "step-00000002", true);
  o.checkpoints.resume = "auto";
  const Chosen none = choose(o);
  expect_says(none.refused, "no checkpoint to go on from is sound");
  EXPECT_EQ(none.warned.size(), 3U);
}

TEST_F(Choose, ANewJobTakesNone) {
  Options o = saving("job");
  EXPECT_EQ(choose(o).refused, "");
  EXPECT_EQ(choose(o).path, "");
  o.checkpoints.resume = "auto";
  EXPECT_EQ(choose(o).refused, "");
  EXPECT_EQ(choose(o).path, "");
  // A job without checkpoints does not look.
  Options with = saving("job");
  train(with, "dp=1");
  with.checkpoints = {};
  EXPECT_EQ(choose(with).refused, "");
}

/// The program's own way: a job that ends, goes on and ends again has one log of all its steps.
TEST_F(Resume, TheLogGoesOnAndSoDoTheFolders) {
  Options o = saving("base");
  o.steps = 1;
  o.checkpoints = {};
  train(o, "dp=1");
  std::ofstream(fs::path(o.out) / "tokenizer.json") << "{\"tokens\": 3}";
  Options tuned = saving("tuned");
  tuned.init = o.out;
  tuned.eval_data = eval_files_;
  tuned.engine_flags.mesh = "dp=2";
  const auto run = [&](std::int64_t steps) {
    Options now = tuned;
    now.steps = steps;
    const sharding::Mesh mesh = mesh_of(now);
    complete(now, mesh);
    ::testing::internal::CaptureStderr();
    ::testing::internal::CaptureStdout();
    regatta::testing::run_ranks(2, [&](Transport& transport) {
      cli::RankContext context(transport);
      run_rank(now, mesh, context);
    });
    ::testing::internal::GetCapturedStdout();
    return ::testing::internal::GetCapturedStderr();
  };
  tuned.checkpoints.resume = "auto";
  expect_says(run(3), "has no checkpoint; the job starts from the beginning");
  fs::remove_all(fs::path(tuned.out) / "checkpoints" / "step-00000003");
  expect_says(run(5), "goes on after step 2 and 88 tokens");
  std::ifstream log(fs::path(tuned.out) / "log.jsonl");
  std::map<std::string, std::vector<std::int64_t>> steps;
  for (std::string line; std::getline(log, line);) {
    const auto record = nlohmann::json::parse(line);
    steps[record.contains("eval_loss")    ? "eval"
          : record.contains("checkpoint") ? "checkpoint"
                                          : "step"]
        .push_back(record.at("step"));
  }
  using Steps = std::vector<std::int64_t>;
  EXPECT_EQ(steps["step"], (Steps{1, 2, 3, 4, 5}));
  EXPECT_EQ(steps["eval"], (Steps{0, 5}));
  std::ifstream file(fs::path(tuned.out) / "summary.json");
  const auto summary = nlohmann::json::parse(file);
  EXPECT_EQ(summary.at("steps"), 5);
  EXPECT_EQ(summary.at("first_step"), 2);
  // The tokenizer is beside the weights, at the end and in every checkpoint; so is the configuration.
  const fs::path checkpoint = fs::path(tuned.out) / "checkpoints" / "step-00000004";
  for (const fs::path& folder : {fs::path(tuned.out), checkpoint}) {
    for (const char* name : {"tokenizer.json", "config.json"}) {
      std::ifstream one(folder / name), other(fs::path(o.out) / name);
      const std::string text{std::istreambuf_iterator<char>(one), {}};
      EXPECT_FALSE(text.empty()) << folder / name;
      EXPECT_EQ(text, std::string(std::istreambuf_iterator<char>(other), {})) << folder / name;
    }
  }
}

}  // namespace
}  // namespace regatta::finetune
