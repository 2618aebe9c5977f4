// Whatever happens to the bytes of a checkpoint on disk is noticed by a reader, who names the file and never crashes.

#include <gtest/gtest.h>

#include "runtime/error.h"
#include "tests/checkpoint/small_job.h"

namespace regatta::testing {
namespace {

namespace fs = std::filesystem;

class Damage : public ::testing::Test {
 protected:
  void SetUp() override {
    SmallJob().run({"dp=2"}, "", 1, checkpoint::SaveSettings{.folder = folder_.path()});
    for (const auto& entry : fs::directory_iterator(step_)) files_.push_back(entry.path());
    std::sort(files_.begin(), files_.end());
    ASSERT_EQ(read(), "");
  }

  /// The sentence with which reading all of the checkpoint fails; empty when it is sound.
  std::string read() const {
    try {
      checkpoint::Checkpoint saved(step_);
      saved.verify();
      return "";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_argument);
      return error.what();
    }
  }
  void expect_named(const fs::path& file, const std::string& what) {
    EXPECT_NE(read().find(file.filename().string()), std::string::npos) << what << ": '" << read() << "'";
  }

  TestFolder folder_;
  std::string step_ = folder_.at("step-00000001");
  std::vector<fs::path> files_;
};

TEST_F(Damage, EveryKindOfFileIsThere) {
  std::string names;
  for (const fs::path& file : files_) names += file.filename().string() + " ";
  EXPECT_EQ(names,
            "manifest.json model-00001-of-00002.safetensors model-00002-of-00002.safetensors "
            "model.safetensors.index.json state-00000.safetensors state-00001.safetensors ");
}

// A fair sample of 2,000 bytes of all files, each with one of its bits, some bits, or all of them flipped.
TEST_F(Damage, AFlippedByteIsFoundWhereverItIs) {
  std::mt19937_64 random(7);
  std::vector<std::string> contents;
  std::int64_t all = 0;
  for (const fs::path& file : files_) {
    contents.push_back(bytes_in(file));
    all += static_cast<std::int64_t>(contents.back().size());
  }
  constexpr int samples = 2000;
  for (int i = 0; i < samples && !HasFailure(); ++i) {
    std::int64_t at = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(all));
    std::size_t f = 0;
    while (at >= static_cast<std::int64_t>(contents[f].size())) at -= static_cast<std::int64_t>(contents[f++].size());
    const int flip = i % 2 == 0 ? 1 << random() % 8 : 1 + static_cast<int>(random() % 255);
    std::string damaged = contents[f];
    damaged[static_cast<std::size_t>(at)] = static_cast<char>(damaged[static_cast<std::size_t>(at)] ^ flip);
    put(files_[f], damaged);
    expect_named(files_[f], "byte " + std::to_string(at) + " xor " + std::to_string(flip));
    put(files_[f], contents[f]);
  }
  EXPECT_EQ(read(), "");
}

TEST_F(Damage, AFileCutShortEmptiedLengthenedOrGoneIsNamed) {
  for (const fs::path& file : files_) {
    const std::string whole = bytes_in(file);
    put(file, whole.substr(0, whole.size() - 1));
    expect_named(file, "cut by a byte");
    put(file, whole.substr(0, whole.size() / 2));
    expect_named(file, "cut in half");
    put(file, "");
    expect_named(file, "empty");
    put(file, whole + '\0');
    expect_named(file, "a byte longer");
    fs::remove(file);
    expect_named(file, "gone");
    fs::create_directory(file);
    expect_named(file, "a folder");
    fs::remove(file);
    put(file, whole);
  }
  EXPECT_EQ(read(), "");
}

TEST_F(Damage, ShardsThatChangedPlacesAreNoticed) {
  const fs::path first = step_ + "/state-00000.safetensors", second = step_ + "/state-00001.safetensors";
  fs::rename(first, folder_.at("aside"));
  fs::rename(second, first);
  fs::rename(folder_.at("aside"), second);
  EXPECT_NE(read().find("state-0000"), std::string::npos) << read();
}

TEST_F(Damage, AManifestFromTheFutureIsCalledThat) {
  const fs::path manifest = step_ + "/manifest.json";
  std::string text = bytes_in(manifest);
  const std::string now = "\"format\": 1";
  ASSERT_NE(text.find(now), std::string::npos);
  text.replace(text.find(now), now.size(), "\"format\": 7");
  put(manifest, text);
  EXPECT_NE(read().find("format 7"), std::string::npos) << read();
  EXPECT_NE(read().find("newer"), std::string::npos) << read();
}

}  // namespace
}  // namespace regatta::testing
