#include "cli/finetune/token_data.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "runtime/error.h"
#include "tests/finetune/window_order.h"

namespace regatta::finetune {
namespace {

namespace fs = std::filesystem;

class Tokens : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() / ("token_data_test." + std::to_string(::getpid()) + "." + info->name());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string put(const std::string& name, const std::string& bytes) const {
    const std::string path = (folder_ / name).string();
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  static std::vector<std::int64_t> read(const TokenData& data, std::int64_t begin, std::size_t count) {
    std::vector<std::int64_t> tokens(count);
    data.read(begin, tokens);
    return tokens;
  }
  static std::string refusal(const std::vector<std::string>& paths, std::int64_t vocab) {
    try {
      TokenData data(paths, vocab);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_argument);
      return error.what();
    }
    return "(was read)";
  }
  fs::path folder_;
};

TEST_F(Tokens, FilesAreOneSequence) {
  const std::string text = put("a.txt", "AB\xff");
  const std::string ids = put("b.u16", std::string("\x01\x02\x03\x00", 4));
  const std::string wide = put("c.u32", std::string("\x05\x00\x01\x00", 4));
  const TokenData data({text, ids, wide}, 1 << 20);
  EXPECT_EQ(data.size(), 6);
  EXPECT_TRUE(data.has_text());
  EXPECT_EQ(read(data, 0, 6), (std::vector<std::int64_t>{65, 66, 255, 0x0201, 3, 0x10005}));
  EXPECT_EQ(read(data, 2, 2), (std::vector<std::int64_t>{255, 0x0201}));
  EXPECT_EQ(read(data, 5, 1), (std::vector<std::int64_t>{0x10005}));
  EXPECT_FALSE(TokenData({ids}, 1 << 20).has_text());
}

/// Every reading of files of all widths, some of one token, against the bytes themselves.
TEST_F(Tokens, AnyStretchOfAnyFilesIsReadAsItIs) {
  const auto bytes = [](int count, int seed) {
    std::string text;
    for (int i = 0; i < count; ++i) text += static_cast<char>((i * 89 + seed * 57 + 200) % 256);
    return text;
  };
  const std::vector<std::string> paths{
      put("a.u16", bytes(14, 1)), put("b", bytes(1, 2)),     put("c.u32", bytes(4, 3)), put("d.txt", bytes(9, 4)),
      put("e.u32", bytes(20, 5)), put("f.u16", bytes(2, 6)), put("u16", bytes(3, 7))};
  const std::vector<std::int64_t> all = reference::tokens_of(paths);
  const TokenData data(paths, std::int64_t{1} << 32);
  ASSERT_EQ(data.size(), 7 + 1 + 1 + 9 + 5 + 1 + 3);
  for (std::int64_t begin = 0; begin < data.size(); ++begin)
    for (std::int64_t count = 1; begin + count <= data.size(); ++count)
      EXPECT_EQ(read(data, begin, static_cast<std::size_t>(count)),
                std::vector<std::int64_t>(all.begin() + begin, all.begin() + begin + count))
          << begin << " + " << count;
  const TokenData moved = std::move(const_cast<TokenData&>(data));
  EXPECT_EQ(read(moved, 3, 20), std::vector<std::int64_t>(all.begin() + 3, all.begin() + 23));
}

TEST_F(Tokens, TheVocabularyBoundsEveryIdOfEveryFile) {
  const std::string ids = put("a.u16", std::string("\x00\x00\xff\xff", 4));
  const std::string wide = put("b.u32", std::string("\xff\xff\xff\xff", 4));
  EXPECT_EQ(refusal({ids}, 65536), "(was read)");
  EXPECT_NE(refusal({ids}, 65535).find("a.u16: token 1 is 65535, but the model's vocabulary has 65535"),
            std::string::npos);
  EXPECT_EQ(refusal({ids, wide}, std::int64_t{1} << 32), "(was read)");
  EXPECT_NE(refusal({ids, wide}, 0xffffffff).find("b.u32: token 0 is 4294967295"), std::string::npos);
  EXPECT_NE(refusal({put("first.txt", "b"), put("second.txt", "aab")}, 'b').find("first.txt: token 0"),
            std::string::npos);
  EXPECT_NE(refusal({put("first.txt", "a"), put("second.txt", "aab")}, 'b').find("second.txt: token 2"),
            std::string::npos);
}

TEST_F(Tokens, TextAmongTokenFilesIsNoticed) {
  const std::string ids = put("a.u16", "abcd"), wide = put("b.u32", "abcd"), text = put("c", "abcd");
  const std::int64_t vocab = std::int64_t{1} << 32;
  EXPECT_FALSE(TokenData({ids, wide}, vocab).has_text());
  EXPECT_TRUE(TokenData({text, ids}, vocab).has_text());
  EXPECT_TRUE(TokenData({ids, text, wide}, vocab).has_text());
}

TEST_F(Tokens, BadFilesAreNamed) {
  EXPECT_NE(refusal({(folder_ / "absent").string()}, 256).find("No such file"), std::string::npos);
  EXPECT_NE(refusal({put("empty", "")}, 256).find("is empty"), std::string::npos);
  EXPECT_NE(refusal({folder_.string()}, 256).find("not a regular file"), std::string::npos);
  EXPECT_NE(refusal({put("odd.u16", "abc")}, 1 << 16).find("2-byte tokens"), std::string::npos);
  for (const char* bytes : {"abcde", "ab", "abc"})
    EXPECT_NE(refusal({put("odd.u32", bytes)}, 1 << 16).find("4-byte tokens"), std::string::npos);
  EXPECT_NE(refusal({}, 256).find("no data file was given"), std::string::npos);
  EXPECT_NE(refusal({put("big.txt", "abz")}, 'z').find("token 2 is 122, but the model's vocabulary has 122 entries"),
            std::string::npos);
}

TEST(WindowSampler, AnEpochVisitsEveryWindowOnce) {
  for (const std::int64_t windows : {1, 2, 3, 5, 64, 65, 1000}) {
    const WindowSampler sampler(windows * 7 + 1, 7, 3, "the test");
    ASSERT_EQ(sampler.windows(), windows);
    for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
      std::set<std::int64_t> begins;
      for (std::int64_t i = 0; i < windows; ++i) begins.insert(sampler.begin(epoch * windows + i));
      EXPECT_EQ(static_cast<std::int64_t>(begins.size()), windows);
      EXPECT_EQ(*begins.begin(), 0);
      EXPECT_EQ(*begins.rbegin(), (windows - 1) * 7);  // the last one ends with the data's last token
    }
  }
}

TEST(WindowSampler, EpochsAndSeedsDiffer) {
  const WindowSampler one(10001, 10, 1, "the test");
  const WindowSampler two(10001, 10, 2, "the test");
  int same_epoch = 0;
  int same_seed = 0;
  int fixed = 0;
  for (std::int64_t i = 0; i < 1000; ++i) {
    same_epoch += one.begin(i) == one.begin(1000 + i);
    same_seed += one.begin(i) == two.begin(i);
    fixed += one.begin(i) == i * 10;
  }
  // A random permutation of 1000 agrees with another in about one place.
  EXPECT_LT(same_epoch, 10);
  EXPECT_LT(same_seed, 10);
  EXPECT_LT(fixed, 10);
}

TEST(WindowSampler, OrderIsPartOfTheFormat) {
  const WindowSampler sampler(101, 10, 42, "the test");
  std::vector<std::int64_t> begins;
  for (std::int64_t i = 0; i < 10; ++i) begins.push_back(sampler.begin(i) / 10);
  // From a second implementation of the permutation; a change of it changes every training run with a given seed.
  EXPECT_EQ(begins, (std::vector<std::int64_t>{5, 1, 3, 4, 7, 2, 0, 8, 9, 6}));
}

/// Sizes around powers of four, where the network's domain grows; several epochs; seeds that use all bits.
TEST(WindowSampler, AnyPlaceOfAnyEpochIsThatOfTheSecondImplementation) {
  for (const std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{7}, std::uint64_t{0xfedcba9876543210}})
    for (const std::int64_t windows : {1, 3, 4, 5, 15, 16, 17, 64, 65, 255, 256, 257, 4097}) {
      const WindowSampler sampler(windows * 3 + 2, 3, seed, "the test");  // one token more than the windows take
      ASSERT_EQ(sampler.windows(), windows);
      const std::int64_t stride = windows < 300 ? 1 : 61;
      for (std::int64_t i = 0; i < 3 * windows; i += stride)
        ASSERT_EQ(sampler.begin(i), 3 * reference::window(i, windows, seed)) << windows << " windows, place " << i;
      const std::int64_t far = windows * 1'000'003;
      ASSERT_EQ(sampler.begin(far), 3 * reference::window(far, windows, seed));
    }
}

TEST(WindowSampler, AsManyWindowsAsFitWithTheTokenAfterThem) {
  for (std::int64_t seq = 1; seq < 12; ++seq)
    for (std::int64_t tokens = seq + 1; tokens < 60; ++tokens) {
      const WindowSampler sampler(tokens, seq, 0, "the test");
      std::int64_t fitting = 0;
      while ((fitting + 1) * seq + 1 <= tokens) ++fitting;
      EXPECT_EQ(sampler.windows(), fitting) << tokens << " tokens, sequences of " << seq;
      EXPECT_LE(sampler.even_begin(fitting - 1, fitting) + seq + 1, tokens);
    }
  EXPECT_THROW(WindowSampler(10, 0, 0, "the test"), Error);
  EXPECT_THROW(WindowSampler(10, -1, 0, "the test"), Error);
  EXPECT_THROW(WindowSampler(0, 1, 0, "the test"), Error);
}

TEST(WindowSampler, EvaluationVisitsAsManyOtherWindowsAsAskedFor) {
  for (std::int64_t windows = 1; windows < 40; ++windows) {
    const WindowSampler sampler(windows * 5 + 1, 5, 0, "the test");
    for (std::int64_t count = 1; count <= windows; ++count) {
      std::set<std::int64_t> begins;
      for (std::int64_t i = 0; i < count; ++i) {
        EXPECT_EQ(sampler.even_begin(i, count), i * windows / count * 5);
        begins.insert(sampler.even_begin(i, count));
      }
      EXPECT_EQ(static_cast<std::int64_t>(begins.size()), count);
    }
  }
}

TEST(WindowSampler, DataShorterThanASequenceIsRefused) {
  EXPECT_EQ(WindowSampler(9, 8, 0, "the test").windows(), 1);
  try {
    WindowSampler(8, 8, 0, "--data x.txt");
    ADD_FAILURE() << "took 8 tokens for sequences of 8 and one more";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "a sequence of 8 tokens and the one after them do not fit --data x.txt, which has 8 tokens");
  }
}

TEST(WindowSampler, EvaluationWindowsLieEvenly) {
  const WindowSampler sampler(1001, 10, 0, "the test");
  EXPECT_EQ(sampler.even_begin(0, 4), 0);
  EXPECT_EQ(sampler.even_begin(1, 4), 250);
  EXPECT_EQ(sampler.even_begin(3, 4), 750);
  EXPECT_EQ(sampler.even_begin(99, 100), 990);
}

}  // namespace
}  // namespace regatta::finetune
