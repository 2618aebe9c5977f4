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
//
// One step of a matrix rule on one block:
//     direct       every rank: updates its run's momentum and writes the run's direction, with what the owner must know
//                  beside it (exact sums)
//     solve        the block's owner: puts the whole direction in place of its orthogonal factor, and finds factors of
//                  rows, of columns and numbers of the block
//     then, on every rank, with its run of the factor: update, or observe ... apply as for lines when the view has
//     passes

#include <cstddef>
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

/// How large a state is, for each block: as the block itself, or one number per row, per column, or one in all. Rules
/// of the matrix view alone have the small ones; they are fp32 and lie with the block's owner.
enum class StateExtent : std::uint8_t { elements, rows, columns, block };

struct StateSpec {
  std::string name;
  DType dtype = DType::f32;
  StateExtent extent = StateExtent::elements;
};

/// The shape of a state of a block.
MatrixShape state_shape(StateExtent extent, MatrixShape block);

/// One run of one block. Pointers address the run's first element.
struct RunTensors {
  MatrixRun run;
  const void* grad = nullptr;
  DType grad_dtype = DType::f32;
  std::span<void* const> state;  ///< of StateExtent::elements, in the order of Rule::state
  float* weight = nullptr;
  void* param = nullptr;  ///< low-precision copy to write; null when the parameter is fp32
  DType param_dtype = DType::f32;

  // Matrix view, after solve(): what the owner returned of this run.
  const void* solved = nullptr;  ///< the run's elements, as they travelled
  DType solved_dtype = DType::bf16;
  const float* row_factors = nullptr;     ///< from the first row the run touches on; null unless the view asks for them
  const float* column_factors = nullptr;  ///< from column 0 of the run's matrix on; likewise
  double number = 0;                      ///< of the block
};

/// What rides to the owner beside a run's direction; sums are added to. Indexed as RunTensors' factors; several sums of
/// a line lie one array after another.
struct Riders {
  std::span<kernels::LineSum> row_sums, column_sums;
  std::span<kernels::WholeSum> block_sums;
};

/// A whole block at its owner.
struct WholeMatrix {
  MatrixShape shape;
  float* values = nullptr;  ///< row-major; the direction, and in its place the orthogonal factor
  std::span<const kernels::LineSum> row_sums, column_sums;
  std::span<const kernels::WholeSum> block_sums;
  std::span<float* const> state;  ///< those that are not StateExtent::elements, in the order of Rule::state
  std::span<float> row_factors, column_factors;  ///< to fill
  double number = 0;                             ///< to fill
  std::span<std::byte> scratch;                  ///< Rule::scratch() of them, aligned for doubles
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

  /// The whole step in one sweep. Requires: view is elements; or the run is whole rows and view.one_sweep_rows(); or
  /// view is matrix without passes, after solve().
  virtual void update(const RunTensors&, MatrixShape block, const StepInfo&, DType momentum_dtype, ThreadPool&,
                      kernels::SweepHealth&) const = 0;

  // Matrix view.

  virtual DType payload_dtype() const { return DType::bf16; }  ///< of directions and of what comes back
  /// Writes the run's direction as payload_dtype, and adds to the riders the view speaks of.
  virtual void direct(const RunTensors&, MatrixShape /*block*/, const StepInfo&, DType /*momentum_dtype*/,
                      void* /*direction*/, const Riders&, ThreadPool&) const {}
  virtual std::int64_t scratch(MatrixShape) const { return 0; }  ///< bytes of WholeMatrix::scratch
  virtual void solve(WholeMatrix&, const StepInfo&, ThreadPool&, kernels::SweepHealth&) const {}

  // Lines view, and passes of a matrix view after its solve().

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

/// NAME=VALUE settings of a rule; makes one of rule_names(). Throws Error(invalid_argument) naming the rule, the
/// setting or the value, and listing what exists. `lr` is not a rule's setting here: it comes with the step.
std::shared_ptr<const Rule> make_rule(std::string_view name,
                                      std::span<const std::pair<std::string, std::string>> settings);
/// `rule` with some of its settings changed. Throws as make_rule does, also for a rule that make_rule does not know.
std::shared_ptr<const Rule> changed_rule(const Rule& rule,
                                         std::span<const std::pair<std::string, std::string>> changes);
/// NAME=VALUE settings as settings_text() lists them.
std::vector<std::pair<std::string, std::string>> settings_of(const Rule& rule);
std::vector<std::string> rule_names();

/// What a rule is, for people.
struct RuleInfo {
  std::string_view name;
  std::string_view summary;
  std::string_view source;
  std::string_view confidence;  ///< in our reading of the source: high, medium, low, with the reason
  struct Setting {
    std::string_view name, expected;
    std::string usual;  ///< its default
  };
  std::vector<Setting> settings;
};
/// Requires a name of rule_names().
RuleInfo rule_info(std::string_view rule);
/// Requires a name of rule_names().
std::vector<std::string> rule_setting_names(std::string_view rule);

}  // namespace regatta
