// Power that fails at any call of a save: what is left has a sound checkpoint, no older than the last one that was told
// to be saved, with its own values; and the next save works and cleans up.

#include <gtest/gtest.h>

#include <atomic>
#include <list>
#include <set>

#include "runtime/checkpoint/checkpoint_folder.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/error.h"
#include "tests/checkpoint/failing_calls.h"
#include "tests/checkpoint/forgetful_disk.h"
#include "tests/checkpoint/sample.h"
#include "tests/support/spmd.h"

namespace regatta::testing {
namespace {

namespace fs = std::filesystem;
using checkpoint::CheckpointWriter;
using checkpoint::SaveSettings;
using Kind = ForgetfulDisk::Kind;
using Tree = ForgetfulDisk::Tree;

constexpr int ranks = 2;

/// Saves of one job into one folder below a watched root.
class Durability : public ::testing::Test {
 protected:
  /// Later samples of a step are other values.
  const Sample& sample(std::int64_t step) { return samples_[step].emplace_back(++seed_, step, ranks, 4, 2); }

  /// A save of each of `steps` by the same writers, waited for. Whether none has failed.
  bool save(const std::vector<std::int64_t>& steps, SaveSettings settings, bool may_fail = false) {
    std::atomic<bool> all_saved{true};
    settings.folder = folder();
    std::vector<const Sample*> all;
    for (const std::int64_t step : steps) all.push_back(&sample(step));
    run_ranks(ranks, [&](Transport& transport) {
      CheckpointWriter writer(settings, transport);
      for (const Sample* one : all) {
        const Sample::Given given = one->of_rank(transport.rank());
        try {
          writer.save(given.contents);
          writer.finish();
          if (transport.rank() == 0) promise(one->step());
        } catch (const Error&) {
          if (!may_fail) throw;
          all_saved = false;
        }
      }
    });
    return all_saved;
  }
  void promise(std::int64_t step) {
    if (!disk_) return;
    disk_->promise(step);
    // Nobody is saving now: all is flushed, but for the going of what is to be ignored.
    Tree flushed = disk_->now(Kind::flushed);
    std::erase_if(flushed, [](const auto& entry) { return entry.first.find(".part/") != std::string::npos; });
    const Tree all = disk_->now(Kind::all);
    EXPECT_TRUE(flushed == all) << "flushed:\n" << names_of(flushed) << "there:\n" << names_of(all);
    EXPECT_EQ(flushed.count(below_ + "/latest"), 1U);
    if (flushed.count(below_ + "/latest") > 0) {
      EXPECT_EQ(flushed.at(below_ + "/latest"), checkpoint::folder_name(step) + "\n");
    }
  }

  /// Looks at all that may be left. `damaged`: a step that may be unsound, by the test itself; `replaced`: one that was
  /// there already when it was saved, and may be missing; `file_counts`: of that one, before and after.
  void expect_sound(int some_each, std::int64_t damaged = 0, std::int64_t replaced = 0,
                    const std::set<std::int64_t>& file_counts = {}) {
    const TestFolder aside;
    const std::string left = aside.at("left");
    int looked = 0;
    disk_->each_loss(some_each, [&](const Tree& tree, std::int64_t promised, Kind kind) {
      if (HasFailure()) return;
      ++looked;
      ForgetfulDisk::make(tree, left);
      SCOPED_TRACE("promised " + std::to_string(promised) + ", left:\n" + names_of(tree));
      const std::string folder = left + "/" + below_;
      std::int64_t newest = 0;
      std::set<std::string> names;
      for (const checkpoint::Listed& each : checkpoint::list_checkpoints(folder)) {
        names.insert(fs::path(each.path).filename().string());
        const std::string problem = misfit(each);
        if (problem.empty()) newest = each.step;
        if (each.step != damaged) {
          EXPECT_EQ(problem, "");
        }
      }
      EXPECT_GE(newest, promised);
      // Under the name of one that is replaced lie all files of the old or of the new one.
      if (!file_counts.empty()) {
        const std::string name = below_ + "/" + checkpoint::folder_name(replaced) + "/";
        std::int64_t files = 0;
        for (const auto& [path, content] : tree) files += path.starts_with(name) && path != name ? 1 : 0;
        EXPECT_TRUE(files == 0 || file_counts.count(files) > 0) << name << " has " << files << " files";
      }
      // Put aside for a moment.
      if (replaced > 0) names.insert(checkpoint::folder_name(replaced));
      const std::string latest = bytes_in(folder + "/latest");
      if (fs::exists(folder + "/latest")) {
        EXPECT_TRUE(latest.ends_with("\n") && names.count(latest.substr(0, latest.size() - 1)) == 1)
            << "latest says '" << latest << "'";
      }
      // Going on works, whatever is left.
      if (kind == Kind::some && looked % 8 != 0) return;
      const Sample next(1, newest + 1, 1, 3, 1);
      run_ranks(1, [&](Transport& transport) {
        CheckpointWriter writer({.folder = folder, .keep_last = 2}, transport);
        writer.save(next.of_rank(0).contents);
        writer.finish();
      });
      EXPECT_EQ(next.misfit(folder + "/" + checkpoint::folder_name(newest + 1)), "");
      for (const std::string& name : names_in(folder)) EXPECT_FALSE(name.ends_with(".part")) << name;
    });
    EXPECT_GT(looked, 20);
  }

  std::string misfit(const checkpoint::Listed& listed) {
    std::string problem = "nothing of that step was saved";
    try {
      for (const Sample& one : samples_[listed.step])
        if ((problem = one.misfit(listed.path)).empty()) break;
    } catch (const Error& error) {
      problem = error.what();
    }
    return problem;
  }
  static std::string names_of(const Tree& tree) {
    std::string text;
    for (const auto& [path, content] : tree) text += "  " + path + " " + std::to_string(content.size()) + "\n";
    return text;
  }
  std::string folder() const { return root_.at(below_); }
  void watch() { disk_ = std::make_unique<ForgetfulDisk>(root_.path()); }

  TestFolder root_;
  std::string below_ = "checkpoints";
  std::map<std::int64_t, std::list<Sample>> samples_;
  std::uint64_t seed_ = 0;
  std::unique_ptr<ForgetfulDisk> disk_;
};

TEST_F(Durability, FirstAndLaterSaves) {
  below_ = "new/folder/of/checkpoints";
  watch();
  save({1, 2}, {});
  save({3, 4, 6}, {.keep_last = 2, .keep_every = 3});
  EXPECT_EQ(names_in(folder()),
            (std::vector<std::string>{"latest", "step-00000003", "step-00000004", "step-00000006"}));
  expect_sound(3);
}

TEST_F(Durability, KeepingOnlyTheLast) {
  watch();
  for (const std::int64_t step : {1, 2, 3}) save({step}, {.keep_last = 1});
  EXPECT_EQ(names_in(folder()), (std::vector<std::string>{"latest", "step-00000003"}));
  expect_sound(4);
}

TEST_F(Durability, AfterSavesThatFailed) {
  save({1}, {});
  for (const auto failure : {FailingCalls::Kind::write, FailingCalls::Kind::fsync, FailingCalls::Kind::rename}) {
    for (const int at : {0, 5, 9}) {
      const std::int64_t next = samples_.rbegin()->first + 1;
      watch();
      disk_->promise(next - 1);
      FailingCalls calls(failure, at, EIO);
      // A save may be there in spite of what failed after it; its name is then taken by the next.
      if (!save({next}, {.keep_last = 2, .calls = &calls}, true)) save({next}, {.keep_last = 2});
      expect_sound(0, 0, next);
      disk_.reset();
      if (HasFailure()) return;
    }
  }
}

TEST_F(Durability, OverADamagedOneOfTheSameName) {
  save({1, 2, 3}, {});
  const std::string file = folder() + "/step-00000003/config.json";
  put(file, "not what was saved");
  watch();
  disk_->promise(2);
  std::set<std::int64_t> file_counts{std::ssize(names_in(folder() + "/step-00000003"))};
  save({3}, {.keep_last = 2});
  EXPECT_EQ(names_in(folder()), (std::vector<std::string>{"latest", "step-00000002", "step-00000003"}));
  EXPECT_EQ(misfit({3, folder() + "/step-00000003"}), "");
  file_counts.insert(std::ssize(names_in(folder() + "/step-00000003")));
  expect_sound(4, 3, 3, file_counts);
}

TEST_F(Durability, AnOlderOneThanADamagedOneIsNotThrownAway) {
  save({2, 4}, {});
  put(folder() + "/step-00000004/config.json", "not what was saved");
  watch();
  disk_->promise(2);
  save({3}, {.keep_last = 1});
  expect_sound(4, 4);
}

// A file by itself: the old one or the new one, whole.
TEST_F(Durability, ASafetensorsFileIsReplacedAtOnce) {
  const std::string path = root_.at("weights.safetensors");
  const auto write = [&](float value, std::size_t count) {
    const std::vector<float> values(count, value);
    safetensors::write(
        path, std::vector<safetensors::Source>{{"a", DType::f32, {static_cast<std::int64_t>(count)}, values.data()}});
  };
  watch();
  write(1, 5);
  disk_->promise(1);
  write(2, 7);
  disk_->promise(2);
  write(3, 4);
  disk_->promise(3);
  EXPECT_EQ(disk_->now(Kind::flushed).size(), 1U);
  const TestFolder aside;
  disk_->each_loss(6, [&](const Tree& tree, std::int64_t promised, Kind) {
    ForgetfulDisk::make(tree, aside.at("left"));
    const std::string left = aside.at("left/weights.safetensors");
    if (!fs::exists(left)) {
      EXPECT_EQ(promised, 0);
      return;
    }
    const safetensors::File file(left);
    std::vector<float> values(static_cast<std::size_t>(file.find("a")->numel));
    file.read(*file.find("a"), std::as_writable_bytes(std::span(values)));
    EXPECT_GE(values.at(0), static_cast<float>(promised));
    EXPECT_EQ(std::set<float>(values.begin(), values.end()).size(), 1U);
  });
}

}  // namespace
}  // namespace regatta::testing
