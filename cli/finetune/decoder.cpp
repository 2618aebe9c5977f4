#include "cli/finetune/decoder.h"

#include <ATen/ATen.h>
#include <torch/types.h>

#include <cmath>
#include <numbers>

#include "cli/finetune/token_data.h"
#include "runtime/error.h"

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

at::Tensor Shapes::make(const std::string& name) const {
  const ParamShard* shard = find_shard(shards_, name);
  return shard ? at::empty(shard->local_shape, type_) : at::Tensor();
}

Projection::Projection(const Shapes& shapes, const std::string& name) {
  weight_ = register_parameter("weight", shapes.make(name + ".weight"));
  const at::Tensor bias = shapes.make(name + ".bias");
  if (bias.defined()) bias_ = register_parameter("bias", bias);
}

at::Tensor Projection::forward(const at::Tensor& x) const { return at::linear(x, weight_, bias_); }

at::Tensor Projection::forward_sum(const at::Tensor& x, TensorGroup& group) const {
  if (group.size() == 1) return forward(x);
  const at::Tensor y = group.sum(at::linear(x, weight_));
  return bias_.defined() ? y + bias_ : y;
}

RmsNorm::RmsNorm(const Shapes& shapes, const std::string& name, double eps) : eps_(eps) {
  weight_ = register_parameter("weight", shapes.make(name + ".weight"));
}

at::Tensor RmsNorm::forward(const at::Tensor& x) const {
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor scale = at::rsqrt(at::mean(wide * wide, -1, true) + eps_);
  return weight_ * (wide * scale).to(x.scalar_type());
}

Positions make_positions(const DecoderConfig& config, std::int64_t length, std::int64_t sharers, at::ScalarType type) {
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
  return {cosine.to(type), sine.to(type), mask.repeat({sharers, 1}).to(type)};
}

at::Tensor rotate(const at::Tensor& x, const Positions& positions) {
  const std::vector<at::Tensor> halves = x.chunk(2, -1);
  return at::cat({at::addcmul(halves[0] * positions.cosine, halves[1], positions.sine, -1),
                  at::addcmul(halves[1] * positions.cosine, halves[0], positions.sine)},
                 -1);
}

HeadShare share_heads(const DecoderConfig& config, int tp_size, int tp_rank) {
  HeadShare share{config.heads / tp_size, config.kv_heads / tp_size, config.head_dim};
  if (config.kv_heads % tp_size != 0) {
    share.kv_heads = 1;
    share.replicated_kv = tp_rank * config.kv_heads / tp_size;
  }
  return share;
}

Attention::Attention(const HeadShare& share, const Shapes& shapes, const std::string& name) : share_(share) {
  const auto projection = [&](const std::string& part) {
    return register_module(part, std::make_shared<Projection>(shapes, name + "." + part));
  };
  q_ = projection("q_proj");
  k_ = projection("k_proj");
  v_ = projection("v_proj");
  o_ = projection("o_proj");
}

at::Tensor Attention::forward(const at::Tensor& x, const Positions& positions, TensorGroup& group) const {
  const std::int64_t batch = x.size(0);
  const std::int64_t length = x.size(1);
  const std::int64_t kv_heads = share_.kv_heads, head_dim = share_.head_dim;
  const std::int64_t sharers = share_.heads / kv_heads;  // query heads per key-value head
  const at::Tensor split_x = group.spread(x);
  // Replicated keys and values see the whole of x's gradient on every rank, so they take x itself; what each rank's
  // own head sends back is added up behind them.
  const auto keys_or_values = [&](const Projection& projection) {
    if (share_.replicated_kv < 0) return projection.forward(split_x);
    return group.spread(projection.forward(x)).narrow(-1, share_.replicated_kv * head_dim, head_dim);
  };
  // The sharers of a key-value head lie one under another, so keys and values are never repeated.
  const at::Tensor q =
      rotate(q_->forward(split_x).view({batch, length, kv_heads, sharers, head_dim}).permute({0, 2, 3, 1, 4}),
             positions)
          .reshape({batch * kv_heads, sharers * length, head_dim});
  const at::Tensor k =
      rotate(keys_or_values(*k_).reshape({batch, length, kv_heads, head_dim}).permute({0, 2, 1, 3}), positions)
          .reshape({batch * kv_heads, length, head_dim});
  const at::Tensor v = keys_or_values(*v_)
                           .reshape({batch, length, kv_heads, head_dim})
                           .permute({0, 2, 1, 3})
                           .reshape({batch * kv_heads, length, head_dim});
  const double scale = 1 / std::sqrt(static_cast<double>(head_dim));
  const at::Tensor scores =
      at::baddbmm(positions.mask.expand({batch * kv_heads, sharers * length, length}), q, k.transpose(1, 2), 1, scale);
  const at::Tensor mixed = at::bmm(at::softmax(scores, -1), v)
                               .view({batch, kv_heads, sharers, length, head_dim})
                               .permute({0, 3, 1, 2, 4})
                               .reshape({batch, length, share_.heads * head_dim});
  return o_->forward_sum(mixed, group);
}

Mlp::Mlp(const Shapes& shapes, const std::string& name) {
  gate_ = register_module("gate_proj", std::make_shared<Projection>(shapes, name + ".gate_proj"));
  up_ = register_module("up_proj", std::make_shared<Projection>(shapes, name + ".up_proj"));
  down_ = register_module("down_proj", std::make_shared<Projection>(shapes, name + ".down_proj"));
}

at::Tensor Mlp::forward(const at::Tensor& x, TensorGroup& group) const {
  const at::Tensor split_x = group.spread(x);
  return down_->forward_sum(at::silu(gate_->forward(split_x)) * up_->forward(split_x), group);
}

DecoderLayer::DecoderLayer(const DecoderConfig& config, const HeadShare& share, const Shapes& shapes,
                           const std::string& name) {
  attention_ = register_module("self_attn", std::make_shared<Attention>(share, shapes, name + ".self_attn"));
  mlp_ = register_module("mlp", std::make_shared<Mlp>(shapes, name + ".mlp"));
  const auto norm = [&](const char* part) {
    return register_module(part, std::make_shared<RmsNorm>(shapes, name + "." + part, config.norm_eps));
  };
  input_norm_ = norm("input_layernorm");
  attention_norm_ = norm("post_attention_layernorm");
}

at::Tensor DecoderLayer::forward(const at::Tensor& x, const Positions& positions, TensorGroup& group) const {
  const at::Tensor y = x + attention_->forward(input_norm_->forward(x), positions, group);
  return y + mlp_->forward(attention_norm_->forward(y), group);
}

namespace {

/// Only there to give parameters the names that checkpoints use.
class Names : public torch::nn::Module {};

}  // namespace

Decoder::Decoder(const DecoderConfig& config, at::ScalarType type, const sharding::Mesh& mesh, int rank)
    : config_(config),
      shards_(decoder_shards(config, mesh, rank)),
      share_(share_heads(config, mesh.size("tp"), mesh.coordinate(rank, "tp"))),
      group_(TensorGroup::alone()),
      vocab_(find_shard(shards_, "model.embed_tokens.weight")->rows),
      tp_size_(mesh.size("tp")),
      type_(type) {
  const Shapes shapes(shards_, type);
  const auto body = register_module("model", std::make_shared<Names>());
  const auto embed = body->register_module("embed_tokens", std::make_shared<Names>());
  embedding_ = embed->register_parameter("weight", shapes.make("model.embed_tokens.weight"));
  const auto layers = body->register_module("layers", std::make_shared<Names>());
  for (std::int64_t i = 0; i < config.layers; ++i) {
    const std::string index = std::to_string(i);
    layers_.push_back(layers->register_module(
        index, std::make_shared<DecoderLayer>(config, share_, shapes, "model.layers." + index)));
  }
  norm_ = body->register_module("norm", std::make_shared<RmsNorm>(shapes, "model.norm", config.norm_eps));
  if (!config.tied_head) head_ = register_module("lm_head", std::make_shared<Projection>(shapes, "lm_head"));
}

void Decoder::join(std::shared_ptr<TensorGroup> group) {
  if (group->size() != tp_size_) {
    throw Error(Code::invalid_argument, "the decoder was split for tp=" + std::to_string(tp_size_) +
                                            ", but its tensor-parallel group has " + std::to_string(group->size()) +
                                            " ranks");
  }
  group_ = std::move(group);
}

at::Tensor Decoder::embed(const at::Tensor& tokens) {
  if (group_->size() == 1) return at::embedding(embedding_, tokens);
  const at::Tensor local = tokens - vocab_.begin;
  const at::Tensor elsewhere = at::logical_or(local < 0, local >= vocab_.size());
  return group_->sum(
      at::embedding(embedding_, local.masked_fill(elsewhere, 0)).masked_fill(elsewhere.unsqueeze(-1), 0));
}

at::Tensor Decoder::forward(const at::Tensor& tokens) {
  if (group_->size() != tp_size_)
    throw Error(Code::invalid_argument,
                "a decoder split for tp=" + std::to_string(tp_size_) + " has not joined its group");
  if (tokens.size(1) != positions_length_) {
    positions_length_ = tokens.size(1);
    positions_ = make_positions(config_, positions_length_, share_.heads / share_.kv_heads, type_);
    for (at::Tensor* part : {&positions_.cosine, &positions_.sine, &positions_.mask})
      *part = part->to(embedding_.device());
  }
  at::Tensor x = embed(tokens);
  for (const auto& layer : layers_) x = layer->forward(x, positions_, *group_);
  x = group_->spread(norm_->forward(x));
  return head_ ? head_->forward(x) : at::linear(x, embedding_);
}

at::Tensor Decoder::loss(const at::Tensor& tokens_on_host) {
  const at::Tensor tokens = tokens_on_host.to(embedding_.device());
  const std::int64_t length = tokens.size(1) - 1;
  const at::Tensor logits = forward(tokens.narrow(1, 0, length)).reshape({-1, vocab_.size()}).to(at::kFloat);
  const at::Tensor targets = tokens.narrow(1, 1, length).reshape(-1);
  if (group_->size() == 1) return at::cross_entropy_loss(logits, targets);
  // log(sum over the vocabulary of exp(logit)) - the target's logit, all shifted by the largest logit.
  const at::Tensor shifted = logits - group_->largest(at::amax(logits, 1)).unsqueeze(1);
  const at::Tensor local = targets - vocab_.begin;
  const at::Tensor elsewhere = at::logical_or(local < 0, local >= vocab_.size());
  const at::Tensor own_target =
      at::gather(shifted, 1, local.masked_fill(elsewhere, 0).unsqueeze(1)).squeeze(1).masked_fill(elsewhere, 0);
  const at::Tensor sums = group_->sum(at::stack({at::exp(shifted).sum(1), own_target}));
  return at::mean(at::log(sums[0]) - sums[1]);
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
    const ParamShard& shard = *find_shard(decoder.shards(), name);
    const at::Tensor wide = at::empty(values.sizes(), at::kFloat);
    float* out = wide.data_ptr<float>();
    for (std::int64_t row = shard.rows.begin; row < shard.rows.end; ++row) {
      for (std::int64_t col = shard.cols.begin; col < shard.cols.end; ++col) {
        const std::int64_t i = row * shard.shape[1] + col;
        const std::uint64_t bits = mix(key + static_cast<std::uint64_t>(i) * 0x9e3779b97f4a7c15U);
        const auto sum =
            static_cast<double>((bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48));
        *out++ = static_cast<float>((sum + 2 - 2 * 65536) * scale);
      }
    }
    values.copy_(wide);
  }
}

}  // namespace regatta::finetune
