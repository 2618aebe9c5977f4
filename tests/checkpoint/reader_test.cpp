// Checkpoints whose checksums all fit, and that are none all the same: files that contradict one another or the
// manifest.

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <map>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/error.h"
#include "tests/checkpoint/test_folder.h"
#include "tests/support/refusal.h"

namespace regatta::checkpoint {
namespace {

using regatta::testing::expect_says;
using testing::bytes_in;
using testing::put;
using testing::TestFolder;

class Reader : public ::testing::Test {
 protected:
  Reader() {
    for (std::size_t i = 0; i < values_.size(); ++i) values_[i] = static_cast<float>(i);
    state("state-00000.safetensors", {given({0, 3})});
    state("state-00001.safetensors", {given({3, 6})});
    safetensors::write(at("model.safetensors"),
                       std::vector<safetensors::Source>{{"w", DType::f32, {2, 3}, values_.data()}});
    put(at("config.json"), "{}");
    names_ = {"state-00000.safetensors", "state-00001.safetensors", "model.safetensors", "config.json"};
  }
  std::string at(const std::string& name) const { return folder_.at(name); }

  GivenPart given(Range run, MatrixShape block = {2, 3}, DType dtype = DType::f32) const {
    GivenPart part;
    part.key = {"w", "momentum", 0};
    part.block = block;
    part.part = {{0, block.rows}, {0, block.cols}, run};
    part.dtype = dtype;
    part.data = values_.data() + run.begin;
    return part;
  }
  void state(const std::string& name, const std::vector<GivenPart>& parts) {
    safetensors::write(at(name), state_tensors(parts), state_metadata(parts, 4));
  }
  /// A manifest of the files that `names_` has, as they are now.
  void publish() const {
    Manifest manifest{4, "a version", "{}", {}};
    for (const std::string& name : names_) {
      const std::string text = bytes_in(at(name));
      Summer summer;
      summer.add(std::as_bytes(std::span(text)));
      manifest.files.push_back(summer.finish(name));
    }
    put(at(manifest_name), text_of(manifest));
  }
  std::string refusal(const std::function<void(Checkpoint&)>& use = {}) const {
    publish();
    try {
      Checkpoint saved(folder_.path());
      saved.verify();
      if (use) use(saved);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_argument) << error.what();
      EXPECT_NE(std::string(error.what()).find(folder_.path()), std::string::npos) << error.what();
      return error.what();
    }
    return "(was read)";
  }

  TestFolder folder_;
  std::vector<float> values_ = std::vector<float>(16);
  std::vector<std::string> names_;
  const StateKey key_{"w", "momentum", 0};
};

TEST_F(Reader, PartsOfSeveralFilesAreOneState) {
  EXPECT_EQ(refusal([&](Checkpoint& saved) {
              EXPECT_EQ(saved.path(), folder_.path());
              EXPECT_EQ(saved.manifest().step, 4);
              EXPECT_EQ(saved.manifest().version, "a version");
              ASSERT_EQ(saved.state().size(), 1U);
              EXPECT_EQ(saved.state().at(key_).stored, 6);
              std::vector<float> column(2);
              saved.read(key_, {2, 3}, {{0, 2}, {1, 2}, {0, 2}}, column.data());
              EXPECT_EQ(column, (std::vector<float>{1, 4}));
              saved.read(key_, {2, 3}, {{0, 2}, {1, 2}, {1, 1}}, nullptr);  // nothing is asked for
            }),
            "(was read)");
}

TEST_F(Reader, PartsThatContradictOneAnother) {
  state("state-00001.safetensors", {given({3, 6}, {3, 2})});
  expect_says(refusal(), "w momentum has another shape or dtype than in another file");
  state("state-00001.safetensors", {given({3, 6}, {2, 3}, DType::bf16)});
  expect_says(refusal(), "w momentum has another shape or dtype than in another file");
  expect_says(refusal(), "state-00001.safetensors");
}

TEST_F(Reader, StateThatIsNotAllThereOrOfAnotherBlock) {
  const auto read = [&](const StateKey& key, MatrixShape block) {
    return refusal([&](Checkpoint& saved) {
      std::vector<float> values(6);
      saved.read(key, block, {{0, block.rows}, {0, block.cols}, {0, 6}}, values.data());
    });
  };
  EXPECT_EQ(read(key_, {2, 3}), "(was read)");
  expect_says(read({"v", "momentum", 0}, {2, 3}), "has no state v momentum");
  expect_says(read({"w", "moment2", 0}, {2, 3}), "has no state w moment2");
  expect_says(read({"w", "momentum", 1}, {2, 3}), "has no state w momentum block 1");
  for (const MatrixShape block :
       {MatrixShape{3, 2}, MatrixShape{1, 6}, MatrixShape{6, 1}, MatrixShape{3, 3}, MatrixShape{2, 4}})
    expect_says(read(key_, block),
                "is of a 2 x 3 block, not " + std::to_string(block.rows) + " x " + std::to_string(block.cols));
  state("state-00001.safetensors", {given({4, 6})});
  expect_says(read(key_, {2, 3}), "has only 5 of 6 elements of the state w momentum");
}

TEST_F(Reader, FilesNamedTwiceMissingOrStrange) {
  names_.push_back("config.json");
  expect_says(refusal(), "names config.json twice");
  names_ = {"state-00000.safetensors", "config.json"};
  // Weights that the manifest does not know have no checksums to believe.
  expect_says(refusal([](Checkpoint& saved) { saved.weights(); }), "model.safetensors is not among the files");
  put(at("state-00000.safetensors"), "no tensors");
  expect_says(refusal(), "state-00000.safetensors");
}

TEST_F(Reader, TextsAreCheckedWhenItOpens) {
  publish();
  put(at("config.json"), "[]");
  EXPECT_THROW(Checkpoint{folder_.path()}, Error);
}

TEST_F(Reader, RanksShareTheFilesAndHearOfEach) {
  publish();
  Checkpoint saved(folder_.path());
  for (const int of : {1, 2, 3, 7}) {
    std::map<std::string, int> told;
    for (int share = 0; share < of; ++share) saved.verify(share, of, [&](const FileSums& file) { ++told[file.name]; });
    EXPECT_EQ(told.size(), names_.size());
    for (const auto& [name, times] : told) EXPECT_EQ(times, 1) << name;
  }
}

}  // namespace
}  // namespace regatta::checkpoint
