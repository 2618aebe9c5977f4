#pragma once
// A Llama-family decoder in LibTorch: RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied or untied head.
// Parameter names are those of Hugging Face checkpoints. One decoder per rank, used by that rank's thread only. CPU.
//
// On several tensor-parallel ranks each holds whole heads, a part of the MLP's width and a part of the vocabulary; the
// residual stream, norms and the loss are the same bits on all of them.

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "cli/finetune/decoder_config.h"
#include "cli/finetune/decoder_shards.h"
#include "cli/finetune/tensor_group.h"

namespace regatta::finetune {

/// The parameters that a rank holds, by name; what modules are made of.
class Shapes {
 public:
  Shapes(const std::vector<ParamShard>& shards, at::ScalarType type) : shards_(shards), type_(type) {}
  /// An uninitialised tensor of the local shape; undefined when the decoder has no such parameter.
  at::Tensor make(const std::string& name) const;

 private:
  const std::vector<ParamShard>& shards_;
  at::ScalarType type_;
};

/// y = x weight^T + bias on this rank's part of the weight.
class Projection : public torch::nn::Module {
 public:
  Projection(const Shapes& shapes, const std::string& name);
  at::Tensor forward(const at::Tensor& x) const;
  /// For a weight that is cut by columns: the sum of the peers' parts; the bias is added once.
  at::Tensor forward_sum(const at::Tensor& x, TensorGroup& group) const;

 private:
  at::Tensor weight_, bias_;
};

/// y = x / sqrt(mean(x^2) + eps) * weight, the quotient in fp32.
class RmsNorm : public torch::nn::Module {
 public:
  RmsNorm(const Shapes& shapes, const std::string& name, double eps);
  at::Tensor forward(const at::Tensor& x) const;

 private:
  double eps_;
  at::Tensor weight_;
};

/// What all layers of one pass need of the sequence length: rotation tables [T, head_dim / 2] and the causal mask.
struct Positions {
  at::Tensor cosine, sine;
  at::Tensor mask;  ///< [T * sharers, T], 0 or a very negative number
};
/// `sharers` are the query heads of one rank that use the same key-value head.
Positions make_positions(const DecoderConfig& config, std::int64_t length, std::int64_t sharers, at::ScalarType type);

/// Rotates x [..., T, head_dim] by its position; the two halves of a head are the two coordinates.
at::Tensor rotate(const at::Tensor& x, const Positions& positions);

/// The attention heads of one tensor-parallel rank. With fewer key-value heads than ranks every rank computes all of
/// them and uses one.
struct HeadShare {
  std::int64_t heads = 0;     ///< query heads
  std::int64_t kv_heads = 0;  ///< used here
  std::int64_t head_dim = 0;
  std::int64_t replicated_kv = -1;  ///< the one used here of all that are computed; -1: what is computed is used
};
HeadShare share_heads(const DecoderConfig& config, int tp_size, int tp_rank);

class Attention : public torch::nn::Module {
 public:
  Attention(const HeadShare& share, const Shapes& shapes, const std::string& name);
  /// `positions` for the heads of one rank.
  at::Tensor forward(const at::Tensor& x, const Positions& positions, TensorGroup& group) const;

 private:
  HeadShare share_;
  std::shared_ptr<Projection> q_, k_, v_, o_;
};

class Mlp : public torch::nn::Module {
 public:
  Mlp(const Shapes& shapes, const std::string& name);
  at::Tensor forward(const at::Tensor& x, TensorGroup& group) const;

 private:
  std::shared_ptr<Projection> gate_, up_, down_;
};

class DecoderLayer : public torch::nn::Module {
 public:
  DecoderLayer(const DecoderConfig& config, const HeadShare& share, const Shapes& shapes, const std::string& name);
  at::Tensor forward(const at::Tensor& x, const Positions& positions, TensorGroup& group) const;

 private:
  std::shared_ptr<RmsNorm> input_norm_, attention_norm_;
  std::shared_ptr<Attention> attention_;
  std::shared_ptr<Mlp> mlp_;
};

class Decoder : public torch::nn::Module {
 public:
  /// This rank's part of the decoder on the tp axis of `mesh`; all of it without one.
  Decoder(const DecoderConfig& config, at::ScalarType type, const sharding::Mesh& mesh = sharding::Mesh(),
          int rank = 0);

  const DecoderConfig& config() const { return config_; }
  const std::vector<ParamShard>& shards() const { return shards_; }
  /// The tensor-parallel peers; needed before forward() when there are any. Throws Error(invalid_argument) unless there
  /// are as many as the decoder was split for.
  void join(std::shared_ptr<TensorGroup> group);
  TensorGroup& group() const { return *group_; }

  /// tokens [B, T] of int64 -> logits [B, T, this rank's part of the vocabulary].
  at::Tensor forward(const at::Tensor& tokens);
  /// Mean cross-entropy of predicting tokens[:, 1:] from tokens[:, :-1], in fp32; the same on all peers.
  at::Tensor loss(const at::Tensor& tokens);

 private:
  at::Tensor embed(const at::Tensor& tokens);

  DecoderConfig config_;
  std::vector<ParamShard> shards_;
  HeadShare share_;
  std::shared_ptr<TensorGroup> group_;
  Range vocab_;  ///< of this rank
  int tp_size_;
  at::ScalarType type_;
  at::Tensor embedding_;
  std::vector<std::shared_ptr<DecoderLayer>> layers_;
  std::shared_ptr<RmsNorm> norm_;
  std::shared_ptr<Projection> head_;  ///< null when tied
  Positions positions_;               ///< of the last length seen
  std::int64_t positions_length_ = -1;
};

/// Norm weights 1, biases 0, everything else about normal with standard deviation config.init_std: the sum of four
/// uniforms, so that the values depend on seed, name and global index only, on any machine and any number of ranks.
void init_random(Decoder& decoder, std::uint64_t seed);

}  // namespace regatta::finetune
