#pragma once
// Small jobs of the trainer on ranks as threads, with the whole run as rank 0 told it.

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "cli/finetune/job.h"
#include "cli/finetune/trainer.h"
#include "tests/support/refusal.h"
#include "tests/support/spmd.h"

namespace regatta::finetune {
using regatta::testing::expect_says;
using regatta::testing::refusal;
}  // namespace regatta::finetune

namespace regatta::finetune::testing {

namespace fs = std::filesystem;

class SmallTraining : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ =
        fs::temp_directory_path() / (std::string("small_training.") + std::to_string(::getpid()) + "." + info->name());
    fs::create_directories(folder_);
    train_files_ = {put("a.txt", 70, 1), put("b.u16", 40, 2), put("c.txt", 1, 3)};
    eval_files_ = {put("d.u32", 30, 4), put("e.txt", 61, 5)};
  }
  void TearDown() override { fs::remove_all(folder_); }

  /// A file of `count` tokens below 256, of the width that its name says.
  std::string put(const std::string& name, int count, int seed) const {
    const std::string path = (folder_ / name).string();
    const int width = name.ends_with(".u16") ? 2 : name.ends_with(".u32") ? 4 : 1;
    std::ofstream file(path, std::ios::binary);
    for (int i = 0; i < count; ++i) {
      file << static_cast<char>((i * i * 37 + i * seed * 11 + seed * 101) % 251);
      for (int b = 1; b < width; ++b) file << '\0';
    }
    return path;
  }

  /// Of weights so large that every sequence has a loss of its own.
  Options options(const std::string& out) const {
    Options o;
    o.sizes.vocab = 256;
    o.sizes.hidden = 12;
    o.sizes.intermediate = 20;
    o.sizes.layers = 2;
    o.sizes.heads = 4;
    o.sizes.kv_heads = 2;
    o.sizes.head_dim = 4;
    o.sizes.init_std = 0.3;
    o.data = train_files_;
    o.steps = 5;
    o.seq = 11;  // 10 windows, a token left over
    o.micro_batch = 1;
    o.seed = 0x123456789abcdef0;
    o.schedule.base = 0;
    o.engine_flags.bucket_bytes = 4000;
    o.bucket_bytes_given = true;
    o.out = (folder_ / out).string();
    return o;
  }

  struct Run {
    std::vector<StepRecord> steps;
    std::vector<EvalRecord> evals;
    std::vector<checkpoint::SaveOutcome> saves;
    std::vector<std::string> told, warned;
    std::vector<Summary> summaries;  // by rank
    std::string weights;             // the file's bytes
  };
  /// `drain` by rank and the step to come; `from` a checkpoint's folder.
  static Run train(Options o, const std::string& mesh_text, const std::string& from = "",
                   const std::function<bool(int rank, int calls)>& drain = {}) {
    o.engine_flags.mesh = mesh_text;
    fs::create_directories(o.out);
    const sharding::Mesh mesh = mesh_of(o);
    complete(o, mesh);
    Run run;
    run.summaries.resize(static_cast<std::size_t>(mesh.world_size()));
    regatta::testing::run_ranks(mesh.world_size(), [&](Transport& transport) {
      std::unique_ptr<checkpoint::Checkpoint> saved;
      if (!from.empty()) saved = std::make_unique<checkpoint::Checkpoint>(from);
      Job job(o, mesh, transport.rank(), saved.get());
      Observer observer;
      if (transport.rank() == 0) {
        observer.stepped = [&](const StepRecord& record) { run.steps.push_back(record); };
        observer.evaluated = [&](const EvalRecord& record) { run.evals.push_back(record); };
        observer.saved = [&](const checkpoint::SaveOutcome& save) { run.saves.push_back(save); };
        observer.told = [&](const std::string& sentence) { run.told.push_back(sentence); };
        observer.warned = [&](const std::string& sentence) { run.warned.push_back(sentence); };
      }
      int calls = 0;
      std::function<bool()> wanted;
      if (drain) wanted = [&] { return drain(transport.rank(), ++calls); };
      Trainer trainer(job, mesh, transport, nullptr, nullptr, wanted);
      if (saved) trainer.go_on_from(*saved);
      run.summaries[static_cast<std::size_t>(transport.rank())] = trainer.run(observer);
    });
    std::ifstream stream(o.out + "/model.safetensors", std::ios::binary);
    run.weights.assign(std::istreambuf_iterator<char>(stream), {});
    return run;
  }

  fs::path folder_;
  std::vector<std::string> train_files_, eval_files_;
};

}  // namespace regatta::finetune::testing
