#include "cli/finetune/decoder.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/finetune/decoder_reference.h"

namespace regatta::finetune {
namespace {

DecoderConfig small_config() {
  DecoderConfig config;
  config.vocab = 11;
  config.hidden = 12;
  config.intermediate = 20;
  config.layers = 2;
  config.heads = 6;
  config.kv_heads = 2;
  config.head_dim = 4;
  config.rope_theta = 100;
  config.norm_eps = 1e-5;
  config.init_std = 0.4;
  return config;
}

/// Norms and biases too, so that nothing is multiplied by one or added to zero unnoticed.
void randomise(Decoder& decoder, std::uint64_t seed) {
  init_random(decoder, seed);
  int n = 0;
  for (const auto& item : decoder.named_parameters()) {
    if (item.value().dim() < 2) {
      at::Tensor values = item.value().detach();
      for (std::int64_t i = 0; i < values.numel(); ++i) values[i] = 1 + 0.3 * std::sin(++n);
    }
  }
}

reference::Model reference_of(const Decoder& decoder) {
  const DecoderConfig& c = decoder.config();
  reference::Model model;
  model.hidden = static_cast<int>(c.hidden);
  model.intermediate = static_cast<int>(c.intermediate);
  model.layers = static_cast<int>(c.layers);
  model.heads = static_cast<int>(c.heads);
  model.kv_heads = static_cast<int>(c.kv_heads);
  model.head_dim = static_cast<int>(c.head_dim);
  model.vocab = static_cast<int>(c.vocab);
  model.eps = c.norm_eps;
  model.theta = c.rope_theta;
  model.tied = c.tied_head;
  for (const auto& item : decoder.named_parameters()) {
    const at::Tensor values = item.value().detach().to(at::kDouble).contiguous();
    model.weights[item.key()].assign(values.data_ptr<double>(), values.data_ptr<double>() + values.numel());
  }
  return model;
}

at::Tensor tensor_of(const std::vector<std::vector<std::int64_t>>& rows) {
  at::Tensor tokens =
      at::empty({static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(rows[0].size())}, at::kLong);
  for (std::size_t r = 0; r < rows.size(); ++r)
    std::copy(rows[r].begin(), rows[r].end(), tokens.data_ptr<std::int64_t>() + r * rows[r].size());
  return tokens;
}

const std::vector<std::vector<std::int64_t>> two_rows = {{3, 1, 4, 1, 5, 9, 2}, {6, 5, 3, 10, 0, 7, 8}};

/// Largest difference of the decoder's logits from the reference's.
double worst_logit(Decoder& decoder) {
  const reference::Model model = reference_of(decoder);
  const at::Tensor logits = decoder.forward(tensor_of(two_rows)).to(at::kDouble).contiguous();
  double worst = 0;
  for (std::size_t r = 0; r < two_rows.size(); ++r) {
    const std::vector<reference::Vector> expected = model.logits(two_rows[r]);
    for (std::size_t t = 0; t < expected.size(); ++t)
      for (std::size_t v = 0; v < expected[t].size(); ++v)
        worst = std::max(worst, std::abs(expected[t][v] - logits[r][t][v].item<double>()));
  }
  return worst;
}

TEST(Decoder, HasHuggingFaceNames) {
  DecoderConfig config = small_config();
  config.layers = 1;
  config.qkv_bias = true;
  const Decoder decoder(config, at::kFloat);
  std::vector<std::string> names;
  for (const auto& item : decoder.named_parameters()) names.push_back(item.key());
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names, (std::vector<std::string>{
                       "lm_head.weight", "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight",
                       "model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.gate_proj.weight",
                       "model.layers.0.mlp.up_proj.weight", "model.layers.0.post_attention_layernorm.weight",
                       "model.layers.0.self_attn.k_proj.bias", "model.layers.0.self_attn.k_proj.weight",
                       "model.layers.0.self_attn.o_proj.weight", "model.layers.0.self_attn.q_proj.bias",
                       "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.v_proj.bias",
                       "model.layers.0.self_attn.v_proj.weight", "model.norm.weight"}));
  config.tied_head = true;
  EXPECT_EQ(Decoder(config, at::kFloat).named_parameters().size(), names.size() - 1);
}

TEST(Decoder, LogitsAreThoseOfTheFormulas) {
  for (const bool tied : {false, true}) {
    for (const bool bias : {false, true}) {
      for (const std::int64_t kv_heads : {1, 2, 3, 6}) {
        DecoderConfig config = small_config();
        config.tied_head = tied;
        config.qkv_bias = bias;
        config.kv_heads = kv_heads;
        Decoder decoder(config, at::kFloat);
        randomise(decoder, 7);
        EXPECT_LT(worst_logit(decoder), 2e-5) << "tied " << tied << ", bias " << bias << ", kv heads " << kv_heads;
      }
    }
  }
}

TEST(Decoder, HeadSizeNeedNotDivideHiddenSize) {
  DecoderConfig config = small_config();
  config.head_dim = 10;
  config.mlp_bias = config.output_bias = true;
  Decoder decoder(config, at::kFloat);
  randomise(decoder, 8);
  EXPECT_LT(worst_logit(decoder), 5e-5);
}

TEST(Decoder, LossIsTheMeanCrossEntropy) {
  Decoder decoder(small_config(), at::kFloat);
  randomise(decoder, 9);
  const reference::Model model = reference_of(decoder);
  const double expected = (model.loss(two_rows[0]) + model.loss(two_rows[1])) / 2;
  EXPECT_NEAR(decoder.loss(tensor_of(two_rows)).item<float>(), expected, 1e-5);
}

TEST(Decoder, GradientsAreSlopesOfTheReference) {
  DecoderConfig config = small_config();
  config.layers = 1;
  config.qkv_bias = true;
  Decoder decoder(config, at::kFloat);
  randomise(decoder, 10);
  decoder.loss(tensor_of(two_rows)).backward();
  reference::Model model = reference_of(decoder);
  const auto loss = [&] { return (model.loss(two_rows[0]) + model.loss(two_rows[1])) / 2; };
  for (const auto& item : decoder.named_parameters()) {
    const at::Tensor grad = item.value().grad().reshape(-1);
    reference::Vector& weights = model.weights.at(item.key());
    for (std::size_t i = 0; i < weights.size(); i += 1 + weights.size() / 7) {
      constexpr double h = 1e-4;
      const double kept = weights[i];
      weights[i] = kept + h;
      const double above = loss();
      weights[i] = kept - h;
      const double below = loss();
      weights[i] = kept;
      const double slope = (above - below) / (2 * h);
      EXPECT_NEAR(grad[static_cast<std::int64_t>(i)].item<float>(), slope, 2e-5 + 1e-4 * std::abs(slope))
          << item.key() << " [" << i << "]";
    }
  }
}

TEST(Decoder, LaterTokensDoNotReachEarlierLogits) {
  Decoder decoder(small_config(), at::kFloat);
  randomise(decoder, 11);
  std::vector<std::vector<std::int64_t>> changed = two_rows;
  changed[0][4] = 7;
  const at::Tensor before = decoder.forward(tensor_of(two_rows));
  const at::Tensor after = decoder.forward(tensor_of(changed));
  EXPECT_TRUE(before[0].narrow(0, 0, 4).equal(after[0].narrow(0, 0, 4)));
  EXPECT_FALSE(before[0][4].equal(after[0][4]));
  EXPECT_TRUE(before[1].equal(after[1]));
}

TEST(Rotation, TurnsHalvesByPosition) {
  DecoderConfig config = small_config();  // head size 4, theta 100: 1 and 0.1 radians per position
  const Positions positions = make_positions(config, 3, config.heads / config.kv_heads, at::kFloat);
  at::Tensor x = at::zeros({1, 3, 4}, at::kFloat);
  x[0][1][0] = 1;  // first coordinate of the first pair
  x[0][2][3] = 2;  // second coordinate of the second pair
  const at::Tensor y = rotate(x, positions);
  EXPECT_NEAR(y[0][1][0].item<float>(), 0.5403023, 1e-6);
  EXPECT_NEAR(y[0][1][2].item<float>(), 0.8414710, 1e-6);
  EXPECT_NEAR(y[0][2][1].item<float>(), -2 * 0.1986693, 1e-6);
  EXPECT_NEAR(y[0][2][3].item<float>(), 2 * 0.9800666, 1e-6);
  EXPECT_EQ(y[0][1][1].item<float>(), 0);
}

TEST(Rotation, StretchingKeepsShortWavesAndSlowsLongOnes) {
  DecoderConfig config = small_config();
  config.head_dim = 8;
  config.rope_theta = 1e6;  // radians per position: 1, 0.0316, 0.001, 0.0000316
  const Positions plain = make_positions(config, 2, config.heads / config.kv_heads, at::kFloat);
  config.rope_scaling = RopeScaling{RopeScaling::Kind::llama3, 4, 1, 4, 8192};
  const Positions stretched = make_positions(config, 2, config.heads / config.kv_heads, at::kFloat);
  const auto angle = [](const Positions& p, int i) { return std::asin(p.sine[1][i].item<double>()); };
  // 8192 positions are 1304, 41, 1.3 and 0.04 turns: kept, kept, blended at (1.3038 - 1) / 3, a quarter.
  EXPECT_NEAR(angle(stretched, 1) / angle(plain, 1), 1, 1e-5);
  EXPECT_NEAR(angle(stretched, 2) / angle(plain, 2), 0.25 + 0.75 * 0.303797 / 3, 1e-4);
  EXPECT_NEAR(angle(stretched, 3) / angle(plain, 3), 0.25, 1e-5);
  config.rope_scaling = RopeScaling{RopeScaling::Kind::linear, 4};
  EXPECT_NEAR(angle(make_positions(config, 2, config.heads / config.kv_heads, at::kFloat), 1) / angle(plain, 1), 0.25,
              1e-5);
}

TEST(RandomWeights, DependOnSeedAndNameOnly) {
  DecoderConfig config = small_config();
  config.vocab = 500;
  config.hidden = 64;
  Decoder one(config, at::kFloat), two(config, at::kFloat), other(config, at::kFloat);
  init_random(one, 1);
  init_random(two, 1);
  init_random(other, 2);
  const auto get = [](const Decoder& decoder, const char* name) { return decoder.named_parameters()[name].detach(); };
  EXPECT_TRUE(get(one, "lm_head.weight").equal(get(two, "lm_head.weight")));
  EXPECT_FALSE(get(one, "lm_head.weight").equal(get(other, "lm_head.weight")));
  EXPECT_FALSE(get(one, "lm_head.weight").equal(get(one, "model.embed_tokens.weight")));
  EXPECT_NEAR(get(one, "lm_head.weight").mean().item<float>(), 0, 0.01);
  EXPECT_NEAR(get(one, "lm_head.weight").std().item<float>(), config.init_std, 0.01);
  EXPECT_EQ(get(one, "model.norm.weight").min().item<float>(), 1);
}

TEST(Decoder, Bf16StaysNearTheFormulas) {
  Decoder decoder(small_config(), at::kBFloat16);
  init_random(decoder, 12);
  const reference::Model model = reference_of(decoder);
  const double expected = (model.loss(two_rows[0]) + model.loss(two_rows[1])) / 2;
  EXPECT_NEAR(decoder.loss(tensor_of(two_rows)).item<float>(), expected, 0.05 * expected);
}

}  // namespace
}  // namespace regatta::finetune
