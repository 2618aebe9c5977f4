#include "cli/finetune/decoder.h"

#include <ATen/ATen.h>
#include <torch/types.h>

#include <cmath>
#include <numbers>

#include "cli/finetune/token_data.h"

namespace regatta::finetune {

namespace {

/// Turns per position of each pair of coordinates, in radians.
std::vector<double> frequencies(const DecoderConfig& config) {
  std::vector<double> result;
  for (std::int64_t i = 0; i < config.head_dim / 2; ++i) {
    double frequency =
        std::pow(config.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim));
    if (config.rope_scaling) {
      const RopeScaling& scaling = *config.rope_scaling;
      const double stretched = frequency / scaling.factor;
      if (scaling.kind == RopeScaling::Kind::linear) {
        frequency = stretched;
      } else {
        // Long waves are stretched, short ones kept, those between blended by how often they fit the original length.
        const double turns = scaling.original_positions * frequency / (2 * std::numbers::pi);
        const double kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
        frequency = kept <= 0 ? stretched : kept >= 1 ? frequency : (1 - kept) * stretched + kept * frequency;
      }
    }
    result.push_back(frequency);
  }
  return result;
}

}  // namespace

Projection::Projection(std::int64_t in, std::int64_t out, bool bias, at::ScalarType type) {
  weight_ = register_parameter("weight", at::empty({out, in}, type));
  if (bias) bias_ = register_parameter("bias", at::empty({out}, type));
}

at::Tensor Projection::forward(const at::Tensor& x) const { return at::linear(x, weight_, bias_); }

RmsNorm::RmsNorm(std::int64_t size, double eps, at::ScalarType type) : eps_(eps) {
  weight_ = register_parameter("weight", at::empty({size}, type));
}

at::Tensor RmsNorm::forward(const at::Tensor& x) const {
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor scale = at::rsqrt(at::mean(wide * wide, -1, true) + eps_);
  return weight_ * (wide * scale).to(x.scalar_type());
}

Positions make_positions(const DecoderConfig& config, std::int64_t length, at::ScalarType type) {
  const std::vector<double> turns = frequencies(config);
  const std::int64_t half = config.head_dim / 2;
  at::Tensor cosine = at::empty({length, half}, at::kFloat);
  at::Tensor sine = at::empty({length, half}, at::kFloat);
  for (std::int64_t t = 0; t < length; ++t) {
    for (std::int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(t) * turns[static_cast<std::size_t>(i)];
      cosine.data_ptr<float>()[t * half + i] = static_cast<float>(std::cos(angle));
      sine.data_ptr<float>()[t * half + i] = static_cast<float>(std::sin(angle));
    }
  }
  // Finite, so that no product with 0 makes NaN, and far below any score.
  const at::Tensor mask = at::triu(at::full({length, length}, -1e30, at::kFloat), 1);
  return {cosine.to(type), sine.to(type), mask.repeat({config.heads / config.kv_heads, 1}).to(type)};
}

at::Tensor rotate(const at::Tensor& x, const Positions& positions) {
  const std::vector<at::Tensor> halves = x.chunk(2, -1);
  return at::cat({at::addcmul(halves[0] * positions.cosine, halves[1], positions.sine, -1),
                  at::addcmul(halves[1] * positions.cosine, halves[0], positions.sine)},
                 -1);
}

Attention::Attention(const DecoderConfig& config, at::ScalarType type)
    : heads_(config.heads), kv_heads_(config.kv_heads), head_dim_(config.head_dim) {
  const auto projection = [&](const char* name, std::int64_t in, std::int64_t out, bool bias) {
    return register_module(name, std::make_shared<Projection>(in, out, bias, type));
  };
  q_ = projection("q_proj", config.hidden, heads_ * head_dim_, config.qkv_bias);
  k_ = projection("k_proj", config.hidden, kv_heads_ * head_dim_, config.qkv_bias);
  v_ = projection("v_proj", config.hidden, kv_heads_ * head_dim_, config.qkv_bias);
  o_ = projection("o_proj", heads_ * head_dim_, config.hidden, config.output_bias);
}

at::Tensor Attention::forward(const at::Tensor& x, const Positions& positions) const {
  const std::int64_t batch = x.size(0);
  const std::int64_t length = x.size(1);
  const std::int64_t sharers = heads_ / kv_heads_;  // query heads per key-value head
  // The sharers of a key-value head lie one under another, so keys and values are never repeated.
  const at::Tensor q =
      rotate(q_->forward(x).view({batch, length, kv_heads_, sharers, head_dim_}).permute({0, 2, 3, 1, 4}), positions)
          .reshape({batch * kv_heads_, sharers * length, head_dim_});
  const at::Tensor k =
      rotate(k_->forward(x).view({batch, length, kv_heads_, head_dim_}).permute({0, 2, 1, 3}), positions)
          .reshape({batch * kv_heads_, length, head_dim_});
  const at::Tensor v = v_->forward(x)
                           .view({batch, length, kv_heads_, head_dim_})
                           .permute({0, 2, 1, 3})
                           .reshape({batch * kv_heads_, length, head_dim_});
  const double scale = 1 / std::sqrt(static_cast<double>(head_dim_));
  const at::Tensor scores =
      at::baddbmm(positions.mask.expand({batch * kv_heads_, sharers * length, length}), q, k.transpose(1, 2), 1, scale);
  const at::Tensor mixed = at::bmm(at::softmax(scores, -1), v)
                               .view({batch, kv_heads_, sharers, length, head_dim_})
                               .permute({0, 3, 1, 2, 4})
                               .reshape({batch, length, heads_ * head_dim_});
  return o_->forward(mixed);
}

Mlp::Mlp(const DecoderConfig& config, at::ScalarType type) {
  gate_ = register_module("gate_proj",
                          std::make_shared<Projection>(config.hidden, config.intermediate, config.mlp_bias, type));
  up_ = register_module("up_proj",
                        std::make_shared<Projection>(config.hidden, config.intermediate, config.mlp_bias, type));
  down_ = register_module("down_proj",
                          std::make_shared<Projection>(config.intermediate, config.hidden, config.mlp_bias, type));
}

at::Tensor Mlp::forward(const at::Tensor& x) const {
  return down_->forward(at::silu(gate_->forward(x)) * up_->forward(x));
}

DecoderLayer::DecoderLayer(const DecoderConfig& config, at::ScalarType type) {
  attention_ = register_module("self_attn", std::make_shared<Attention>(config, type));
  mlp_ = register_module("mlp", std::make_shared<Mlp>(config, type));
  input_norm_ = register_module("input_layernorm", std::make_shared<RmsNorm>(config.hidden, config.norm_eps, type));
  attention_norm_ =
      register_module("post_attention_layernorm", std::make_shared<RmsNorm>(config.hidden, config.norm_eps, type));
}

at::Tensor DecoderLayer::forward(const at::Tensor& x, const Positions& positions) const {
  const at::Tensor y = x + attention_->forward(input_norm_->forward(x), positions);
  return y + mlp_->forward(attention_norm_->forward(y));
}

namespace {

/// Only there to give parameters the names that checkpoints use.
class Names : public torch::nn::Module {};

}  // namespace

Decoder::Decoder(const DecoderConfig& config, at::ScalarType type) : config_(config), type_(type) {
  const auto body = register_module("model", std::make_shared<Names>());
  const auto embed = body->register_module("embed_tokens", std::make_shared<Names>());
  embedding_ = embed->register_parameter("weight", at::empty({config.vocab, config.hidden}, type));
  const auto layers = body->register_module("layers", std::make_shared<Names>());
  for (std::int64_t i = 0; i < config.layers; ++i) {
    layers_.push_back(layers->register_module(std::to_string(i), std::make_shared<DecoderLayer>(config, type)));
  }
  norm_ = body->register_module("norm", std::make_shared<RmsNorm>(config.hidden, config.norm_eps, type));
  if (!config.tied_head)
    head_ = register_module("lm_head", std::make_shared<Projection>(config.hidden, config.vocab, false, type));
}

at::Tensor Decoder::forward(const at::Tensor& tokens) {
  if (tokens.size(1) != positions_length_) {
    positions_length_ = tokens.size(1);
    positions_ = make_positions(config_, positions_length_, type_);
  }
  at::Tensor x = at::embedding(embedding_, tokens);
  for (const auto& layer : layers_) x = layer->forward(x, positions_);
  x = norm_->forward(x);
  return head_ ? head_->forward(x) : at::linear(x, embedding_);
}

at::Tensor Decoder::loss(const at::Tensor& tokens) {
  const std::int64_t length = tokens.size(1) - 1;
  const at::Tensor logits = forward(tokens.narrow(1, 0, length));
  return at::cross_entropy_loss(logits.reshape({-1, config_.vocab}).to(at::kFloat),
                                tokens.narrow(1, 1, length).reshape(-1));
}

void init_random(Decoder& decoder, std::uint64_t seed) {
  // Four 16-bit uniforms on (0, 1): mean 2, variance 4/12.
  const double scale = decoder.config().init_std * std::sqrt(3.0) / 65536;
  for (const auto& item : decoder.named_parameters()) {
    const std::string& name = item.key();
    at::Tensor values = item.value().detach();
    if (values.dim() < 2) {
      values.fill_(name.ends_with("bias") ? 0 : 1);
      continue;
    }
    std::uint64_t key = mix(seed);
    for (const char character : name) key = mix(key ^ static_cast<unsigned char>(character));
    const at::Tensor wide = at::empty(values.sizes(), at::kFloat);
    float* out = wide.data_ptr<float>();
    for (std::int64_t i = 0; i < wide.numel(); ++i) {
      const std::uint64_t bits = mix(key + static_cast<std::uint64_t>(i) * 0x9e3779b97f4a7c15U);
      const auto sum =
          static_cast<double>((bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48));
      out[i] = static_cast<float>((sum + 2 - 2 * 65536) * scale);
    }
    values.copy_(wide);
  }
}

}  // namespace regatta::finetune
