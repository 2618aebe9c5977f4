// TrasMuon: Muon with rows at their usual size, a fixed update RMS, and columns of unusual energy damped (arXiv
// 2602.13498, known from two digests that differ in the damping).
//
//     O = Newton-Schulz of M (no Nesterov);  v_i <- beta2 v_i + (1 - beta2) mean_j O_ij^2;  B_ij = O_ij / sqrt(v_i +
//     eps) E_j = sum_i M_ij^2;  E_ref <- median_j E_j at step 1, later energy_beta E_ref + (1 - energy_beta) median_j
//     E_j ratio_j = E_j / (E_ref + eps) damping=trigger  r_j = 1 while ratio_j <= trigger, else 1 / (1 + alpha log(1 +
//     ratio_j / trigger)), at least
//                      damping_min; c_j <- damping_beta c_j + (1 - damping_beta) r_j, from c_j = 1
//     damping=smooth   c_j = 1 / (1 + alpha log(1 + ratio_j)), within [damping_min, 1]
//     w <- w (1 - lr weight_decay) - lr sqrt(m n) / (norm_F(B) + eps) (B with column j times c_j)
//
// trigger is the form of RhizomeResearch/rollfast and the default: it leaves a typical column alone, where smooth damps
// it to 0.59. Its jump at the trigger is the source's. The update's RMS is 1, so learning rates are about a fifth of
// Muon's. Energies are exact sums over the shards of M as it is stored; with nesterov=on the mix D stands in place of
// M, in the energies too. The median of an even number is the mean of the two in the middle. Defaults of rollfast; its
// refresh period, warm-up and mixing are left at their neutral values.

#include <algorithm>
#include <cmath>

#include "runtime/rules/matrix_rule.h"

namespace regatta {
namespace {

struct TrasmuonSettings : MatrixSettings {
  enum class Damping : std::uint8_t { trigger, smooth };
  double beta2 = 0.95;
  double eps = 1e-8;
  Damping damping = Damping::trigger;
  double alpha = 1;
  double trigger = 1;
  double damping_min = 0.1;
  double damping_beta = 0.9;
  double energy_beta = 0.95;
  TrasmuonSettings() { nesterov = false; }
};

constexpr std::string_view damping_names[] = {"trigger", "smooth"};
constexpr Setting<TrasmuonSettings> own[] = {
    fraction_setting<&TrasmuonSettings::beta2>("beta2"),
    amount_setting<&TrasmuonSettings::eps>("eps"),
    choice_setting<&TrasmuonSettings::damping, damping_names>("damping", "trigger or smooth"),
    amount_setting<&TrasmuonSettings::alpha>("alpha"),
    {"trigger", "a number above 0",
     [](TrasmuonSettings& s, std::string_view text) {
       return parse_number(text, s.trigger) && s.trigger > 0 && std::isfinite(s.trigger);
     },
     [](const TrasmuonSettings& s) { return shortest(s.trigger); }},
    {"damping_min", "a number in [0, 1]",
     [](TrasmuonSettings& s, std::string_view text) {
       return parse_number(text, s.damping_min) && s.damping_min >= 0 && s.damping_min <= 1;
     },
     [](const TrasmuonSettings& s) { return shortest(s.damping_min); }},
    fraction_setting<&TrasmuonSettings::damping_beta>("damping_beta"),
    fraction_setting<&TrasmuonSettings::energy_beta>("energy_beta"),
};
constexpr auto known = with_matrix_settings(own);

// Reorders `values`.
double median(std::span<float> values) {
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (static_cast<double>(*middle) + *std::max_element(values.begin(), middle)) / 2;
}

class TrasmuonRule final : public MatrixRule {
 public:
  explicit TrasmuonRule(const TrasmuonSettings& settings) : MatrixRule(settings), settings_(settings) {}
  std::string_view name() const override { return "trasmuon"; }
  std::string settings_text() const override {
    return text_of_settings<TrasmuonSettings>("trasmuon", known, settings_);
  }
  std::vector<StateSpec> state(DType momentum_dtype) const override {
    return {{"momentum", momentum_dtype},
            {"row_moment", DType::f32, StateExtent::rows},
            {"energy_reference", DType::f32, StateExtent::block},
            {"damped", DType::f32, StateExtent::columns}};  // 1 - c_j, so that it starts at zero
  }
  std::int64_t scratch(MatrixShape block) const override {
    return std::max(MatrixRule::scratch(block), block.cols * static_cast<std::int64_t>(sizeof(float)));
  }

 protected:
  sharding::View::Traffic traffic() const override {
    return {.element_bytes = size_of(payload_dtype()),
            .column_bytes = sizeof(kernels::LineSum),
            .row_answer_bytes = sizeof(float),
            .column_answer_bytes = sizeof(float)};
  }
  void finish(WholeMatrix& matrix, const StepInfo& info) const override {
    calibrate_rows(matrix);
    damp_columns(matrix, info);
  }
  Step step(MatrixShape, const StepInfo& info, double) const override { return decoupled(info, 1); }

 private:
  void calibrate_rows(WholeMatrix& matrix) const {
    const auto m = static_cast<double>(matrix.shape.rows), n = static_cast<double>(matrix.shape.cols);
    float* const moment = matrix.state[0];
    double squares_of_b = 0;
    for (std::int64_t i = 0; i < matrix.shape.rows; ++i) {
      const double norm = frobenius_norm(matrix.values + i * matrix.shape.cols, matrix.shape.cols),
                   squares = norm * norm;
      moment[i] = static_cast<float>(settings_.beta2 * moment[i] + (1 - settings_.beta2) * squares / n);
      const double divisor = std::sqrt(moment[i] + settings_.eps);
      matrix.row_factors[i] = divisor > 0 ? static_cast<float>(1 / divisor) : 0;
      squares_of_b += squares * matrix.row_factors[i] * matrix.row_factors[i];
    }
    const double divisor = std::sqrt(squares_of_b) + settings_.eps;
    const double scale = divisor > 0 ? std::sqrt(m * n) / divisor : 0;
    for (float& factor : matrix.row_factors) factor = static_cast<float>(factor * scale);
  }
  void damp_columns(WholeMatrix& matrix, const StepInfo& info) const {
    // Rounded to fp32 as the reference is: the column in the middle must not pass the trigger by the rounding alone.
    const auto energy = [&](std::int64_t j) { return static_cast<float>(kernels::value(matrix.column_sums[j])); };
    const std::span energies(reinterpret_cast<float*>(matrix.scratch.data()), matrix.shape.cols);
    for (std::int64_t j = 0; j < matrix.shape.cols; ++j) energies[j] = energy(j);
    const double middle = median(energies);
    float& reference = *matrix.state[1];
    reference = static_cast<float>(
        info.step == 1 ? middle : settings_.energy_beta * reference + (1 - settings_.energy_beta) * middle);
    float* const damped = matrix.state[2];
    const bool smooth = settings_.damping == TrasmuonSettings::Damping::smooth;
    for (std::int64_t j = 0; j < matrix.shape.cols; ++j) {
      const double ratio = energy(j) / (reference + settings_.eps);
      const bool typical = !smooth && ratio <= settings_.trigger;
      const double over = smooth ? ratio : ratio / settings_.trigger;
      const double raw =
          typical ? 1 : std::clamp(1 / (1 + settings_.alpha * std::log1p(over)), settings_.damping_min, 1.0);
      const double beta = smooth ? 0 : settings_.damping_beta;
      damped[j] = static_cast<float>(beta * damped[j] + (1 - beta) * (1 - raw));
      matrix.column_factors[j] = static_cast<float>(1.0 - damped[j]);
    }
  }

  TrasmuonSettings settings_;
};

}  // namespace

const RuleEntry trasmuon_entry{
    [] {
      return info_of<TrasmuonSettings>({"trasmuon",
                                        "Muon at a fixed update RMS, columns of unusual energy damped",
                                        "arXiv 2602.13498 by digest; RhizomeResearch/rollfast",
                                        "medium; low for the damping, on which the sources differ",
                                        {}},
                                       known);
    },
    [](std::span<const std::pair<std::string, std::string>> given) -> std::shared_ptr<const Rule> {
      return std::make_shared<TrasmuonRule>(read_settings<TrasmuonSettings>("trasmuon", known, given));
    }};

}  // namespace regatta
