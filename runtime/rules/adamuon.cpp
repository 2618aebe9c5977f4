// AdaMuon: the sign of the momentum orthogonalised, then a second moment element by element (arXiv 2507.11005;
// Chongjie-Si/AdaMuon).
//
//     O = Newton-Schulz of sign(D), D the Nesterov mix;  V <- mu V + (1 - mu) O^2;  A = O / (sqrt(V) + eps)
//     w <- w (1 - lr weight_decay) - lr 0.2 sqrt(m n) / (norm_F(A) + eps) A
//
// The sign comes before the orthogonalisation, as in the authors' code; many ports leave it out. V lies with the shards
// and norm_F(A) is the exact sum of their rows' squares. V uses the momentum's coefficient. Defaults of the code.

#include <cmath>

#include "runtime/rules/matrix_rule.h"

namespace regatta {
namespace {

struct AdamuonSettings : MatrixSettings {
  double eps = 1e-8;
  AdamuonSettings() { weight_decay = 0.01; }
};

constexpr Setting<AdamuonSettings> own[] = {amount_setting<&AdamuonSettings::eps>("eps")};
constexpr auto known = with_matrix_settings(own);
constexpr auto line_bytes = static_cast<std::int64_t>(sizeof(kernels::LineSum));

class AdamuonRule final : public MatrixRule {
 public:
  explicit AdamuonRule(const AdamuonSettings& settings) : MatrixRule(settings), settings_(settings) {}
  std::string_view name() const override { return "adamuon"; }
  std::string settings_text() const override { return text_of_settings<AdamuonSettings>("adamuon", known, settings_); }
  sharding::View view(MatrixShape) const override {
    return sharding::View::matrix(traffic(), {Line::row}, line_bytes, line_bytes);
  }
  std::vector<StateSpec> state(DType momentum_dtype) const override {
    return {{"momentum", momentum_dtype}, {"second_moment", DType::f32}};
  }

  int stats_per_line(int, MatrixShape) const override { return 1; }
  void observe(int, const RunTensors& run, MatrixShape, const StepInfo&, DType, std::span<const kernels::LineFactors>,
               std::span<kernels::LineSum> stats, ThreadPool&) const override {
    const auto mu = static_cast<float>(settings_.momentum), rest = static_cast<float>(1 - settings_.momentum);
    auto* const moment = static_cast<float*>(run.state[1]);
    for_each_tile(run.run, [&](const Tile& tile) {
      float a[tile_numel];
      read_tile(run.solved, run.solved_dtype, tile, a);
      for (std::int64_t i = 0; i < tile.count; ++i) {
        float& v = moment[tile.offset + i];
        v = mu * v + rest * (a[i] * a[i]);
        a[i] = normal(a[i], v);
        kernels::add(stats[tile.row], static_cast<double>(a[i]) * a[i]);
      }
    });
  }
  float inverse(int, MatrixShape, std::span<const kernels::LineSum>, kernels::SweepHealth&) const override { return 1; }
  float block_term(std::span<const kernels::LineSum> stats, float) const override {
    return static_cast<float>(kernels::value(stats[0]));
  }
  double step_scale(MatrixShape block, const StepInfo& info, double block_sum) const override {
    return info.lr * 0.2 * std::sqrt(static_cast<double>(block.numel())) / (std::sqrt(block_sum) + settings_.eps);
  }
  void apply(const RunTensors& run, MatrixShape, const StepInfo& info, DType,
             std::span<const kernels::LineFactors> passes, ThreadPool& pool,
             kernels::SweepHealth& health) const override {
    const auto decay = static_cast<float>(1 - info.lr * settings_.weight_decay);
    const auto* const moment = static_cast<const float*>(run.state[1]);
    sweep_tiles(run.run, pool, health, [&](const Tile& tile, kernels::SweepHealth& part) {
      float weights[tile_numel];
      read_tile(run.solved, run.solved_dtype, tile, weights);
      const float factor = passes[0].factor[tile.row];
      for (std::int64_t i = 0; i < tile.count; ++i)
        weights[i] = run.weight[tile.offset + i] * decay - factor * normal(weights[i], moment[tile.offset + i]);
      write_weights(run, tile, weights, part);
    });
  }

 protected:
  bool takes_sign() const override { return true; }

 private:
  float normal(float o, float v) const {
    const float divisor = std::sqrt(v) + static_cast<float>(settings_.eps);
    return divisor == 0 ? 0 : o / divisor;
  }

  AdamuonSettings settings_;
};

}  // namespace

const RuleEntry adamuon_entry{
    [] {
      return info_of<AdamuonSettings>({"adamuon",
                                       "sign of the momentum orthogonalised, with a second moment",
                                       "arXiv 2507.11005; Chongjie-Si/AdaMuon",
                                       "high: read in the authors' code",
                                       {}},
                                      known);
    },
    [](std::span<const std::pair<std::string, std::string>> given) -> std::shared_ptr<const Rule> {
      return std::make_shared<AdamuonRule>(read_settings<AdamuonSettings>("adamuon", known, given));
    }};

}  // namespace regatta
