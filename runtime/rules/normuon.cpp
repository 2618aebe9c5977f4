// NorMuon: Muon with every row brought to its usual size (arXiv 2510.05491; zichongli5/NorMuon).
//
//     O = Newton-Schulz of the Nesterov mix;  v_i <- beta2 v_i + (1 - beta2) mean_j O_ij^2
//     A_ij = O_ij / (sqrt(v_i) + eps)
//     scale=paper   w <- w (1 - lr weight_decay) - lr 0.2 sqrt(m n) / norm_F(A) A
//     scale=code    w <- w (1 - lr weight_decay) - lr sqrt(max(1, m / n)) norm_F(O) / (norm_F(A) + 1e-10) A
//
// paper is the default: its update RMS of 0.2 lets AdamW's learning rates carry over. Both norms are of the whole
// matrix, and a row's mean is over the whole row, at the owner: nothing is taken per shard. Defaults of the code.

#include <cmath>

#include "runtime/rules/matrix_rule.h"

namespace regatta {
namespace {

struct NormuonSettings : MatrixSettings {
  enum class Scale : std::uint8_t { paper, code };
  double beta2 = 0.95;
  double eps = 1e-10;
  Scale scale = Scale::paper;
};

constexpr std::string_view scale_names[] = {"paper", "code"};
constexpr Setting<NormuonSettings> own[] = {
    fraction_setting<&NormuonSettings::beta2>("beta2"),
    amount_setting<&NormuonSettings::eps>("eps"),
    choice_setting<&NormuonSettings::scale, scale_names>("scale", "paper or code"),
};
constexpr auto known = with_matrix_settings(own);

class NormuonRule final : public MatrixRule {
 public:
  explicit NormuonRule(const NormuonSettings& settings) : MatrixRule(settings), settings_(settings) {}
  std::string_view name() const override { return "normuon"; }
  std::string settings_text() const override { return text_of_settings<NormuonSettings>("normuon", known, settings_); }
  std::vector<StateSpec> state(DType momentum_dtype) const override {
    return {{"momentum", momentum_dtype}, {"row_moment", DType::f32, StateExtent::rows}};
  }

 protected:
  sharding::View::Traffic traffic() const override {
    return {.element_bytes = size_of(payload_dtype()), .row_answer_bytes = sizeof(float)};
  }
  void finish(WholeMatrix& matrix, const StepInfo&) const override {
    const auto m = static_cast<double>(matrix.shape.rows), n = static_cast<double>(matrix.shape.cols);
    float* const moment = matrix.state[0];
    double before = 0, after = 0;  // squared norms of O and A
    for (std::int64_t i = 0; i < matrix.shape.rows; ++i) {
      const double norm = frobenius_norm(matrix.values + i * matrix.shape.cols, matrix.shape.cols),
                   squares = norm * norm;
      moment[i] = static_cast<float>(settings_.beta2 * moment[i] + (1 - settings_.beta2) * squares / n);
      const double divisor = std::sqrt(moment[i]) + settings_.eps;
      matrix.row_factors[i] = divisor > 0 ? static_cast<float>(1 / divisor) : 0;
      before += squares;
      after += squares * matrix.row_factors[i] * matrix.row_factors[i];
    }
    if (settings_.scale == NormuonSettings::Scale::paper)
      matrix.number = after == 0 ? 0 : 0.2 * std::sqrt(m * n) / std::sqrt(after);
    else
      matrix.number = std::sqrt(std::max(1.0, m / n)) * std::sqrt(before) / (std::sqrt(after) + 1e-10);
    for (float& factor : matrix.row_factors) factor = static_cast<float>(factor * matrix.number);
  }
  Step step(MatrixShape, const StepInfo& info, double) const override { return decoupled(info, 1); }

 private:
  NormuonSettings settings_;
};

}  // namespace

const RuleEntry normuon_entry{
    [] {
      return info_of<NormuonSettings>({"normuon",
                                       "Muon with every row at its usual size",
                                       "arXiv 2510.05491; zichongli5/NorMuon",
                                       "high: read in the authors' code; its scale is not the paper's",
                                       {}},
                                      known);
    },
    [](std::span<const std::pair<std::string, std::string>> given) -> std::shared_ptr<const Rule> {
      return std::make_shared<NormuonRule>(read_settings<NormuonSettings>("normuon", known, given));
    }};

}  // namespace regatta
