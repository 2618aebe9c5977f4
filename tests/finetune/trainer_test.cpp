#include "cli/finetune/trainer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <mutex>

#include "runtime/error.h"
#include "tests/support/refusal.h"
#include "tests/support/spmd.h"

namespace regatta::finetune {
namespace {

using regatta::testing::expect_says;
namespace fs = std::filesystem;

class Training : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() / ("trainer_test." + std::to_string(::getpid()) + "." + info->name());
    fs::create_directories(folder_);
    std::ofstream text(folder_ / "text.txt");
    for (int i = 0; i < 400; ++i) text << "line " << i % 17 << " of " << i * i % 101 << "; ";
  }
  void TearDown() override { fs::remove_all(folder_); }

  Options options(const std::string& out) const {
    Options o;
    o.sizes.vocab = 256;
    o.sizes.hidden = 16;
    o.sizes.intermediate = 24;
    o.sizes.layers = 2;
    o.sizes.heads = 2;
    o.sizes.kv_heads = 1;
    o.sizes.head_dim = 8;
    o.data = o.eval_data = {(folder_ / "text.txt").string()};
    o.eval_sequences = 5;
    o.steps = 3;
    o.seq = 12;
    o.micro_batch = 2;
    o.global_batch = 16;
    o.seed = 4;
    o.schedule.base = 0.01;
    o.accumulation = "tree";
    o.engine_flags.clip = 1;
    o.engine_flags.bucket_bytes = 4000;
    o.bucket_bytes_given = true;
    o.out = (folder_ / out).string();
    return o;
  }

  struct Outcome {
    Summary summary;
    std::vector<double> losses;
    std::string weights;
  };
  /// Trains on the ranks of `mesh_text` as threads; rank 0's view.
  static Outcome train(Options o, const std::string& mesh_text) {
    o.engine_flags.mesh = mesh_text;
    const int ranks = sharding::Mesh::parse(mesh_text).world_size();
    fs::create_directories(o.out);
    const sharding::Mesh mesh = mesh_of(o);
    complete(o, mesh);
    Outcome outcome;
    testing::run_ranks(ranks, [&](Transport& transport) {
      Job job(o, mesh, transport.rank());
      Observer observer;
      if (transport.rank() == 0) {
        observer.stepped = [&](const StepRecord& record) { outcome.losses.push_back(record.loss); };
      }
      Trainer trainer(job, mesh, transport);
      Summary summary = trainer.run(observer);
      if (transport.rank() == 0) outcome.summary = std::move(summary);
    });
    std::ifstream stream(o.out + "/model.safetensors", std::ios::binary);
    outcome.weights.assign(std::istreambuf_iterator<char>(stream), {});
    return outcome;
  }
  static Outcome train(Options o, int ranks) { return train(std::move(o), "dp=" + std::to_string(ranks)); }
  static std::string refusal(Options o, int ranks = 1) {
    try {
      train(std::move(o), ranks);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_argument) << error.what();
      return error.what();
    }
    return "(was trained)";
  }
  fs::path folder_;
};

TEST_F(Training, TheSameBitsOnOneTwoAndFourRanks) {
  for (const char* mode : {"zero1", "zero2"}) {
    Options o = options(std::string(mode) + "-1");
    o.engine_flags.mode = mode;
    const Outcome one = train(o, 1);
    ASSERT_FALSE(one.weights.empty());
    ASSERT_EQ(one.losses.size(), 3U);
    for (const int ranks : {2, 4}) {
      o.out = (folder_ / (std::string(mode) + std::to_string(ranks))).string();
      const Outcome more = train(o, ranks);
      EXPECT_TRUE(one.weights == more.weights) << mode << " on " << ranks << " ranks";
      EXPECT_EQ(one.losses, more.losses);
      EXPECT_EQ(one.summary.eval_before, more.summary.eval_before);
      EXPECT_EQ(one.summary.eval_after, more.summary.eval_after);
      EXPECT_TRUE(more.summary.bytes_as_planned);
    }
  }
}

TEST_F(Training, Bf16KeepsItsBitsToo) {
  Options o = options("bf16-1");
  o.dtype_name = "bf16";
  const Outcome one = train(o, 1);
  o.out = (folder_ / "bf16-2").string();
  const Outcome two = train(o, 2);
  EXPECT_TRUE(one.weights == two.weights);
  EXPECT_EQ(one.losses, two.losses);
}

TEST_F(Training, LearnsAndReportsWhatItDid) {
  Options o = options("learned");
  o.steps = 30;
  o.eval_every = 10;
  const Outcome outcome = train(o, 2);
  EXPECT_NEAR(*outcome.summary.eval_before, std::log(256.0), 0.2);
  EXPECT_LT(*outcome.summary.eval_after, *outcome.summary.eval_before - 0.5);
  EXPECT_LT(outcome.summary.train_loss_last, outcome.summary.train_loss_first - 0.5);
  EXPECT_EQ(outcome.summary.evals.size(), 4U);
  EXPECT_EQ(outcome.summary.steps, 30);
  EXPECT_EQ(outcome.summary.skipped_steps, 0);
  EXPECT_EQ(outcome.summary.tokens_per_step, 16 * 12);
  EXPECT_EQ(outcome.summary.state_bytes.size(), 2U);
  EXPECT_GT(outcome.summary.totals.counted.reduce_scatter, 0);
  EXPECT_EQ(outcome.losses.size(), 30U);
}

TEST_F(Training, ASavedModelIsABaseToStartFrom) {
  Options o = options("base");
  const Outcome base = train(o, 1);
  o.init = o.out;
  o.out = (folder_ / "tuned").string();
  const Outcome tuned = train(o, 1);
  EXPECT_DOUBLE_EQ(*tuned.summary.eval_before, *base.summary.eval_after);
}

TEST_F(Training, BadInputIsRefusedInOneSentence) {
  Options o = options("refused");
  o.seq = 100'000;
  o.sizes.positions = 200'000;
  expect_says(refusal(o), "a sequence of 100000 tokens and the one after them do not fit --data");
  o = options("refused");
  o.sizes.positions = 11;
  expect_says(refusal(o), "--seq 12 is longer than the model's longest sequence (max_position_embeddings) of 11");
  o = options("refused");
  o.rules.rule = "rag";
  expect_says(refusal(o), "'rag'");
  o = options("refused");
  o.rules.assignments = {"*.mpl.*=adamw"};
  expect_says(refusal(o), "matches no parameter");
  o = options("refused");
  o.init = (folder_ / "absent").string();
  expect_says(refusal(o), "config.json: cannot be opened");
  o = options("refused");
  o.global_batch = 12;
  expect_says(refusal(o, 4), "--global-batch 12 is no multiple of 8");
  expect_says(refusal(o, 2), "3 micro-batches on each of 2 ranks does not make one balanced tree");
  EXPECT_EQ(refusal(o, 1), "(was trained)");
  o = options("refused");
  o.engine_flags.mode = "sharded";
  expect_says(refusal(o), "--mode sharded");
  o = options("refused");
  o.schedule.warmup = 4;
  expect_says(refusal(o), "--warmup 4 is not between 0 and the 3 steps");
  o = options("refused");
  o.eval_data.clear();
  o.eval_every = 2;
  expect_says(refusal(o), "--eval-every needs --eval-data");
  o = options("refused");
  o.engine_flags.mesh = "dp=1,pp=2";
  EXPECT_THROW(mesh_of(o), Error);
}

TEST_F(Training, DivergenceEndsTheRun) {
  Options o = options("diverged");
  o.steps = 50;
  o.schedule.base = 1e30;
  o.engine_flags.clip = 0;
  try {
    train(o, 2);
    ADD_FAILURE() << "trained to the end";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::non_finite) << error.what();
  }
  EXPECT_FALSE(fs::exists(o.out + "/model.safetensors"));
}

}  // namespace
}  // namespace regatta::finetune
