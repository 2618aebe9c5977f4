#include "cli/finetune/weights.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>

#include "runtime/checkpoint/safetensors.h"
#include "runtime/error.h"

namespace regatta::finetune {
namespace {

namespace fs = std::filesystem;

DecoderConfig small_config() {
  DecoderConfig config;
  config.vocab = 9;
  config.hidden = 8;
  config.intermediate = 12;
  config.layers = 1;
  config.heads = 2;
  config.kv_heads = 1;
  config.head_dim = 4;
  return config;
}

class Weights : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ =
        (fs::temp_directory_path() / ("weights_test." + std::to_string(::getpid()) + "." + info->name())).string();
    fs::create_directories(folder_);
    init_random(decoder_, 5);
    for (const auto& item : decoder_.named_parameters()) values_.push_back(item.value().detach().contiguous());
    for (const auto& item : decoder_.named_parameters()) {
      const at::Tensor& values = values_[sources_.size()];
      sources_.push_back({item.key(), DType::f32, values.sizes().vec(), values.data_ptr()});
    }
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string file() const { return folder_ + "/model.safetensors"; }
  safetensors::Source& source(const std::string& name) {
    for (safetensors::Source& source : sources_)
      if (source.name == name) return source;
    throw std::out_of_range(name);
  }
  /// How loading what `sources_` now say into another decoder of `config` is refused.
  std::string refusal(const DecoderConfig& config = small_config()) {
    safetensors::write(file(), sources_);
    Decoder other(config, at::kFloat);
    try {
      load_weights(other, folder_);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_argument);
      return error.what();
    }
    return "(was loaded)";
  }

  std::string folder_;
  Decoder decoder_{small_config(), at::kFloat};
  std::vector<at::Tensor> values_;
  std::vector<safetensors::Source> sources_;
};

/// `said` must contain `words`.
void expect_says(const std::string& said, const std::string& words) {
  EXPECT_NE(said.find(words), std::string::npos) << "'" << said << "' lacks '" << words << "'";
}

TEST_F(Weights, RoundTripIsExact) {
  const std::vector<std::string> paths = save_weights(decoder_, folder_);
  EXPECT_EQ(paths, (std::vector<std::string>{folder_ + "/config.json", file()}));
  Decoder other(read_decoder_config(folder_), at::kFloat);
  init_random(other, 6);
  load_weights(other, folder_);
  for (const auto& item : decoder_.named_parameters()) {
    EXPECT_TRUE(item.value().equal(other.named_parameters()[item.key()])) << item.key();
  }
  EXPECT_EQ(safetensors::File(file()).metadata().at("format"), "pt");
}

TEST_F(Weights, HalfPrecisionFilesLoadIntoFp32) {
  const at::Tensor narrow = values_[0].to(at::kBFloat16);
  const at::Tensor half = values_[1].to(at::kHalf);
  sources_[0].dtype = DType::bf16;
  sources_[0].data = narrow.data_ptr();
  sources_[1].dtype = DType::f16;
  sources_[1].data = half.data_ptr();
  EXPECT_EQ(refusal(), "(was loaded)");
  Decoder other(small_config(), at::kFloat);
  load_weights(other, folder_);
  EXPECT_TRUE(other.named_parameters()[sources_[0].name].equal(narrow.to(at::kFloat)));
  EXPECT_TRUE(other.named_parameters()[sources_[1].name].equal(half.to(at::kFloat)));
}

TEST_F(Weights, AllMisfitsAreInOneSentence) {
  source("lm_head.weight").shape = {8, 9};
  source("model.norm.weight").name = "model.final_norm.weight";
  const std::string said = refusal();
  expect_says(said, "1 missing (model.norm.weight)");
  expect_says(said, "1 of another shape or type (lm_head.weight is [8, 9] instead of [9, 8])");
  expect_says(said, "1 that the model does not have (model.final_norm.weight)");
  EXPECT_EQ(said.find('\n'), std::string::npos);
}

TEST_F(Weights, OtherElementTypesAreRefused) {
  // A header written by hand, as the writer cannot say I32.
  std::string bytes;
  safetensors::write(file(), sources_);
  {
    FILE* stream = std::fopen(file().c_str(), "rb");
    char buffer[1 << 16];
    bytes.assign(buffer, std::fread(buffer, 1, sizeof buffer, stream));
    std::fclose(stream);
  }
  bytes.replace(bytes.find("\"F32\""), 5, "\"I32\"");
  FILE* stream = std::fopen(file().c_str(), "wb");
  std::fwrite(bytes.data(), 1, bytes.size(), stream);
  std::fclose(stream);
  Decoder other(small_config(), at::kFloat);
  try {
    load_weights(other, folder_);
    ADD_FAILURE() << "was loaded";
  } catch (const Error& error) {
    expect_says(error.what(), "is I32 instead of F32, BF16 or F16");
  }
}

TEST_F(Weights, NanAndInfinityAreNamed) {
  at::Tensor poisoned = values_[2].clone();
  poisoned.view(-1)[3] = std::numeric_limits<float>::quiet_NaN();
  poisoned.view(-1)[5] = std::numeric_limits<float>::infinity();
  sources_[2].data = poisoned.data_ptr();
  const std::string said = refusal();
  expect_says(said, "tensor '" + sources_[2].name + "' has 2 values that are NaN or infinite");
  expect_says(said, "model.safetensors");
}

TEST_F(Weights, ConfigOfAnotherSizeIsRefused) {
  DecoderConfig larger = small_config();
  larger.layers = 2;
  expect_says(refusal(larger), "9 missing (");
  larger = small_config();
  larger.intermediate = 16;
  expect_says(refusal(larger), "3 of another shape or type");
}

TEST_F(Weights, RanksShareThemEachTensorOnce) {
  std::int64_t all = 0, largest = 0;
  for (const at::Tensor& values : values_) {
    all += values.numel();
    largest = std::max(largest, values.numel());
  }
  for (const int dp : {1, 2, 3, 5, 40}) {
    std::map<std::string, int> times;
    for (int rank = 0; rank < dp; ++rank) {
      const WeightShare share = weights_of_rank(decoder_, dp, rank);
      std::int64_t mine = 0;
      for (const safetensors::Source& given : share.sources) {
        ++times[given.name];
        const safetensors::Source& whole = source(given.name);
        EXPECT_EQ(given.shape, whole.shape);
        EXPECT_EQ(given.dtype, whole.dtype);
        EXPECT_EQ(std::memcmp(given.data, whole.data, static_cast<std::size_t>(safetensors::bytes_of(whole))), 0);
        mine += safetensors::bytes_of(given) / 4;
      }
      EXPECT_LE(mine, all / dp + largest) << rank << " of " << dp;
    }
    EXPECT_EQ(times.size(), sources_.size());
    for (const auto& [name, count] : times) EXPECT_EQ(count, 1) << name << " over " << dp;
  }
}

TEST_F(Weights, WhatBelongsToATokenizerGoesAlong) {
  const std::string from = folder_ + "/from", to = folder_ + "/to";
  fs::create_directories(from);
  fs::create_directories(to);
  EXPECT_TRUE(tokenizer_texts(from).empty());
  copy_tokenizer(from, to);
  EXPECT_TRUE(fs::is_empty(to));
  std::map<std::string, std::string> expected;
  for (const char* name : {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
                           "vocab.json", "merges.txt", "added_tokens.json", "generation_config.json"}) {
    expected[name] = std::string("of \0 ", 5) + name;
    std::ofstream(from + "/" + name, std::ios::binary) << expected[name];
    std::ofstream(to + "/" + name, std::ios::binary) << "a longer text that was there before the copy";
  }
  for (const char* other : {"config.json", "model.safetensors", "README.md"}) std::ofstream(from + "/" + other) << "no";
  const auto texts = tokenizer_texts(from);
  EXPECT_EQ((std::map<std::string, std::string>(texts.begin(), texts.end())), expected);
  copy_tokenizer(from, to);
  std::map<std::string, std::string> copied;
  for (const auto& [name, text] : tokenizer_texts(to)) copied[name] = text;
  EXPECT_EQ(copied, expected);
  EXPECT_FALSE(fs::exists(to + "/config.json"));
}

TEST_F(Weights, ATiedHeadMayBeStoredOrNot) {
  DecoderConfig tied = small_config();
  tied.tied_head = true;
  EXPECT_EQ(refusal(tied), "(was loaded)");
  sources_.erase(
      std::remove_if(sources_.begin(), sources_.end(), [](const auto& s) { return s.name == "lm_head.weight"; }),
      sources_.end());
  EXPECT_EQ(refusal(tied), "(was loaded)");
  expect_says(refusal(), "1 missing (lm_head.weight)");
}

}  // namespace
}  // namespace regatta::finetune
