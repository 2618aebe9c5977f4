#pragma once
// A Llama-family decoder in LibTorch: RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied or untied head.
// Parameter names are those of Hugging Face checkpoints. One decoder per rank, used by that rank's thread only. CPU.

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "cli/finetune/decoder_config.h"

namespace regatta::finetune {

/// y = x weight^T + bias. Values are uninitialised.
class Projection : public torch::nn::Module {
 public:
  Projection(std::int64_t in, std::int64_t out, bool bias, at::ScalarType type);
  at::Tensor forward(const at::Tensor& x) const;

 private:
  at::Tensor weight_, bias_;
};

/// y = x / sqrt(mean(x^2) + eps) * weight, the quotient in fp32.
class RmsNorm : public torch::nn::Module {
 public:
  RmsNorm(std::int64_t size, double eps, at::ScalarType type);
  at::Tensor forward(const at::Tensor& x) const;

 private:
  double eps_;
  at::Tensor weight_;
};

/// What all layers of one pass need of the sequence length: rotation tables [T, head_dim / 2] and the causal mask.
struct Positions {
  at::Tensor cosine, sine;
  at::Tensor mask;  ///< [T * heads / kv_heads, T], 0 or a very negative number
};
Positions make_positions(const DecoderConfig& config, std::int64_t length, at::ScalarType type);

/// Rotates x [..., T, head_dim] by its position; the two halves of a head are the two coordinates.
at::Tensor rotate(const at::Tensor& x, const Positions& positions);

class Attention : public torch::nn::Module {
 public:
  Attention(const DecoderConfig& config, at::ScalarType type);
  at::Tensor forward(const at::Tensor& x, const Positions& positions) const;

 private:
  std::int64_t heads_, kv_heads_, head_dim_;
  std::shared_ptr<Projection> q_, k_, v_, o_;
};

class Mlp : public torch::nn::Module {
 public:
  Mlp(const DecoderConfig& config, at::ScalarType type);
  at::Tensor forward(const at::Tensor& x) const;

 private:
  std::shared_ptr<Projection> gate_, up_, down_;
};

class DecoderLayer : public torch::nn::Module {
 public:
  DecoderLayer(const DecoderConfig& config, at::ScalarType type);
  at::Tensor forward(const at::Tensor& x, const Positions& positions) const;

 private:
  std::shared_ptr<RmsNorm> input_norm_, attention_norm_;
  std::shared_ptr<Attention> attention_;
  std::shared_ptr<Mlp> mlp_;
};

class Decoder : public torch::nn::Module {
 public:
  Decoder(const DecoderConfig& config, at::ScalarType type);

  const DecoderConfig& config() const { return config_; }
  /// tokens [B, T] of int64 -> logits [B, T, vocab].
  at::Tensor forward(const at::Tensor& tokens);
  /// Mean cross-entropy of predicting tokens[:, 1:] from tokens[:, :-1], in fp32.
  at::Tensor loss(const at::Tensor& tokens);

 private:
  DecoderConfig config_;
  at::ScalarType type_;
  at::Tensor embedding_;
  std::vector<std::shared_ptr<DecoderLayer>> layers_;
  std::shared_ptr<RmsNorm> norm_;
  std::shared_ptr<Projection> head_;  ///< null when tied
  Positions positions_;               ///< of the last length seen
  std::int64_t positions_length_ = -1;
};

/// Norm weights 1, biases 0, everything else about normal with standard deviation config.init_std: the sum of four
/// uniforms, so that the values depend on seed, name and index only, on any machine.
void init_random(Decoder& decoder, std::uint64_t seed);

}  // namespace regatta::finetune
