#pragma once
// Momentum with every line of one direction at norm one, whatever the block's shape; the base of row_norm and
// column_norm (arXiv 2605.18106; timlautk/equivariant_optimizers).
//
//     m <- momentum m + (1 - momentum) g
//     a = m with each line divided by its norm, guarded: norm + eps (guard=add), or max(norm, eps) (guard=clamp)
//     w <- w (1 - lr weight_decay) - lr a
//
// add is the default, as in the authors' row-norm; a zero line stays zero. No Nesterov, no bias correction.

#include "runtime/rules/rule.h"
#include "runtime/rules/settings.h"

namespace regatta {

struct LineNormSettings {
  enum class Guard : std::uint8_t { add, clamp };
  double momentum = 0.95;
  double weight_decay = 0;
  double eps = 1e-8;
  Guard guard = Guard::add;
};

/// The table of them.
std::span<const Setting<LineNormSettings>> line_norm_settings();
/// 1 over the guarded norm; 0 for a zero line, NaN when the norm is not finite.
float guarded_inverse(double norm, const LineNormSettings&);

class LineNormRule : public Rule {
 public:
  LineNormRule(std::string_view name, Line line, const LineNormSettings& settings)
      : name_(name), line_(line), settings_(settings) {}

  std::string_view name() const override { return name_; }
  std::string settings_text() const override;
  sharding::View view(MatrixShape) const override;
  std::vector<StateSpec> state(DType momentum_dtype) const override { return {{"momentum", momentum_dtype}}; }
  void update(const RunTensors&, MatrixShape block, const StepInfo&, DType momentum_dtype, ThreadPool&,
              kernels::SweepHealth&) const override;
  int stats_per_line(int, MatrixShape) const override { return 1; }
  void observe(int pass, const RunTensors&, MatrixShape block, const StepInfo&, DType momentum_dtype,
               std::span<const kernels::LineFactors> earlier, std::span<kernels::LineSum> stats,
               ThreadPool&) const override;
  float inverse(int pass, MatrixShape, std::span<const kernels::LineSum> stats, kernels::SweepHealth&) const override;
  double step_scale(MatrixShape, const StepInfo& info, double) const override { return info.lr; }
  void apply(const RunTensors&, MatrixShape block, const StepInfo&, DType momentum_dtype,
             std::span<const kernels::LineFactors> passes, ThreadPool&, kernels::SweepHealth&) const override;

 private:
  std::string_view name_;
  Line line_;
  LineNormSettings settings_;
};

/// What the entries of rules that are no more than a direction share.
template <Line line>
std::shared_ptr<const Rule> make_line_norm(std::string_view name,
                                           std::span<const std::pair<std::string, std::string>> given) {
  return std::make_shared<LineNormRule>(name, line, read_settings<LineNormSettings>(name, line_norm_settings(), given));
}

}  // namespace regatta
