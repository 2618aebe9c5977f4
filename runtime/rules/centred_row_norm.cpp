// Centred row-norm: row-norm that does not see what all rows share, for heads and routers, whose outputs may shift
// together without effect (arXiv 2605.18106; timlautk/equivariant_optimizers).
//
//     m <- momentum m + (1 - momentum) g
//     b = m minus its mean row;  a = b with each row divided by its guarded norm;  w <- w (1 - lr weight_decay)
//         - lr (a minus its mean row)
//
// Passes: columns (means), rows (norms), columns (means of a). A mean is the difference of two exact sums, of the
// positive elements and of the negative ones, so it has the same bits on any layout. Guard and defaults as row_norm.

#include <cmath>

#include "runtime/rules/line_norm.h"
#include "runtime/rules/matrix_rule.h"

namespace regatta {
namespace {

using kernels::LineFactors;
using kernels::LineSum;
using kernels::SweepHealth;

class CentredRowNormRule final : public Rule {
 public:
  explicit CentredRowNormRule(const LineNormSettings& settings) : settings_(settings) {}
  std::string_view name() const override { return "centred_row_norm"; }
  std::string settings_text() const override {
    return text_of_settings<LineNormSettings>(name(), line_norm_settings(), settings_);
  }
  sharding::View view(MatrixShape) const override {
    return sharding::View::lines({Line::column, Line::row, Line::column}, 2 * sizeof(LineSum));
  }
  std::vector<StateSpec> state(DType momentum_dtype) const override { return {{"momentum", momentum_dtype}}; }
  void update(const RunTensors&, MatrixShape, const StepInfo&, DType, ThreadPool&, SweepHealth&) const override {}

  int stats_per_line(int, MatrixShape) const override { return 2; }
  void observe(int pass, const RunTensors& run, MatrixShape, const StepInfo& info, DType momentum_dtype,
               std::span<const LineFactors> earlier, std::span<LineSum> stats, ThreadPool&) const override {
    const std::int64_t lines = std::ssize(stats) / 2;
    for_each_tile(run.run, [&](const Tile& tile) {
      float a[tile_numel];
      if (pass == 0) update_momentum(run, tile, info, momentum_dtype);
      read_tile(run.state[0], momentum_dtype, tile, a);
      normalise(tile, earlier, a);
      for (std::int64_t i = 0; i < tile.count; ++i) {
        if (pass == 1)
          kernels::add(stats[tile.row], static_cast<double>(a[i]) * a[i]);
        else
          kernels::add(stats[tile.col + i + (a[i] < 0 ? lines : 0)], std::fabs(static_cast<double>(a[i])));
      }
    });
  }
  float inverse(int pass, MatrixShape block, std::span<const LineSum> stats, SweepHealth& health) const override {
    if (pass != 1)
      return static_cast<float>((kernels::value(stats[0]) - kernels::value(stats[1])) /
                                static_cast<double>(block.rows));
    const double norm = std::sqrt(kernels::value(stats[0]));
    kernels::count_line(health, norm, settings_.eps);
    return guarded_inverse(norm, settings_);
  }
  double step_scale(MatrixShape, const StepInfo& info, double) const override { return info.lr; }
  void apply(const RunTensors& run, MatrixShape, const StepInfo& info, DType momentum_dtype,
             std::span<const LineFactors> passes, ThreadPool& pool, SweepHealth& health) const override {
    const auto lr = static_cast<float>(info.lr), decay = static_cast<float>(1 - info.lr * settings_.weight_decay);
    sweep_tiles(run.run, pool, health, [&](const Tile& tile, SweepHealth& part) {
      float a[tile_numel], weights[tile_numel];
      read_tile(run.state[0], momentum_dtype, tile, a);
      normalise(tile, passes.first(2), a);
      for (std::int64_t i = 0; i < tile.count; ++i)  // the last pass's factors are lr times the mean row
        weights[i] = run.weight[tile.offset + i] * decay - (lr * a[i] - passes[2].factor[tile.col + i]);
      write_weights(run, tile, weights, part);
    });
  }

 private:
  void update_momentum(const RunTensors& run, const Tile& tile, const StepInfo& info, DType dtype) const {
    const double mu = settings_.momentum;
    float grad[tile_numel], momentum[tile_numel];
    read_tile(run.grad, run.grad_dtype, tile, grad);
    read_tile(run.state[0], dtype, tile, momentum);
    for (std::int64_t i = 0; i < tile.count; ++i)
      momentum[i] = static_cast<float>(mu * momentum[i] + (1 - mu) * (grad[i] * info.grad_scale));
    kernels::cpu_kernels().from_f32(momentum, advance(run.state[0], dtype, tile.offset), dtype, tile.count);
  }
  // As far as the passes so far say: minus the mean row, times the row's factor.
  static void normalise(const Tile& tile, std::span<const LineFactors> passes, float* a) {
    if (!passes.empty())
      for (std::int64_t i = 0; i < tile.count; ++i) a[i] -= passes[0].factor[tile.col + i];
    if (passes.size() > 1)
      for (std::int64_t i = 0; i < tile.count; ++i) a[i] *= passes[1].factor[tile.row];
  }

  LineNormSettings settings_;
};

}  // namespace

const RuleEntry centred_row_norm_entry{
    [] {
      return info_of<LineNormSettings>({"centred_row_norm",
                                        "row-norm without what all rows share",
                                        "arXiv 2605.18106; timlautk/equivariant_optimizers",
                                        "high: read in the authors' code",
                                        {}},
                                       line_norm_settings());
    },
    [](std::span<const std::pair<std::string, std::string>> given) -> std::shared_ptr<const Rule> {
      return std::make_shared<CentredRowNormRule>(
          read_settings<LineNormSettings>("centred_row_norm", line_norm_settings(), given));
    }};

}  // namespace regatta
