#include "cli/finetune/decoder_config.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/error.h"

namespace regatta::finetune {
namespace {

namespace fs = std::filesystem;

class Config : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() / ("decoder_config_test." + std::to_string(::getpid()) + "." + info->name());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  DecoderConfig read(const std::string& text) const {
    std::ofstream(folder_ / "config.json") << text;
    return read_decoder_config(folder_.string());
  }
  std::string refusal(const std::string& text) const {
    try {
      read(text);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_argument);
      EXPECT_NE(std::string(error.what()).find("config.json"), std::string::npos) << error.what();
      return error.what();
    }
    return "(was read)";
  }
  fs::path folder_;
};

// The shape of the files that published checkpoints carry.
const char* const qwen2 = R"({"architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 896,
  "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2",
  "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
  "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
  "use_sliding_window": false, "vocab_size": 151936})";
const char* const llama = R"({"architectures": ["LlamaForCausalLM"], "attention_bias": false, "head_dim": 64,
  "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072,
  "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
  "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
  "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0, "tie_word_embeddings": true,
  "vocab_size": 128256, "eos_token_id": [1, 2], "my_own": {"kept": 1}})";

TEST_F(Config, ReadsQwen2) {
  const DecoderConfig config = read(qwen2);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.kv_heads, 2);
  EXPECT_TRUE(config.qkv_bias);
  EXPECT_FALSE(config.output_bias);
  EXPECT_TRUE(config.tied_head);
  EXPECT_EQ(config.sliding_window, 0);
  EXPECT_DOUBLE_EQ(config.rope_theta, 1e6);
  EXPECT_FALSE(config.rope_scaling.has_value());
}

TEST_F(Config, ReadsLlamaWithStretchedPositions) {
  const DecoderConfig config = read(llama);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_FALSE(config.qkv_bias);
  ASSERT_TRUE(config.rope_scaling.has_value());
  EXPECT_EQ(config.rope_scaling->kind, RopeScaling::Kind::llama3);
  EXPECT_DOUBLE_EQ(config.rope_scaling->factor, 32);
}

TEST_F(Config, ReadsTheNewerRopeParameters) {
  const DecoderConfig config =
      read(R"({"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 2, "rope_parameters": {"rope_theta": 77.0, "rope_type": "default"}})");
  EXPECT_DOUBLE_EQ(config.rope_theta, 77);
  EXPECT_EQ(config.kv_heads, 2);
  EXPECT_FALSE(config.tied_head);
}

TEST_F(Config, WritingKeepsWhatItDoesNotKnow) {
  const std::string text = decoder_config_json(read(llama), "float32");
  EXPECT_NE(text.find("\"kept\": 1"), std::string::npos);
  EXPECT_NE(text.find("\"torch_dtype\": \"float32\""), std::string::npos);
  const DecoderConfig again = read(text);
  EXPECT_EQ(again.layers, 16);
  EXPECT_TRUE(again.rope_scaling.has_value());
}

TEST_F(Config, ARandomModelsFileReadsBack) {
  DecoderConfig config;
  config.vocab = 300;
  config.hidden = 48;
  config.heads = 6;
  config.kv_heads = 2;
  config.head_dim = 8;
  config.layers = 3;
  config.tied_head = true;
  config.rope_theta = 5000;
  const DecoderConfig again = read(decoder_config_json(config, "bfloat16"));
  EXPECT_EQ(again.vocab, 300);
  EXPECT_EQ(again.hidden, 48);
  EXPECT_EQ(again.heads, 6);
  EXPECT_EQ(again.kv_heads, 2);
  EXPECT_EQ(again.head_dim, 8);
  EXPECT_EQ(again.layers, 3);
  EXPECT_EQ(again.intermediate, config.intermediate);
  EXPECT_TRUE(again.tied_head);
  EXPECT_DOUBLE_EQ(again.rope_theta, 5000);
  EXPECT_DOUBLE_EQ(again.norm_eps, config.norm_eps);
}

TEST_F(Config, WhatCannotBeComputedIsRefused) {
  const auto with = [](const std::string& key, const std::string& value) {
    return R"({"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
      "num_attention_heads": 2, )" +
           ("\"" + key + "\": " + value + "}");
  };
  EXPECT_NE(refusal("[]").find("not a JSON object"), std::string::npos);
  EXPECT_NE(refusal(R"({"model_type": "gpt2"})").find("model_type 'gpt2', but llama, mistral or qwen2"),
            std::string::npos);
  EXPECT_NE(refusal(R"({"model_type": "llama"})").find("lacks 'vocab_size'"), std::string::npos);
  EXPECT_NE(refusal(with("hidden_act", "\"gelu\"")).find("hidden_act 'gelu'"), std::string::npos);
  EXPECT_NE(refusal(with("num_key_value_heads", "3")).find("2 heads cannot share 3"), std::string::npos);
  EXPECT_NE(refusal(with("num_key_value_heads", "\"2\"")).find("num_key_value_heads \"2\""), std::string::npos);
  EXPECT_NE(refusal(with("num_key_value_heads", "-2")).find("whole number from 1 up"), std::string::npos);
  EXPECT_NE(refusal(with("head_dim", "3")).find("is odd"), std::string::npos);
  EXPECT_NE(refusal(with("rope_scaling", R"({"rope_type": "yarn", "factor": 4})")).find("'yarn'"), std::string::npos);
  EXPECT_NE(refusal(with("partial_rotary_factor", "0.5")).find("only a part of each head"), std::string::npos);
  EXPECT_NE(refusal(with("rms_norm_eps", "0")).find("rms_norm_eps 0"), std::string::npos);
  fs::remove(folder_ / "config.json");
  EXPECT_THROW(read_decoder_config(folder_.string()), Error);
}

/// A file in which every value is another one.
std::string distinct(const std::string& more = "", const std::string& type = "llama") {
  return R"({"model_type": ")" + type +
         R"(", "vocab_size": 301, "hidden_size": 48, "intermediate_size": 77, "num_hidden_layers": 5,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 99, "rms_norm_eps": 0.003,
    "initializer_range": 0.07, "rope_theta": 1234.5)" +
         (more.empty() ? "" : ", " + more) + "}";
}

TEST_F(Config, EveryValueIsReadFromItsKey) {
  const DecoderConfig c = read(distinct());
  EXPECT_EQ(c.model_type, "llama");
  EXPECT_EQ(c.vocab, 301);
  EXPECT_EQ(c.hidden, 48);
  EXPECT_EQ(c.intermediate, 77);
  EXPECT_EQ(c.layers, 5);
  EXPECT_EQ(c.heads, 6);
  EXPECT_EQ(c.kv_heads, 2);
  EXPECT_EQ(c.head_dim, 10);
  EXPECT_EQ(c.positions, 99);
  EXPECT_EQ(c.norm_eps, 0.003);
  EXPECT_EQ(c.init_std, 0.07);
  EXPECT_EQ(c.rope_theta, 1234.5);
  EXPECT_FALSE(c.tied_head || c.qkv_bias || c.output_bias || c.mlp_bias || c.rope_scaling);
  EXPECT_EQ(c.source, distinct());
}

TEST_F(Config, WhatIsLeftOutHasTheFamilysDefaults) {
  const DecoderConfig c = read(R"({"model_type": "mistral", "vocab_size": 8, "hidden_size": 24, "intermediate_size": 7,
    "num_hidden_layers": 1, "num_attention_heads": 3, "num_key_value_heads": null})");
  EXPECT_EQ(c.kv_heads, 3);
  EXPECT_EQ(c.head_dim, 8);
  EXPECT_EQ(c.positions, 2048);
  EXPECT_EQ(c.norm_eps, 1e-6);
  EXPECT_EQ(c.init_std, 0.02);
  EXPECT_EQ(c.rope_theta, 10000);
  EXPECT_EQ(c.sliding_window, 0);
}

TEST_F(Config, BiasesAreThoseOfTheModelType) {
  const auto biases = [&](const std::string& more, const std::string& type) {
    const DecoderConfig c = read(distinct(more, type));
    return std::string(c.qkv_bias ? "q" : "") + (c.output_bias ? "o" : "") + (c.mlp_bias ? "m" : "");
  };
  for (const char* type : {"llama", "mistral"}) {
    EXPECT_EQ(biases("", type), "");
    EXPECT_EQ(biases(R"("attention_bias": true)", type), "qo");
    EXPECT_EQ(biases(R"("attention_bias": false, "mlp_bias": true)", type), "m");
  }
  EXPECT_EQ(biases("", "qwen2"), "q");
  EXPECT_EQ(biases(R"("attention_bias": true)", "qwen2"), "q");
  EXPECT_EQ(biases(R"("attention_bias": false)", "qwen2"), "q");
}

TEST_F(Config, ASlidingWindowCountsWhereItIsUsed) {
  const auto window = [&](const std::string& more, const std::string& type) {
    return read(distinct(more, type)).sliding_window;
  };
  EXPECT_EQ(window(R"("sliding_window": 33)", "mistral"), 33);
  EXPECT_EQ(window(R"("sliding_window": null)", "mistral"), 0);
  EXPECT_EQ(window(R"("sliding_window": 33)", "qwen2"), 0);
  EXPECT_EQ(window(R"("sliding_window": 33, "use_sliding_window": true)", "qwen2"), 33);
  EXPECT_EQ(window(R"("sliding_window": 33, "use_sliding_window": false)", "llama"), 0);
}

TEST_F(Config, RopeIsReadFromOldAndNewFiles) {
  const auto rope = [&](const std::string& more) { return read(distinct(more)); };
  EXPECT_FALSE(rope(R"("rope_scaling": {"rope_type": "default", "factor": 4})").rope_scaling);
  EXPECT_FALSE(rope(R"("rope_scaling": null)").rope_scaling);
  for (const char* key : {"type", "rope_type"}) {
    const DecoderConfig linear = rope("\"rope_scaling\": {\"" + std::string(key) + "\": \"linear\", \"factor\": 3}");
    EXPECT_EQ(linear.rope_scaling->kind, RopeScaling::Kind::linear);
    EXPECT_EQ(linear.rope_scaling->factor, 3);
    EXPECT_EQ(linear.rope_theta, 1234.5);
  }
  const DecoderConfig llama3 = rope(R"("rope_parameters": {"rope_type": "llama3", "factor": 5, "low_freq_factor": 1.5,
    "high_freq_factor": 2.5, "original_max_position_embeddings": 777, "rope_theta": 44.0},
    "rope_scaling": {"rope_type": "linear", "factor": 9})");
  EXPECT_EQ(llama3.rope_scaling->kind, RopeScaling::Kind::llama3);
  EXPECT_EQ(llama3.rope_scaling->factor, 5);
  EXPECT_EQ(llama3.rope_scaling->low_freq_factor, 1.5);
  EXPECT_EQ(llama3.rope_scaling->high_freq_factor, 2.5);
  EXPECT_EQ(llama3.rope_scaling->original_positions, 777);
  EXPECT_EQ(llama3.rope_theta, 44);
  EXPECT_NE(refusal(distinct(R"("rope_scaling": {"rope_type": "llama3", "low_freq_factor": 4, "high_freq_factor": 4})"))
                .find("not above"),
            std::string::npos);
  EXPECT_NE(refusal(distinct(R"("rope_scaling": 4)")).find("rope_scaling 4, but an object"), std::string::npos);
}

/// Every key with every wrong form of its type.
TEST_F(Config, EveryKeyIsChecked) {
  using nlohmann::json;
  const std::vector<json> no_number{"4", true, json::array(), json::object()};
  const auto check = [&](const char* key, std::vector<json> wrong) {
    for (const json& value : wrong) {
      json document = json::parse(distinct());
      document[key] = value;
      EXPECT_NE(refusal(document.dump()).find(key), std::string::npos) << key << " " << value;
    }
  };
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                          "num_key_value_heads", "head_dim", "max_position_embeddings"}) {
    std::vector<json> wrong = no_number;
    for (const json& value : {json(0), json(-1), json(1.5), json((std::int64_t{1} << 40) + 1)}) wrong.push_back(value);
    check(key, wrong);
    const bool needed = std::string(key) != "num_key_value_heads" && std::string(key) != "head_dim" &&
                        std::string(key) != "max_position_embeddings";
    json without = json::parse(distinct());
    without.erase(key);
    if (needed) {
      EXPECT_NE(refusal(without.dump()).find("lacks '" + std::string(key)), std::string::npos);
    }
  }
  for (const char* key : {"rms_norm_eps", "initializer_range", "rope_theta", "partial_rotary_factor"}) {
    std::vector<json> wrong = no_number;
    wrong.insert(wrong.end(), {json(0), json(-1)});
    if (std::string(key) != "partial_rotary_factor") check(key, wrong);
    json document = json::parse(distinct());
    document[key] = -1;
    EXPECT_NE(refusal(document.dump()), "(was read)") << key;
  }
  for (const char* key : {"tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"})
    check(key, {1, 0, "true"});
  for (const char* key : {"model_type", "hidden_act"}) check(key, {1, true});
  check("num_attention_heads", {0});
  json odd = json::parse(distinct());
  odd.erase("head_dim");
  odd["hidden_size"] = 49;
  EXPECT_NE(refusal(odd.dump()).find("hidden_size 49, which 6 heads do not divide"), std::string::npos);
  EXPECT_EQ(read(distinct("\"partial_rotary_factor\": 1.0")).head_dim, 10);
}

TEST_F(Config, SizesOfARandomModelAreChecked) {
  const auto said = [](std::int64_t DecoderConfig::*field, std::int64_t value) -> std::string {
    DecoderConfig config;
    config.*field = value;
    try {
      config.check("the flags");
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_argument);
      return error.what();
    }
    return "(was taken)";
  };
  const std::vector<std::pair<std::int64_t DecoderConfig::*, std::string>> fields{
      {&DecoderConfig::vocab, "vocabulary"},
      {&DecoderConfig::hidden, "hidden size"},
      {&DecoderConfig::intermediate, "intermediate size"},
      {&DecoderConfig::layers, "number of layers"},
      {&DecoderConfig::heads, "number of heads"},
      {&DecoderConfig::kv_heads, "number of key-value heads"},
      {&DecoderConfig::head_dim, "head size"},
      {&DecoderConfig::positions, "number of positions"}};
  for (const auto& [field, name] : fields)
    for (const std::int64_t value : {0, -1})
      EXPECT_EQ(said(field, value),
                "the flags: the " + name + " is " + std::to_string(value) + ", but at least 1 was expected");
  EXPECT_EQ(said(&DecoderConfig::kv_heads, 3),
            "the flags: 4 heads cannot share 3 key-value heads; a divisor was expected");
  EXPECT_EQ(said(&DecoderConfig::kv_heads, 2), "(was taken)");
  EXPECT_EQ(said(&DecoderConfig::kv_heads, 8),
            "the flags: 4 heads cannot share 8 key-value heads; a divisor was expected");
  EXPECT_NE(said(&DecoderConfig::head_dim, 33).find("is odd"), std::string::npos);
  EXPECT_EQ(said(&DecoderConfig::vocab, 1), "(was taken)");
}

TEST_F(Config, WhatIsWrittenHasEveryValue) {
  DecoderConfig c;
  c.vocab = 301;
  c.hidden = 48;
  c.intermediate = 77;
  c.layers = 5;
  c.heads = 6;
  c.kv_heads = 2;
  c.head_dim = 10;
  c.positions = 99;
  c.norm_eps = 0.003;
  c.init_std = 0.07;
  c.rope_theta = 1234.5;
  const auto written = nlohmann::json::parse(decoder_config_json(c, "float32"));
  EXPECT_EQ(written,
            nlohmann::json::parse(
                R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 301, "hidden_size": 48,
    "num_hidden_layers": 5, "intermediate_size": 77, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10, "hidden_act": "silu",
    "max_position_embeddings": 99, "rms_norm_eps": 0.003, "rope_theta": 1234.5, "initializer_range": 0.07, "tie_word_embeddings": false,
    "attention_bias": false, "mlp_bias": false, "bos_token_id": null, "eos_token_id": null, "use_cache": true, "torch_dtype": "float32"})"));
  // A newer file says `dtype`, and stays as it is otherwise.
  const std::string newer = distinct(R"("dtype": "float16", "custom": [1, {"a": null}])");
  auto expected = nlohmann::json::parse(newer);
  expected["dtype"] = "bfloat16";
  EXPECT_EQ(nlohmann::json::parse(decoder_config_json(read(newer), "bfloat16")), expected);
}

}  // namespace
}  // namespace regatta::finetune
