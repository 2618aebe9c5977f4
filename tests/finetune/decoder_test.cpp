#include "cli/finetune/decoder.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/finetune/decoder_reference.h"
#include "tests/finetune/small_decoder.h"

namespace regatta::finetune {
namespace {

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
  if (c.rope_scaling) {
    model.stretch = c.rope_scaling->factor;
    if (c.rope_scaling->kind == RopeScaling::Kind::llama3) {
      model.low = c.rope_scaling->low_freq_factor;
      model.high = c.rope_scaling->high_freq_factor;
      model.original = c.rope_scaling->original_positions;
    }
  }
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
double worst_logit(Decoder& decoder, const std::vector<std::vector<std::int64_t>>& rows = two_rows) {
  const reference::Model model = reference_of(decoder);
  const at::Tensor logits = decoder.forward(tensor_of(rows)).to(at::kDouble).contiguous();
  double worst = 0;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const std::vector<reference::Vector> expected = model.logits(rows[r]);
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

/// Every branch of the configuration at least once, several together.
std::vector<DecoderConfig> all_kinds() {
  std::vector<DecoderConfig> kinds(6, small_config());
  kinds[0].qkv_bias = true;
  kinds[1].tied_head = true;
  kinds[1].kv_heads = 1;
  kinds[1].rope_scaling = RopeScaling{RopeScaling::Kind::linear, 3};
  kinds[2].kv_heads = 6;
  kinds[2].output_bias = true;
  kinds[2].norm_eps = 0.5;
  kinds[3].mlp_bias = true;
  kinds[3].head_dim = 8;
  kinds[3].rope_theta = 1e4;  // 1, 0.1, 0.01 and 0.001 radians: 4.8, 0.48, 0.048 and 0.0048 turns of 30
  kinds[3].rope_scaling = RopeScaling{RopeScaling::Kind::llama3, 2, 0.25, 0.75, 30};
  kinds[4].qkv_bias = kinds[4].output_bias = kinds[4].mlp_bias = true;
  kinds[4].layers = 3;
  kinds[4].kv_heads = 3;
  kinds[5].heads = 1;
  kinds[5].kv_heads = 1;
  kinds[5].head_dim = 2;
  kinds[5].layers = 1;
  return kinds;
}

TEST(Decoder, EveryKindHasTheLogitsOfTheFormulasAtEveryLength) {
  int kind = 0;
  for (const DecoderConfig& config : all_kinds()) {
    Decoder decoder(config, at::kFloat);
    randomise(decoder, 20 + static_cast<std::uint64_t>(kind));
    // Lengths that grow, shrink and return, on the same decoder.
    for (const std::size_t length : {7U, 3U, 9U, 1U, 7U}) {
      std::vector<std::vector<std::int64_t>> rows(length % 3 + 1, std::vector<std::int64_t>(length));
      std::int64_t token = 3;
      for (auto& row : rows)
        for (std::int64_t& each : row) each = token = (token * 7 + 5) % 11;
      EXPECT_LT(worst_logit(decoder, rows), 5e-5) << "kind " << kind << ", length " << length;
    }
    ++kind;
  }
}

TEST(Decoder, EveryKindLosesWhatTheFormulasSay) {
  int kind = 0;
  for (const DecoderConfig& config : all_kinds()) {
    Decoder decoder(config, at::kFloat);
    randomise(decoder, 40);
    const reference::Model model = reference_of(decoder);
    using Rows = std::vector<std::vector<std::int64_t>>;
    for (const Rows& rows : {two_rows, Rows{{4, 10}}, Rows{{1, 2, 3}, {10, 0, 10}, {5, 5, 5}}}) {
      double expected = 0;
      for (const auto& row : rows) expected += model.loss(row) / static_cast<double>(rows.size());
      EXPECT_NEAR(decoder.loss(tensor_of(rows)).item<float>(), expected, 2e-5) << "kind " << kind;
    }
    ++kind;
  }
}

TEST(Decoder, LossIsTheMeanCrossEntropy) {
  Decoder decoder(small_config(), at::kFloat);
  randomise(decoder, 9);
  const reference::Model model = reference_of(decoder);
  const double expected = (model.loss(two_rows[0]) + model.loss(two_rows[1])) / 2;
  EXPECT_NEAR(decoder.loss(tensor_of(two_rows)).item<float>(), expected, 1e-5);
}

/// Of every kind; and backward twice gives twice as much.
TEST(Decoder, GradientsAreSlopesOfTheReference) {
  int kind = 0;
  for (const DecoderConfig& config : all_kinds()) {
    Decoder decoder(config, at::kFloat);
    randomise(decoder, 10);
    const int passes = 1 + kind % 2;
    for (int pass = 0; pass < passes; ++pass) decoder.loss(tensor_of(two_rows)).backward();
    reference::Model model = reference_of(decoder);
    const auto loss = [&] { return (model.loss(two_rows[0]) + model.loss(two_rows[1])) / 2; };
    for (const auto& item : decoder.named_parameters()) {
      const at::Tensor grad = item.value().grad().reshape(-1);
      ASSERT_TRUE(grad.defined()) << item.key();
      reference::Vector& weights = model.weights.at(item.key());
      for (std::size_t i = 0; i < weights.size(); i += 1 + weights.size() / 5) {
        constexpr double h = 1e-4;
        const double kept = weights[i];
        weights[i] = kept + h;
        const double above = loss();
        weights[i] = kept - h;
        const double below = loss();
        weights[i] = kept;
        const double slope = passes * (above - below) / (2 * h);
        EXPECT_NEAR(grad[static_cast<std::int64_t>(i)].item<float>(), slope, 4e-5 + 2e-4 * std::abs(slope))
            << "kind " << kind << ", " << item.key() << " [" << i << "]";
      }
    }
    ++kind;
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

TEST(Decoder, Bf16StaysNearTheFormulas) {
  for (const DecoderConfig& config : all_kinds()) {
    Decoder decoder(config, at::kBFloat16);
    randomise(decoder, 12);
    const reference::Model model = reference_of(decoder);
    const double expected = (model.loss(two_rows[0]) + model.loss(two_rows[1])) / 2;
    EXPECT_NEAR(decoder.loss(tensor_of(two_rows)).item<float>(), expected, 0.05 * expected);
  }
}

}  // namespace
}  // namespace regatta::finetune
