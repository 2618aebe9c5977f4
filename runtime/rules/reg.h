#pragma once
// REG: momentum with every line (rows when the block is at least as wide as tall, columns otherwise) brought to the
// same p-norm, at a fixed RMS of the update.
//
//     m <- mu m + (1 - mu) g
//     a <- m with each line divided by its p-norm; with passes = t, t times, directions alternating, the primary one
//     last w <- w (1 - lr weight_decay) - lr rho / RMS(a) a
//
// The direction follows the global shape of the block, never a shard's. A zero line stays zero. For p = 2 the RMS is
// sqrt(1 / max(m, n)) in closed form; otherwise, and with zero_line = count, it is measured over the block.

#include "runtime/rules/rule.h"

namespace regatta {

struct RegSettings {
  enum class Norm : std::uint8_t { one, two, inf };
  enum class ZeroLine : std::uint8_t {
    keep,   ///< the closed form: other lines do not jump when one dies
    count,  ///< the RMS as measured, zero lines included
  };
  static constexpr int most_passes = 16;

  double momentum = 0.95;
  double rho = 0.2;
  double weight_decay = 0.01;
  Norm p = Norm::two;
  int passes = 1;
  double eps = 1e-12;
  ZeroLine zero_line = ZeroLine::keep;
};

class RegRule final : public Rule {
 public:
  explicit RegRule(const RegSettings& settings) : settings_(settings) {}

  std::string_view name() const override { return "reg"; }
  std::string settings_text() const override;
  /// Throws Error(invalid_argument) when a line would be too long for an exact sum.
  sharding::View view(MatrixShape block) const override;
  std::vector<StateSpec> state(DType momentum_dtype) const override { return {{"momentum", momentum_dtype}}; }

  void update(const RunTensors&, MatrixShape block, const StepInfo&, DType momentum_dtype, ThreadPool&,
              kernels::SweepHealth&) const override;
  /// Squares, and for p = 1 magnitudes.
  int stats_per_line(int pass, MatrixShape) const override;
  void observe(int pass, const RunTensors&, MatrixShape block, const StepInfo&, DType momentum_dtype,
               std::span<const kernels::LineFactors> earlier, std::span<kernels::LineSum> stats,
               ThreadPool&) const override;
  float inverse(int pass, MatrixShape, std::span<const kernels::LineSum> stats, kernels::SweepHealth&) const override;
  float block_term(std::span<const kernels::LineSum> stats, float inverse) const override;
  double step_scale(MatrixShape, const StepInfo&, double block_sum) const override;
  void apply(const RunTensors&, MatrixShape block, const StepInfo&, DType momentum_dtype,
             std::span<const kernels::LineFactors> passes, ThreadPool&, kernels::SweepHealth&) const override;

  DeviceForm device_form() const override { return DeviceForm::reg; }
  kernels::cuda::Norm device_norm() const override;
  kernels::cuda::RegScalars reg_scalars(const StepInfo&) const override;

 private:
  Line line_of_pass(int pass, MatrixShape block) const;
  bool block_scale() const;
  kernels::RegTensors tensors(const RunTensors&, const StepInfo&, DType momentum_dtype) const;

  RegSettings settings_;
};

}  // namespace regatta
