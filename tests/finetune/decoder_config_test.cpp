#include "cli/finetune/decoder_config.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

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

}  // namespace
}  // namespace regatta::finetune
