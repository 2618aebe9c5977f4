// NAMO-D: NAMO with a step for every column (arXiv 2602.17080; minxin-zhg/namo).
//
//     O = Newton-Schulz of D, the Nesterov mix;  v_j <- mu2 v_j + (1 - mu2) norm(column j of G)^2
//     s_j = norm(column j of D) / (sqrt(v_j) + eps), brought within [c mean(s), mean(s) / c]
//     b = lr sqrt(1 - mu2^t) / (1 - mu1^t + 1e-12)
//     form=code    w_ij <- w_ij max(0, 1 - weight_decay min(b s_j, 1)) - min(0.2 sqrt(max(m, n)) b s_j, 1) O_ij
//     form=paper   w_ij <- w_ij (1 - weight_decay b s_j) - b s_j O_ij
//
// Norms are exact sums over the shards. c = 0 switches the clamp off. Defaults of the code; the authors' GPT-2 runs use
// c = 0.01.

#include <cmath>

#include "runtime/rules/namo.h"

namespace regatta {
namespace {

struct NamoDSettings : MatrixSettings {
  double beta2 = 0.99;
  double eps = 1e-8;
  double c = 0.75;
  NamoForm form = NamoForm::code;
  NamoDSettings() { weight_decay = 0.1; }
};

constexpr Setting<NamoDSettings> own[] = {
    fraction_setting<&NamoDSettings::beta2>("beta2"),
    amount_setting<&NamoDSettings::eps>("eps"),
    {"c", "a number in [0, 1]",
     [](NamoDSettings& s, std::string_view text) { return parse_number(text, s.c) && s.c >= 0 && s.c <= 1; },
     [](const NamoDSettings& s) { return shortest(s.c); }},
    choice_setting<&NamoDSettings::form, namo_form_names>("form", "code or paper"),
};
constexpr auto known = with_matrix_settings(own);

class NamoDRule final : public MatrixRule {
 public:
  explicit NamoDRule(const NamoDSettings& settings) : MatrixRule(settings), settings_(settings) {}
  std::string_view name() const override { return "namo_d"; }
  std::string settings_text() const override { return text_of_settings<NamoDSettings>("namo_d", known, settings_); }
  std::vector<StateSpec> state(DType momentum_dtype) const override {
    return {{"momentum", momentum_dtype}, {"gradient_moment", DType::f32, StateExtent::columns}};
  }
  void update(const RunTensors& run, MatrixShape block, const StepInfo& info, DType, ThreadPool& pool,
              kernels::SweepHealth& health) const override {
    const auto t = static_cast<double>(info.step);
    const double b =
        info.lr * std::sqrt(1 - std::pow(settings_.beta2, t)) / (1 - std::pow(settings_.momentum, t) + 1e-12);
    const bool paper = settings_.form == NamoForm::paper;
    const double scale = 0.2 * std::sqrt(static_cast<double>(std::max(block.rows, block.cols)));
    sweep_tiles(run.run, pool, health, [&](const Tile& tile, kernels::SweepHealth& part) {
      float weights[tile_numel];
      read_tile(run.solved, run.solved_dtype, tile, weights);
      for (std::int64_t i = 0; i < tile.count; ++i) {
        const double step = b * run.column_factors[tile.col + i];
        const double decay =
            paper ? 1 - settings_.weight_decay * step : std::max(0.0, 1 - settings_.weight_decay * std::min(step, 1.0));
        const double factor = paper ? step : std::min(scale * step, 1.0);
        weights[i] = run.weight[tile.offset + i] * static_cast<float>(decay) - static_cast<float>(factor) * weights[i];
      }
      write_weights(run, tile, weights, part);
    });
  }

 protected:
  sharding::View::Traffic traffic() const override {
    return {.element_bytes = size_of(payload_dtype()),
            .column_bytes = 2 * sizeof(kernels::LineSum),
            .column_answer_bytes = sizeof(float)};
  }
  void finish(WholeMatrix& matrix, const StepInfo&) const override {
    const std::int64_t n = matrix.shape.cols;
    float* const moment = matrix.state[0];
    double sum = 0;
    std::int64_t count = 0;  // a column that is not a number does not count
    for (std::int64_t j = 0; j < n; ++j) {
      moment[j] = static_cast<float>(settings_.beta2 * moment[j] +
                                     (1 - settings_.beta2) * kernels::value(matrix.column_sums[j]));
      const double divisor = std::sqrt(moment[j]) + settings_.eps;
      const double s = divisor > 0 ? std::sqrt(kernels::value(matrix.column_sums[n + j])) / divisor : 0;
      matrix.column_factors[j] = static_cast<float>(s);
      if (std::isnan(s)) continue;
      sum += matrix.column_factors[j];
      ++count;
    }
    const double mean = sum / static_cast<double>(std::max<std::int64_t>(count, 1));
    if (settings_.c == 0 || !(mean > 0) || !std::isfinite(mean)) return;
    const auto low = static_cast<float>(settings_.c * mean), high = static_cast<float>(mean / settings_.c);
    for (float& s : matrix.column_factors) s = std::min(std::max(s, low), high);
  }

 private:
  NamoDSettings settings_;
};

}  // namespace

const RuleEntry namo_d_entry{
    [] {
      return info_of<NamoDSettings>({"namo_d",
                                     "NAMO with a step for every column",
                                     "arXiv 2602.17080; minxin-zhg/namo",
                                     "high: read in the authors' code",
                                     {}},
                                    known);
    },
    [](std::span<const std::pair<std::string, std::string>> given) -> std::shared_ptr<const Rule> {
      return std::make_shared<NamoDRule>(read_settings<NamoDSettings>("namo_d", known, given));
    }};

}  // namespace regatta
