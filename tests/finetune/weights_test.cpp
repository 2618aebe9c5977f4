#include "cli/finetune/weights.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>

#include "runtime/checkpoint/safetensors.h"
#include "runtime/error.h"
#include "tests/support/refusal.h"

namespace regatta::finetune {
namespace {

using regatta::testing::expect_says;
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

/// Any of the three types, in one file or several, into either type, whole or in tensor-parallel parts: the file's own
/// values.
TEST_F(Weights, EveryTensorOfEveryTypeArrivesInEveryPart) {
  const at::ScalarType types[] = {at::kFloat, at::kBFloat16, at::kHalf};
  const DType ours[] = {DType::f32, DType::bf16, DType::f16};
  DecoderConfig config = small_config();
  config.vocab = 10;  // uneven
  config.heads = 4;
  config.kv_heads = 1;
  config.head_dim = 2;
  config.qkv_bias = config.output_bias = config.mlp_bias = true;
  Decoder whole(config, at::kFloat);
  init_random(whole, 7);
  std::map<std::string, at::Tensor> stored;
  std::vector<at::Tensor> kept;
  std::vector<safetensors::Source> sources;
  for (const auto& item : whole.named_parameters()) {
    at::Tensor values = item.value().detach().clone();
    if (values.dim() < 2)
      for (std::int64_t i = 0; i < values.numel(); ++i)
        values[i] = 0.1 * static_cast<double>(i) + static_cast<double>(kept.size());
    const std::size_t type = kept.size() % 3;
    kept.push_back(values.to(types[type]).contiguous());
    stored[item.key()] = kept.back().to(at::kFloat);
    sources.push_back({item.key(), ours[type], values.sizes().vec(), kept.back().data_ptr()});
  }
  for (const std::int64_t file_bytes : {1'000'000, 900}) {
    const std::vector<std::string> paths = safetensors::write_model(folder_, "model", sources, {}, file_bytes);
    EXPECT_EQ(paths.size() > 1, file_bytes == 900);
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16})
      for (const int tp : {1, 2, 4})
        for (int rank = 0; rank < tp; ++rank) {
          Decoder part(config, type, sharding::Mesh({{"tp", tp}}), rank);
          load_weights(part, folder_);
          for (const auto& item : part.named_parameters()) {
            const ParamShard& shard = *find_shard(part.shards(), item.key());
            at::Tensor expected = stored.at(item.key());
            if (expected.dim() == 2) expected = expected.slice(0, shard.rows.begin, shard.rows.end);
            expected = expected.slice(-1, shard.cols.begin, shard.cols.end);
            EXPECT_TRUE(item.value().equal(expected.to(type))) << item.key() << " on rank " << rank << " of " << tp;
          }
        }
    for (const std::string& path : paths) std::remove(path.c_str());
  }
}

TEST_F(Weights, Bf16IsSavedAsBf16) {
  Decoder narrow(small_config(), at::kBFloat16);
  init_random(narrow, 9);
  save_weights(narrow, folder_);
  EXPECT_NE(config_text(narrow).find("\"torch_dtype\": \"bfloat16\""), std::string::npos);
  EXPECT_NE(config_text(decoder_).find("\"torch_dtype\": \"float32\""), std::string::npos);
  const safetensors::File saved(file());
  EXPECT_EQ(saved.tensors().size(), values_.size());
  for (const safetensors::Tensor& tensor : saved.tensors()) EXPECT_EQ(tensor.dtype, "BF16") << tensor.name;
  Decoder again(read_decoder_config(folder_), at::kBFloat16);
  load_weights(again, folder_);
  for (const auto& item : narrow.named_parameters())
    EXPECT_TRUE(item.value().equal(again.named_parameters()[item.key()])) << item.key();
}

TEST_F(Weights, ALongListOfMisfitsIsCutShort) {
  sources_.erase(sources_.begin(), sources_.begin() + 5);
  const std::string said = refusal();
  expect_says(said, "5 missing (");
  expect_says(said, ", ...)");
  EXPECT_EQ(std::count(said.begin(), said.end(), ','), 4) << said;  // four names
}

TEST_F(Weights, RotaryTablesOfOlderFilesAreNoMisfits) {
  at::Tensor table = at::zeros({2});
  sources_.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", DType::f32, {2}, table.data_ptr()});
  EXPECT_EQ(refusal(), "(was loaded)");
  sources_.back().name = "model.layers.0.self_attn.inv_freq";
  expect_says(refusal(), "1 that the model does not have (model.layers.0.self_attn.inv_freq)");
}

TEST_F(Weights, AnyTensorThatIsNotFiniteIsNamed) {
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    const void* const good = sources_[i].data;
    for (const double bad : {std::numeric_limits<double>::quiet_NaN(), -std::numeric_limits<double>::infinity()}) {
      at::Tensor poisoned = values_[i].clone();
      poisoned.view(-1)[poisoned.numel() - 1] = bad;
      sources_[i].data = poisoned.data_ptr();
      expect_says(refusal(), "tensor '" + sources_[i].name + "' has 1 values that are NaN or infinite");
    }
    sources_[i].data = good;
  }
}

/// With --allow tensors what fits is taken, what does not stays as it is.
TEST_F(Weights, APartialLoadLeavesTheRestAlone) {
  source("lm_head.weight").shape = {8, 9};
  source("model.norm.weight").name = "model.final_norm.weight";
  safetensors::write(file(), sources_);
  Decoder other(small_config(), at::kFloat);
  init_random(other, 6);
  const at::Tensor head = other.named_parameters()["lm_head.weight"].detach().clone();
  {
    const safetensors::Model model(folder_);
    try {
      load_weights(other, model, "the checkpoint", false);
      ADD_FAILURE() << "was loaded";
    } catch (const Error& error) {
      expect_says(error.what(), "the checkpoint: the weights do not fit this job's model: 1 missing");
      expect_says(error.what(), "--allow tensors");
    }
    const std::string misfits = load_weights(other, model, "the checkpoint", true);
    expect_says(misfits, "1 missing (model.norm.weight), 1 of another shape or type (lm_head.weight");
  }
  std::size_t i = 0;
  for (const auto& item : decoder_.named_parameters()) {
    const at::Tensor now = other.named_parameters()[item.key()];
    if (item.key() == "lm_head.weight") {
      EXPECT_TRUE(now.equal(head));
    } else if (item.key() != "model.norm.weight") {
      EXPECT_TRUE(now.equal(values_[i])) << item.key();
    }
    ++i;
  }
}

/// Dealt out over any number of rows: each tensor once, as it is, and nobody has much more than his share.
TEST_F(Weights, EveryTensorIsWrittenByOneRow) {
  DecoderConfig config = small_config();
  config.layers = 6;
  Decoder decoder(config, at::kFloat);
  init_random(decoder, 3);
  std::int64_t all = 0, largest = 0;
  for (const auto& item : decoder.named_parameters()) {
    all += item.value().numel();
    largest = std::max(largest, item.value().numel());
  }
  for (const int dp : {1, 2, 3, 7, 100}) {
    std::map<std::string, int> seen;
    for (int row = 0; row < dp; ++row) {
      std::int64_t mine = 0;
      const WeightShare share = weights_of_rank(decoder, dp, row);
      ASSERT_EQ(share.kept.size(), share.sources.size());
      for (const safetensors::Source& source : share.sources) {
        const at::Tensor values = decoder.named_parameters()[source.name];
        EXPECT_EQ(source.shape, values.sizes().vec());
        EXPECT_EQ(std::memcmp(source.data, values.data_ptr(), static_cast<std::size_t>(values.numel()) * 4), 0)
            << source.name;
        ++seen[source.name];
        mine += values.numel();
      }
      EXPECT_LE(mine, all / dp + largest) << "row " << row << " of " << dp;
    }
    EXPECT_EQ(seen.size(), decoder.named_parameters().size());
    for (const auto& [name, times] : seen) EXPECT_EQ(times, 1) << name;
  }
}

TEST_F(Weights, ATokenizersFilesAreCopiedWhole) {
  namespace fs = std::filesystem;
  const fs::path from = fs::path(folder_) / "from", to = fs::path(folder_) / "to";
  fs::create_directories(from);
  fs::create_directories(to);
  const auto put = [](const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; };
  const auto get = [](const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  std::map<std::string, std::string> texts;
  for (const char* name : {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
                           "vocab.json", "merges.txt", "added_tokens.json", "generation_config.json"}) {
    texts[name] = std::string("the ") + name + std::string("\0\r\n\xff", 4);
    put(from / name, texts[name]);
  }
  put(from / "config.json", "not this one");
  put(to / "vocab.json", "an older, longer file that must not show through: " + std::string(500, 'x'));
  copy_tokenizer(from.string(), to.string());
  for (const auto& [name, text] : texts) EXPECT_EQ(get(to / name), text) << name;
  EXPECT_FALSE(fs::exists(to / "config.json"));
  std::map<std::string, std::string> told;
  for (const auto& [name, text] : tokenizer_texts(from.string())) told[name] = text;
  EXPECT_EQ(told, texts);
  EXPECT_TRUE(tokenizer_texts((fs::path(folder_) / "nowhere").string()).empty());
  copy_tokenizer((fs::path(folder_) / "nowhere").string(), to.string());
  try {
    copy_tokenizer(from.string(), (fs::path(folder_) / "nowhere").string());
    ADD_FAILURE() << "was copied";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::checkpoint);
    expect_says(error.what(), "cannot be copied to");
  }
}

TEST_F(Weights, AFolderThatCannotBeWrittenToIsSaid) {
  try {
    save_weights(decoder_, folder_ + "/nowhere");
    ADD_FAILURE() << "was saved";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::checkpoint);
    expect_says(error.what(), "nowhere/config.json: cannot be written");
  }
}

}  // namespace
}  // namespace regatta::finetune
