// NAMO: Muon at a step that adapts to the norms of gradient and direction (arXiv 2602.17080; minxin-zhg/namo).
//
//     O = Newton-Schulz of D, the Nesterov mix;  v <- mu2 v + (1 - mu2) norm_F(G)^2
//     a = lr sqrt(1 - mu2^t) / (1 - mu1^t + 1e-12) norm_F(D) / (sqrt(v) + eps)
//     form=code    w <- w (1 - weight_decay min(a, 1)) - min(0.2 sqrt(max(m, n)) a, 1) O
//     form=paper   w <- w (1 - weight_decay a) - a O
//
// G is the gradient as the rule gets it (clipped). Both norms are exact sums over the shards. code is the default: it
// was read, the paper only by a digest, and it is what the authors ran. Defaults of the code.

#include <cmath>

#include "runtime/rules/namo.h"

namespace regatta {
namespace {

struct NamoSettings : MatrixSettings {
  double beta2 = 0.99;
  double eps = 1e-8;
  NamoForm form = NamoForm::code;
  NamoSettings() { weight_decay = 0.1; }
};

constexpr Setting<NamoSettings> own[] = {
    fraction_setting<&NamoSettings::beta2>("beta2"),
    amount_setting<&NamoSettings::eps>("eps"),
    choice_setting<&NamoSettings::form, namo_form_names>("form", "code or paper"),
};
constexpr auto known = with_matrix_settings(own);

class NamoRule final : public MatrixRule {
 public:
  explicit NamoRule(const NamoSettings& settings) : MatrixRule(settings), settings_(settings) {}
  std::string_view name() const override { return "namo"; }
  std::string settings_text() const override { return text_of_settings<NamoSettings>("namo", known, settings_); }
  std::vector<StateSpec> state(DType momentum_dtype) const override {
    return {{"momentum", momentum_dtype}, {"gradient_moment", DType::f32, StateExtent::block}};
  }

 protected:
  sharding::View::Traffic traffic() const override {
    return {.element_bytes = size_of(payload_dtype()),
            .block_bytes = 2 * sizeof(kernels::WholeSum),
            .block_answer_bytes = sizeof(double)};
  }
  void finish(WholeMatrix& matrix, const StepInfo& info) const override {
    float& moment = *matrix.state[0];
    moment =
        static_cast<float>(settings_.beta2 * moment + (1 - settings_.beta2) * kernels::value(matrix.block_sums[0]));
    const auto t = static_cast<double>(info.step);
    const double divisor = std::sqrt(moment) + settings_.eps;
    const double ratio = divisor > 0 ? std::sqrt(kernels::value(matrix.block_sums[1])) / divisor : 0;
    matrix.number =
        info.lr * std::sqrt(1 - std::pow(settings_.beta2, t)) / (1 - std::pow(settings_.momentum, t) + 1e-12) * ratio;
  }
  Step step(MatrixShape block, const StepInfo&, double a) const override {
    if (settings_.form == NamoForm::paper) return {a, 1 - settings_.weight_decay * a};
    const double scale = 0.2 * std::sqrt(static_cast<double>(std::max(block.rows, block.cols)));
    return {std::min(scale * a, 1.0), 1 - settings_.weight_decay * std::min(a, 1.0)};
  }

 private:
  NamoSettings settings_;
};

}  // namespace

const RuleEntry namo_entry{
    [] {
      return info_of<NamoSettings>({"namo",
                                    "Muon at a step that adapts to the norms of gradient and direction",
                                    "arXiv 2602.17080; minxin-zhg/namo",
                                    "high: read in the authors' code",
                                    {}},
                                   known);
    },
    [](std::span<const std::pair<std::string, std::string>> given) -> std::shared_ptr<const Rule> {
      return std::make_shared<NamoRule>(read_settings<NamoSettings>("namo", known, given));
    }};

}  // namespace regatta
