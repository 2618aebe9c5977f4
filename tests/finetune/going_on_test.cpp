// Which checkpoint a job goes on from, which steps it saves, and that it ends the same as one that was not stopped.

#include "cli/finetune/trainer.h"
#include "cli/finetune/weights.h"
#include "tests/finetune/resume_job.h"

namespace regatta::finetune {
namespace {

namespace fs = std::filesystem;

TEST_F(CarriedState, TheCheckpointIsChosenAsAsked) {
  const std::string own = folder_.at("checkpoints");
  const auto choose = [&](const std::string& wish, std::string& chosen, std::vector<std::string>& warned, int ranks = 2,
                          bool wanted = true) {
    Options o = options("dp=1");
    o.checkpoints.resume = wish;
    if (!wanted) o.checkpoints.dir = "";
    std::mutex mutex;
    chosen = "none";
    warned.clear();
    return refusal([&] {
      testing::run_ranks(ranks, [&](Transport& transport) {
        cli::RankContext context(transport);
        const auto found = choose_checkpoint(o, context, [&](const std::string& sentence) {
          const std::scoped_lock lock(mutex);
          if (transport.rank() == 0) warned.push_back(sentence);
        });
        const std::scoped_lock lock(mutex);
        if (found) chosen = found->path();
      });
    });
  };
  std::string chosen;
  std::vector<std::string> warned;
  for (const char* wish : {"", "auto"}) {
    EXPECT_EQ(choose(wish, chosen, warned), "");
    EXPECT_EQ(chosen, "none");
  }
  expect_says(choose(folder_.at("absent"), chosen, warned), "--resume " + folder_.at("absent"));
  // Four steps, kept and pruned as the flags say.
  Options o = options("dp=2");
  o.checkpoints.keep_last = 2;
  o.checkpoints.keep_every = 2;
  on_ranks(o, "", [&](Rank r) {
    Saver saver(r.job, r.mesh, r.engine, r.transport);
    std::vector<std::int64_t> told;
    for (int step = 1; step <= 5; ++step) EXPECT_EQ(saver.save(step), "");
    saver.save_last(5);
    saver.tell([&](const checkpoint::SaveOutcome& outcome) { told.push_back(outcome.step); },
               [](const std::string& problem) { ADD_FAILURE() << problem; });
    EXPECT_EQ(told, (std::vector<std::int64_t>{1, 2, 3, 4, 5}));
  });
  EXPECT_EQ(testing::names_in(own),
            (std::vector<std::string>{"latest", "step-00000002", "step-00000004", "step-00000005"}));
  const auto at = [&](int step) { return own + "/" + checkpoint::folder_name(step); };
  EXPECT_EQ(choose("auto", chosen, warned), "");
  EXPECT_EQ(chosen, at(5));
  EXPECT_EQ(choose(own, chosen, warned), "");
  EXPECT_EQ(chosen, at(5));
  EXPECT_EQ(choose(at(5), chosen, warned), "");
  EXPECT_EQ(chosen, at(5));
  std::string said = choose("", chosen, warned);
  expect_says(said, own + " holds checkpoints of an earlier job, up to step-00000005");
  EXPECT_EQ(choose("", chosen, warned, 2, false), "");  // nothing to do with checkpoints
  expect_says(choose(at(2), chosen, warned), "newer checkpoints, up to step-00000005");
  fs::create_directory(folder_.at("elsewhere"));
  fs::copy(at(2), folder_.at("elsewhere/step-00000002"));
  EXPECT_EQ(choose(folder_.at("elsewhere/step-00000002"), chosen, warned), "");
  EXPECT_EQ(chosen, folder_.at("elsewhere/step-00000002"));
  // Whichever file is damaged, one of the ranks that share the work sees it, and all go to the one before.
  for (const int ranks : {1, 2, 3}) {
    for (const auto& entry : fs::directory_iterator(at(5))) {
      const std::string whole = testing::bytes_in(entry.path());
      std::string damaged = whole;
      damaged.back() ^= 1;
      testing::put(entry.path(), damaged);
      EXPECT_EQ(choose("auto", chosen, warned, ranks), "");
      EXPECT_EQ(chosen, at(4)) << entry.path();
      ASSERT_EQ(warned.size(), 1U);
      expect_says(warned[0], "skipped " + at(5));
      expect_says(warned[0], entry.path().filename().string());
      expect_says(choose(at(5), chosen, warned, ranks), entry.path().filename().string());
      testing::put(entry.path(), whole);
    }
  }
  for (const int step : {2, 4, 5}) testing::put(at(step) + "/manifest.json", "{}");
  said = choose("auto", chosen, warned);
  expect_says(said, "no checkpoint to go on from is sound");
  EXPECT_EQ(warned.size(), 3U);
  fs::copy(folder_.at("elsewhere/step-00000002/manifest.json"), own + "/manifest.json");
  for (const char* wish : {"", "auto"}) expect_says(choose(wish, chosen, warned), "is a checkpoint itself");
}

TEST_F(CarriedState, SaversSkipWhatIsSavedAndTellWhatIsNot) {
  const std::string step3 = folder_.at("checkpoints/step-00000003");
  on_ranks(options("dp=2"), "", [&](Rank r) { Saver(r.job, r.mesh, r.engine, r.transport).save_last(3); });
  const std::string manifest = step3 + "/manifest.json";
  const auto told = testing::bytes_in(manifest);
  testing::put(manifest, "not looked at");
  on_ranks(options("dp=2"), "", [&](Rank r) {
    Saver saver(r.job, r.mesh, r.engine, r.transport);
    saver.went_on_from(step3, 3);
    saver.save_last(3);
  });
  EXPECT_EQ(testing::bytes_in(manifest), "not looked at");  // not written again
  on_ranks(options("dp=2"), "", [&](Rank r) {
    Saver saver(r.job, r.mesh, r.engine, r.transport);
    saver.went_on_from(folder_.at("elsewhere/step-00000003"), 3);
    saver.save_last(3);
  });
  EXPECT_EQ(testing::bytes_in(manifest), told);  // another folder's is no reason not to
  fs::remove_all(folder_.at("checkpoints"));
  on_ranks(options("dp=2"), "", [&](Rank r) {
    Saver saver(r.job, r.mesh, r.engine, r.transport);
    r.transport.gather_strings("", "made");
    if (r.transport.rank() == 0) {
      fs::remove_all(folder_.at("checkpoints"));
      testing::put(folder_.at("checkpoints"), "a file");
    }
    r.transport.gather_strings("", "in the way");
    expect_says(saver.save(4), folder_.at("checkpoints"));
    try {
      saver.save_last(4);
      ADD_FAILURE() << "saved into a file";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::checkpoint);
      expect_says(error.what(), folder_.at("checkpoints"));
    }
  });
}

TEST_F(CarriedState, ACheckpointIsAModelFolder) {
  const std::string base = folder_.at("base"), step1 = folder_.at("checkpoints/step-00000001");
  fs::create_directories(base);
  on_ranks(options("dp=1"), "", [&](Rank r) { save_weights(*r.job.model, base); });
  testing::put(base + "/tokenizer.json", "a tokenizer");
  testing::put(base + "/notes.txt", "not of the model");
  Options o = options("dp=2");
  o.init = base;
  on_ranks(o, "", [&](Rank r) { Saver(r.job, r.mesh, r.engine, r.transport).save_last(1); });
  EXPECT_EQ(testing::bytes_in(step1 + "/config.json"), testing::bytes_in(base + "/config.json"));
  EXPECT_EQ(testing::bytes_in(step1 + "/tokenizer.json"), "a tokenizer");
  EXPECT_FALSE(fs::exists(step1 + "/notes.txt"));
  o.init = step1;
  on_ranks(o, "", [&](Rank r) {
    if (r.transport.rank() == 0) save_weights(*r.job.model, folder_.path());
  });
  EXPECT_TRUE(testing::bytes_in(folder_.at("model.safetensors")) == testing::bytes_in(base + "/model.safetensors"));
}

TEST_F(CarriedState, AJobThatIsStoppedInBetweenEndsTheSame) {
  const auto train = [&](const std::string& mesh_text, const std::string& dir, std::int64_t steps,
                         const std::string& from, std::vector<std::int64_t>& saved) {
    Options o = options(mesh_text);
    o.dtype_name = "fp32";
    o.accumulation = "tree";
    o.global_batch = 4;
    o.schedule_name = "constant";
    o.steps = steps;
    o.checkpoints.dir = folder_.at(dir);
    o.checkpoints.every = 2;
    o.out = folder_.at("out-" + dir);
    fs::create_directories(o.out);
    const sharding::Mesh mesh = mesh_of(o);
    complete(o, mesh);
    testing::run_ranks(mesh.world_size(), [&](Transport& transport) {
      std::unique_ptr<checkpoint::Checkpoint> resumed;
      if (!from.empty()) resumed = std::make_unique<checkpoint::Checkpoint>(from);
      Job job(o, mesh, transport.rank(), resumed.get());
      Trainer trainer(job, mesh, transport);
      if (resumed) trainer.go_on_from(*resumed);
      Observer observer;
      if (transport.rank() == 0) {
        observer.saved = [&](const checkpoint::SaveOutcome& outcome) { saved.push_back(outcome.step); };
        observer.warned = [](const std::string& sentence) { ADD_FAILURE() << sentence; };
      }
      trainer.run(observer);
    });
    return testing::bytes_in(o.out + "/model.safetensors");
  };
  std::vector<std::int64_t> saved;
  const std::string straight = train("dp=2", "straight", 5, "", saved);
  EXPECT_EQ(saved, (std::vector<std::int64_t>{2, 4, 5}));
  EXPECT_EQ(testing::names_in(folder_.at("straight")),
            (std::vector<std::string>{"latest", "step-00000002", "step-00000004", "step-00000005"}));
  saved.clear();
  EXPECT_TRUE(train("dp=1", "again", 5, folder_.at("straight/step-00000002"), saved) == straight);
  EXPECT_EQ(saved, (std::vector<std::int64_t>{4, 5}));
  saved.clear();
  EXPECT_TRUE(train("dp=2", "straight", 5, folder_.at("straight/step-00000005"), saved) == straight);
  EXPECT_TRUE(saved.empty());  // it is there
  expect_says(refusal([&] { train("dp=2", "beyond", 4, folder_.at("straight/step-00000005"), saved); }),
              "is of step 5, beyond the 4 steps");
}

}  // namespace
}  // namespace regatta::finetune
