#pragma once
// The mathematics of one optimizer, with no collective in sight.
//
// A rule says what it must see of a matrix (its view), what state it keeps, and computes on runs. The engine gives it
// runs, merges the line statistics of all ranks, and hands back what the lines' owners found. Rules are immutable:
// every number that changes during a job arrives with the call.
//
// One step of a lines rule on one block, pass k = 0, 1, ...:
//     observe(k)   every rank: adds its run's share of the statistics of pass k's lines
//     inverse(k)   a line's owner (or only holder): statistics -> one fp32 factor
//     (block_term, block_scale: when the view asks for one number over the whole block)
//     apply        every rank
// and update() does all of it in one sweep for rows that lie wholly in a run (view().one_sweep_rows()), with the same
// bits.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/kernels.h"
#include "sharding/view.h"

namespace regatta {

class ThreadPool;

struct StateSpec {
  std::string name;
  DType dtype = DType::f32;
};

/// One run of one block. Pointers address the run's first element.
struct RunTensors {
  MatrixRun run;
  const void* grad = nullptr;
  DType grad_dtype = DType::f32;
  std::span<void* const> state;  ///< in the order of Rule::state
  float* weight = nullptr;
  void* param = nullptr;  ///< low-precision copy to write; null when the parameter is fp32
  DType param_dtype = DType::f32;
};

struct StepInfo {
  double lr = 0;
  std::int64_t step = 1;  ///< of this update, counted from 1
  float grad_scale = 1;   ///< clip factor over loss scale
};

class Rule {
 public:
  virtual ~Rule() = default;
  virtual std::string_view name() const = 0;
  /// Name and all settings in one line, for logs and for the check that all ranks use the same.
  virtual std::string settings_text() const = 0;
  /// Of a logical block of this global shape.
  virtual sharding::View view(MatrixShape block) const = 0;
  virtual std::vector<StateSpec> state(DType momentum_dtype) const = 0;

  /// The whole step in one sweep. Requires: view is elements, or the run is whole rows and view.one_sweep_rows().
  virtual void update(const RunTensors&, MatrixShape block, const StepInfo&, DType momentum_dtype, ThreadPool&,
                      kernels::SweepHealth&) const = 0;

  // The rest is for the lines view.

  /// LineSums per line, the same in every pass; stats of observe() hold them one array after another.
  virtual int stats_per_line(int /*pass*/, MatrixShape) const { return 0; }
  /// Adds to stats[s * line_count + line]; lines are counted from the first row touched, or from column 0 of the run's
  /// matrix.
  virtual void observe(int /*pass*/, const RunTensors&, MatrixShape /*block*/, const StepInfo&,
                       DType /*momentum_dtype*/, std::span<const kernels::LineFactors> /*earlier*/,
                       std::span<kernels::LineSum> /*stats*/, ThreadPool&) const {}
  /// `stats[s]` is statistic s of one whole line. Counts the line into `health` when it is the last pass.
  virtual float inverse(int /*pass*/, MatrixShape, std::span<const kernels::LineSum> /*stats*/,
                        kernels::SweepHealth&) const {
    return 0;
  }
  /// A line's contribution to the block's number; an fp32 value, so that its exact sum has the same bits everywhere.
  virtual float block_term(std::span<const kernels::LineSum> /*stats*/, float /*inverse*/) const { return 0; }
  /// Factor of the last pass's inverse norms; `block_sum` is the exact sum of the terms when the view has block_scale.
  virtual double step_scale(MatrixShape, const StepInfo&, double /*block_sum*/) const { return 0; }
  /// `passes` hold inverse norms, the last one already multiplied by step_scale.
  virtual void apply(const RunTensors&, MatrixShape /*block*/, const StepInfo&, DType /*momentum_dtype*/,
                     std::span<const kernels::LineFactors> /*passes*/, ThreadPool&, kernels::SweepHealth&) const {}

  // On a device the engine runs the kernels itself; the rule says which, and gives their numbers of a step.

  enum class DeviceForm : std::uint8_t {
    none,   ///< the rule runs on the CPU only
    reg,    ///< the lines of kernels/cuda, with device_norm() and reg_scalars()
    adamw,  ///< with adamw_scalars()
  };
  virtual DeviceForm device_form() const { return DeviceForm::none; }
  virtual kernels::cuda::Norm device_norm() const { return kernels::cuda::Norm::two; }
  virtual kernels::cuda::RegScalars reg_scalars(const StepInfo&) const { return {}; }
  virtual kernels::cuda::AdamwScalars adamw_scalars(const StepInfo&) const { return {}; }
};

/// NAME=VALUE settings of a rule; makes "reg" or "adamw". Throws Error(invalid_argument) naming the rule, the setting
/// or the value, and listing what exists. `lr` is not a rule's setting here: it comes with the step.
std::shared_ptr<const Rule> make_rule(std::string_view name,
                                      std::span<const std::pair<std::string, std::string>> settings);
/// `rule` with some of its settings changed. Throws as make_rule does, also for a rule that make_rule does not know.
std::shared_ptr<const Rule> changed_rule(const Rule& rule,
                                         std::span<const std::pair<std::string, std::string>> changes);
/// NAME=VALUE settings as settings_text() lists them.
std::vector<std::pair<std::string, std::string>> settings_of(const Rule& rule);
std::vector<std::string> rule_names();
/// Requires a name of rule_names().
std::vector<std::string> rule_setting_names(std::string_view rule);

}  // namespace regatta
