#include "cli/finetune/tensor_parallel.h"

#include <gtest/gtest.h>

#include "runtime/error.h"

namespace regatta::finetune {
namespace {

using sharding::Mesh;

const std::string layer = "model.layers.3.";

DecoderConfig config_of(std::int64_t heads, std::int64_t kv_heads, std::int64_t intermediate = 48) {
  DecoderConfig config;
  config.heads = heads;
  config.kv_heads = kv_heads;
  config.intermediate = intermediate;
  return config;
}

std::string placed(const DecoderConfig& config, const std::string& name, const std::string& mesh = "dp=2,tp=4") {
  return decoder_placement(config, name, Mesh::parse(mesh)).text();
}

std::string refusal(const DecoderConfig& config, const std::string& name, const std::string& mesh) {
  try {
    decoder_placement(config, name, Mesh::parse(mesh));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::invalid_argument);
    return error.what();
  }
  return "(was placed)";
}

TEST(TensorParallel, ColumnsThenRowsAsInMegatron) {
  const DecoderConfig config = config_of(8, 4);
  for (const char* name : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"})
    for (const char* kind : {".weight", ".bias"})
      EXPECT_EQ(placed(config, layer + name + kind), "tp:0") << name << kind;
  for (const char* name : {"self_attn.o_proj", "mlp.down_proj"}) {
    EXPECT_EQ(placed(config, layer + name + ".weight"), "tp:1") << name;
    EXPECT_EQ(placed(config, layer + name + ".bias"), "") << name;
  }
  EXPECT_EQ(placed(config, "model.embed_tokens.weight"), "tp:0");
  EXPECT_EQ(placed(config, "lm_head.weight"), "tp:0");
  EXPECT_EQ(placed(config, "model.norm.weight"), "");
  EXPECT_EQ(placed(config, layer + "input_layernorm.weight"), "");
  EXPECT_EQ(placed(config, layer + "post_attention_layernorm.weight"), "");
}

TEST(TensorParallel, NothingIsCutWithoutTheAxis) {
  for (const char* mesh : {"dp=4", "tp=1", "dp=3,tp=1"})
    EXPECT_EQ(placed(config_of(7, 1, 5), layer + "mlp.up_proj.weight", mesh), "") << mesh;
}

TEST(TensorParallel, FewerKeyValueHeadsThanRanksAreReplicated) {
  const DecoderConfig config = config_of(8, 2);
  EXPECT_TRUE(replicates_key_values(config, Mesh::parse("tp=4")));
  EXPECT_FALSE(replicates_key_values(config, Mesh::parse("tp=2")));
  for (const char* name : {"self_attn.k_proj.weight", "self_attn.v_proj.bias"}) {
    EXPECT_EQ(placed(config, layer + name), "") << name;
    EXPECT_EQ(placed(config, layer + name, "tp=2"), "tp:0") << name;
  }
  EXPECT_EQ(placed(config, layer + "self_attn.q_proj.weight"), "tp:0");
}

TEST(TensorParallel, WhatDoesNotDivideIsRefusedInOneSentence) {
  const std::string up = layer + "mlp.up_proj.weight";
  EXPECT_EQ(
      refusal(config_of(14, 2), up, "dp=2,tp=4"),
      "mesh dp=2,tp=4: the model's 14 attention heads cannot be cut evenly 4 ways over tp; a tp that divides them was "
      "expected");
  EXPECT_EQ(refusal(config_of(8, 4, 50), up, "tp=4"),
            "mesh tp=4: the model's intermediate size 50 cannot be cut evenly 4 ways over tp; a tp that divides it was "
            "expected");
  EXPECT_EQ(
      refusal(config_of(12, 6), up, "tp=4"),
      "mesh tp=4: the model's 6 key-value heads cannot be cut evenly 4 ways over tp; a tp that divides them, or is a "
      "multiple of them, was expected");
}

TEST(TensorParallel, AnUnevenVocabularyIsCut) {
  DecoderConfig config = config_of(8, 4);
  config.vocab = 13;
  EXPECT_EQ(placed(config, "model.embed_tokens.weight"), "tp:0");
}

TEST(TensorParallel, UnknownParametersAreRefused) {
  const DecoderConfig config = config_of(8, 4);
  for (const std::string& name :
       {std::string("transformer.h.0.attn.weight"), layer + "mlp.weight", layer + "input_layernorm.bias",
        std::string("model.layers."), std::string("model.layers.3"), layer + "self_attn.q_proj.scale"})
    EXPECT_NE(refusal(config, name, "tp=2").find("parameter " + name + " is not one of a Llama-family decoder"),
              std::string::npos)
        << name;
}

}  // namespace
}  // namespace regatta::finetune
