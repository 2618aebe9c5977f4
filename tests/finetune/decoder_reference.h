#pragma once
// The decoder once more, in fp64 and plain loops, one sequence and one position at a time, from the published
// description of the Llama family. It shares no code with the program: weights come in as named arrays.

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace regatta::finetune::reference {

using Vector = std::vector<double>;

struct Model {
  std::map<std::string, Vector> weights;  ///< row-major, by Hugging Face name
  int hidden = 0, intermediate = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, vocab = 0;
  double eps = 0, theta = 0;
  bool tied = false;
  /// Positions are stretched by `stretch`: all frequencies, or (with `original` positions) those of fewer than `low`
  /// turns in them wholly, those of more than `high` not at all, linearly between.
  double stretch = 1, low = 0, high = 0, original = 0;

  bool has(const std::string& name) const { return weights.count(name) > 0; }
  const Vector& at(const std::string& name) const { return weights.at(name); }

  Vector project(const std::string& name, const Vector& x, int out) const {
    const Vector& w = at(name + ".weight");
    Vector y(static_cast<std::size_t>(out), 0.0);
    for (int o = 0; o < out; ++o) {
      for (std::size_t i = 0; i < x.size(); ++i) y[o] += w[o * x.size() + i] * x[i];
      if (has(name + ".bias")) y[o] += at(name + ".bias")[o];
    }
    return y;
  }

  Vector norm(const std::string& name, const Vector& x) const {
    double squares = 0;
    for (const double value : x) squares += value * value;
    const double root = std::sqrt(squares / static_cast<double>(x.size()) + eps);
    Vector y(x);
    for (std::size_t i = 0; i < x.size(); ++i) y[i] = x[i] / root * at(name + ".weight")[i];
    return y;
  }

  /// Per position, of the i-th pair of coordinates.
  double radians(int i) const {
    const double plain = std::pow(theta, -2.0 * i / head_dim);
    if (original == 0) return plain / stretch;
    const double turns = original / (2 * std::acos(-1.0) / plain);
    if (turns > high) return plain;
    if (turns < low) return plain / stretch;
    const double smooth = (turns - low) / (high - low);
    return smooth * plain + (1 - smooth) * plain / stretch;
  }

  /// Coordinates i and i + head_dim / 2 of a head are turned by position * theta^(-2i / head_dim).
  void turn(Vector& x, int head, int position) const {
    for (int i = 0; i < head_dim / 2; ++i) {
      const double angle = position * radians(i);
      double& a = x[head * head_dim + i];
      double& b = x[head * head_dim + i + head_dim / 2];
      const double turned_a = a * std::cos(angle) - b * std::sin(angle);
      const double turned_b = a * std::sin(angle) + b * std::cos(angle);
      a = turned_a;
      b = turned_b;
    }
  }

  /// logits[position][token].
  std::vector<Vector> logits(const std::vector<std::int64_t>& tokens) const {
    const int length = static_cast<int>(tokens.size());
    std::vector<Vector> x(length);
    for (int t = 0; t < length; ++t) {
      const double* row = at("model.embed_tokens.weight").data() + tokens[t] * hidden;
      x[t].assign(row, row + hidden);
    }
    for (int layer = 0; layer < layers; ++layer) {
      const std::string name = "model.layers." + std::to_string(layer) + ".";
      std::vector<Vector> q(length), k(length), v(length);
      for (int t = 0; t < length; ++t) {
        const Vector y = norm(name + "input_layernorm", x[t]);
        q[t] = project(name + "self_attn.q_proj", y, heads * head_dim);
        k[t] = project(name + "self_attn.k_proj", y, kv_heads * head_dim);
        v[t] = project(name + "self_attn.v_proj", y, kv_heads * head_dim);
        for (int h = 0; h < heads; ++h) turn(q[t], h, t);
        for (int h = 0; h < kv_heads; ++h) turn(k[t], h, t);
      }
      for (int t = 0; t < length; ++t) {
        Vector mixed(static_cast<std::size_t>(heads * head_dim), 0.0);
        for (int h = 0; h < heads; ++h) {
          const int from = h / (heads / kv_heads);
          Vector weight(static_cast<std::size_t>(t + 1));
          double sum = 0;
          for (int s = 0; s <= t; ++s) {
            double dot = 0;
            for (int d = 0; d < head_dim; ++d) dot += q[t][h * head_dim + d] * k[s][from * head_dim + d];
            sum += weight[s] = std::exp(dot / std::sqrt(head_dim));
          }
          for (int s = 0; s <= t; ++s)
            for (int d = 0; d < head_dim; ++d) mixed[h * head_dim + d] += weight[s] / sum * v[s][from * head_dim + d];
        }
        const Vector out = project(name + "self_attn.o_proj", mixed, hidden);
        for (int i = 0; i < hidden; ++i) x[t][i] += out[i];
      }
      for (int t = 0; t < length; ++t) {
        const Vector y = norm(name + "post_attention_layernorm", x[t]);
        Vector gate = project(name + "mlp.gate_proj", y, intermediate);
        const Vector up = project(name + "mlp.up_proj", y, intermediate);
        for (int i = 0; i < intermediate; ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
        const Vector out = project(name + "mlp.down_proj", gate, hidden);
        for (int i = 0; i < hidden; ++i) x[t][i] += out[i];
      }
    }
    std::vector<Vector> result;
    for (int t = 0; t < length; ++t)
      result.push_back(project(tied ? "model.embed_tokens" : "lm_head", norm("model.norm", x[t]), vocab));
    return result;
  }

  /// Mean over positions of -log softmax at the next token.
  double loss(const std::vector<std::int64_t>& tokens) const {
    const std::vector<Vector> all = logits({tokens.begin(), tokens.end() - 1});
    double total = 0;
    for (std::size_t t = 0; t < all.size(); ++t) {
      double sum = 0;
      for (const double logit : all[t]) sum += std::exp(logit);
      total += std::log(sum) - all[t][tokens[t + 1]];
    }
    return total / static_cast<double>(all.size());
  }
};

}  // namespace regatta::finetune::reference
