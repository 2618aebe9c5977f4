// Checksums by pieces: whoever reads some bytes checks the pieces they lie in and no others, and sees none that does
// not fit.

#include "runtime/checkpoint/file_sums.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "runtime/error.h"
#include "tests/checkpoint/test_folder.h"
#include "tests/support/refusal.h"

namespace regatta::checkpoint {
namespace {

using regatta::testing::refusal;

using regatta::testing::put;
using regatta::testing::TestFolder;

constexpr std::int64_t piece = summed_piece_bytes;

std::string noise(std::int64_t bytes, std::uint64_t seed = 3) {
  std::mt19937_64 random(seed);
  std::string text(static_cast<std::size_t>(bytes), '\0');
  std::size_t at = 0;
  for (; at + 8 <= text.size(); at += 8) {
    const std::uint64_t word = random();
    std::memcpy(text.data() + at, &word, 8);
  }
  for (; at < text.size(); ++at) text[at] = static_cast<char>(random());
  return text;
}

std::span<const std::byte> bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

/// By the description: a sum of each piece.
FileSums sums_of(const std::string& name, const std::string& text) {
  FileSums sums{name, static_cast<std::int64_t>(text.size()), {}};
  for (std::size_t at = 0; at < text.size(); at += static_cast<std::size_t>(piece))
    sums.sums.push_back(sum_of(bytes(text).subspan(at, std::min<std::size_t>(piece, text.size() - at))));
  return sums;
}

TEST(FileSums, AreXxh3OfSixtyFourBitsAndSeedZero) {  // from the hash's own description
  EXPECT_EQ(sum_of({}), 0x2d06800538d394c2U);
}

TEST(FileSums, TheSameHoweverTheDataComes) {
  std::mt19937_64 random(5);
  for (const std::int64_t size :
       {std::int64_t{0}, std::int64_t{1}, piece - 1, piece, piece + 1, 2 * piece, 3 * piece + 77}) {
    const std::string text = noise(size);
    const FileSums expected = sums_of("a", text);
    for (const std::int64_t most : {std::int64_t{1000}, piece / 3, 2 * piece + 5}) {
      Summer summer;
      for (std::int64_t at = 0; at < size;) {
        const std::int64_t count = std::min<std::int64_t>(size - at, static_cast<std::int64_t>(random() % most));
        summer.add(bytes(text).subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(count)));
        at += count;
      }
      EXPECT_EQ(summer.finish("a"), expected) << size << " in parts below " << most;
    }
    for (const std::int64_t first :
         {std::int64_t{1}, piece - 1, piece, piece + 1, 2 * piece - 1}) {  // ends at the edges
      if (first > size) continue;
      Summer summer;
      summer.add(bytes(text).subspan(0, static_cast<std::size_t>(first)));
      summer.add(bytes(text).subspan(static_cast<std::size_t>(first)));
      EXPECT_EQ(summer.finish("a"), expected) << size << ", " << first << " first";
    }
  }
}

class Checked : public ::testing::Test {
 protected:
  void SetUp() override { put(path_, text_); }
  TestFolder folder_;
  std::string path_ = folder_.at("file");
  std::string text_ = noise(3 * piece + 100);
  FileSums sums_ = sums_of("file", text_);
};

TEST_F(Checked, EveryStretchIsRead) {
  CheckedFile file(path_, sums_);
  EXPECT_EQ(file.bytes(), 3 * piece + 100);
  std::mt19937_64 random(6);
  const auto read = [&](std::int64_t at, std::int64_t count) {
    std::string got(static_cast<std::size_t>(count), '\0');
    file.read(at, std::as_writable_bytes(std::span(got)));
    EXPECT_TRUE(got == text_.substr(static_cast<std::size_t>(at), static_cast<std::size_t>(count)))
        << at << " " << count;
  };
  for (const std::int64_t edge : {std::int64_t{0}, piece, 2 * piece, 3 * piece})
    for (const std::int64_t off : {-2, -1, 0, 1})
      for (const std::int64_t count : {0, 1, 2, 3})
        if (edge + off >= 0) read(edge + off, count);
  for (int i = 0; i < 10; ++i) {
    const auto at = static_cast<std::int64_t>(random() % text_.size());
    read(at, static_cast<std::int64_t>(random() % (text_.size() - static_cast<std::size_t>(at) + 1)));
  }
  read(0, file.bytes());
  file.verify();
}

TEST_F(Checked, OnlyThePiecesThatAreReadAreChecked) {
  for (std::int64_t damaged = 0; damaged < 4; ++damaged) {
    for (const bool last : {false, true}) {
      std::string text = text_;
      const std::int64_t end = std::min<std::int64_t>((damaged + 1) * piece, static_cast<std::int64_t>(text.size()));
      text[static_cast<std::size_t>(last ? end - 1 : damaged * piece)] ^= 1;
      put(path_, text);
      CheckedFile file(path_, sums_);
      std::byte one{};
      for (int again = 0; again < 2; ++again) {  // a piece that did not fit is not believed the second time either
        for (std::int64_t p = 0; p < 4; ++p) {
          const std::string said = refusal([&] { file.read(p * piece + 50, {&one, 1}); });
          if (p != damaged) {
            EXPECT_EQ(said, "");
          } else {
            EXPECT_NE(said.find(path_ + " is damaged"), std::string::npos) << said;
            EXPECT_EQ(refusal([&] { file.read(p * piece + 50, {&one, 1}); }), said);
            if (p > 0) {  // what was read before is still that, and not the damaged bytes
              EXPECT_EQ(refusal([&] { file.read((p - 1) * piece + 50, {&one, 1}); }), "");
              EXPECT_EQ(one, static_cast<std::byte>(text[static_cast<std::size_t>((p - 1) * piece + 50)]));
            }
            EXPECT_NE(said.find(" " + std::to_string(damaged * piece) + " to " + std::to_string(end) + " "),
                      std::string::npos)
                << said;
          }
        }
      }
      EXPECT_NE(refusal([&] { file.verify(); }).find("is damaged"), std::string::npos);
    }
  }
}

TEST_F(Checked, WhatIsNotThereIsNotRead) {
  CheckedFile file(path_, sums_);
  std::vector<std::byte> two(2);
  const std::int64_t size = file.bytes();
  for (const std::int64_t at : {std::int64_t{-1}, size - 1, size, size + piece})
    EXPECT_NE(refusal([&] { file.read(at, two); }).find(path_), std::string::npos) << at;
  std::filesystem::resize_file(path_, static_cast<std::size_t>(size) - 1);  // behind the reader's back
  EXPECT_NE(refusal([&] { file.verify(); }).find(path_), std::string::npos);
  for (const std::int64_t other : {std::int64_t{0}, size - 1, size + 1}) {
    std::filesystem::resize_file(path_, static_cast<std::size_t>(other));
    EXPECT_NE(refusal([&] { CheckedFile(path_, sums_); }).find(path_), std::string::npos) << other;
  }
  EXPECT_NE(refusal([&] { CheckedFile(folder_.at("gone"), sums_); }).find("gone"), std::string::npos);
}

}  // namespace
}  // namespace regatta::checkpoint
