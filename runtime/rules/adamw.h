#pragma once
// AdamW as torch.optim.AdamW computes it, with its defaults; sees only its own elements.

#include "runtime/rules/rule.h"

namespace regatta {

struct AdamwSettings {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.01;
};

class AdamwRule final : public Rule {
 public:
  explicit AdamwRule(const AdamwSettings& settings) : settings_(settings) {}

  std::string_view name() const override { return "adamw"; }
  std::string settings_text() const override;
  sharding::View view(MatrixShape) const override { return sharding::View::elements(); }
  std::vector<StateSpec> state(DType momentum_dtype) const override {
    return {{"moment1", momentum_dtype}, {"moment2", DType::f32}};
  }
  void update(const RunTensors&, MatrixShape block, const StepInfo&, DType momentum_dtype, ThreadPool&,
              kernels::SweepHealth&) const override;
  DeviceForm device_form() const override { return DeviceForm::adamw; }
  kernels::cuda::AdamwScalars adamw_scalars(const StepInfo&) const override;

 private:
  AdamwSettings settings_;
};

}  // namespace regatta
