#include "runtime/rules/matrix_rule.h"

#include <cmath>

namespace regatta {
namespace {

using kernels::LineSum;
using kernels::SweepHealth;
using kernels::WholeSum;

template <class Sum>
void add_squares(Sum& sum, const float* values, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) kernels::add(sum, static_cast<double>(values[i]) * values[i]);
}

// Sums of squares of what the riders ask for: one sum is of the direction, two are of gradient and direction.
void add_to_riders(const Riders& riders, const MatrixRun& run, const Tile& tile, const float* grad,
                   const float* direction) {
  const auto arrays = [&](auto sums, std::int64_t lines, const auto& add) {
    if (sums.empty()) return;
    const bool both = std::ssize(sums) == 2 * lines;
    if (both) add(sums.subspan(0, lines), grad);
    add(sums.subspan(both ? lines : 0, lines), direction);
  };
  arrays(riders.row_sums, run.touched_rows().size(),
         [&](std::span<LineSum> sums, const float* values) { add_squares(sums[tile.row], values, tile.count); });
  arrays(riders.column_sums, run.cols, [&](std::span<LineSum> sums, const float* values) {
    for (std::int64_t i = 0; i < tile.count; ++i)
      kernels::add(sums[tile.col + i], static_cast<double>(values[i]) * values[i]);
  });
  arrays(riders.block_sums, 1,
         [&](std::span<WholeSum> sums, const float* values) { add_squares(sums[0], values, tile.count); });
}

}  // namespace

MatrixRule::MatrixRule(const MatrixSettings& common) : common_(common) {
  common_.iteration.steps = common.steps;
  common_.iteration.coefficients = common.coefficients;
  common_.iteration.bf16 = !common.fp32;
}

void MatrixRule::direct(const RunTensors& run, MatrixShape, const StepInfo& info, DType momentum_dtype, void* direction,
                        const Riders& riders, ThreadPool& pool) const {
  const double mu = common_.momentum, gain = common_.form == MatrixSettings::Form::ema ? 1 - mu : 1;
  const kernels::KernelTable& kernels = kernels::cpu_kernels();
  const bool sums = !riders.row_sums.empty() || !riders.column_sums.empty() || !riders.block_sums.empty();
  const auto body = [&](const Tile& tile) {
    float grad[tile_numel], momentum[tile_numel], mixed[tile_numel];
    void* const stored = advance(run.state[0], momentum_dtype, tile.offset);
    read_tile(run.grad, run.grad_dtype, tile, grad);
    read_tile(run.state[0], momentum_dtype, tile, momentum);
    for (std::int64_t i = 0; i < tile.count; ++i) {
      grad[i] *= info.grad_scale;
      momentum[i] = static_cast<float>(mu * momentum[i] + gain * grad[i]);
    }
    kernels.from_f32(momentum, stored, momentum_dtype, tile.count);
    if (momentum_dtype != DType::f32) kernels.to_f32(stored, momentum_dtype, momentum, tile.count);
    for (std::int64_t i = 0; i < tile.count; ++i) {
      const float d = common_.nesterov ? static_cast<float>(mu * momentum[i] + gain * grad[i]) : momentum[i];
      mixed[i] = !takes_sign() || std::isnan(d) ? d : d > 0 ? 1.0F : d < 0 ? -1.0F : 0.0F;
    }
    if (sums) add_to_riders(riders, run.run, tile, grad, mixed);
    kernels.from_f32(mixed, advance(direction, payload_dtype(), tile.offset), payload_dtype(), tile.count);
  };
  if (sums) return for_each_tile(run.run, body);  // on one thread: lines are shared by tasks
  SweepHealth none;
  sweep_tiles(run.run, pool, none, [&](const Tile& tile, SweepHealth&) { body(tile); });
}

void MatrixRule::solve(WholeMatrix& matrix, const StepInfo& info, ThreadPool& pool, SweepHealth& health) const {
  const double norm = newton_schulz(common_.iteration, matrix.shape, matrix.values, matrix.scratch, pool);
  kernels::count_line(health, norm, common_.iteration.eps);
  finish(matrix, info);
}

void MatrixRule::update(const RunTensors& run, MatrixShape block, const StepInfo& info, DType, ThreadPool& pool,
                        SweepHealth& health) const {
  const Step all = step(block, info, run.number);
  const auto decay = static_cast<float>(all.decay);
  sweep_tiles(run.run, pool, health, [&](const Tile& tile, SweepHealth& part) {
    float solved[tile_numel], weights[tile_numel];
    read_tile(run.solved, run.solved_dtype, tile, solved);
    const double row = run.row_factors ? all.scale * run.row_factors[tile.row] : all.scale;
    const auto one = static_cast<float>(row);
    for (std::int64_t i = 0; i < tile.count; ++i) {
      const float s = run.column_factors ? static_cast<float>(row * run.column_factors[tile.col + i]) : one;
      weights[i] = run.weight[tile.offset + i] * decay - s * solved[i];
    }
    write_weights(run, tile, weights, part);
  });
}

void write_weights(const RunTensors& run, const Tile& tile, const float* weights, SweepHealth& health) {
  float* const to = run.weight + tile.offset;
  for (std::int64_t i = 0; i < tile.count; ++i) {
    const double change = static_cast<double>(weights[i]) - to[i];
    health.update_squares += change * change;
    health.weight_squares += static_cast<double>(weights[i]) * weights[i];
    to[i] = weights[i];
  }
  if (run.param)
    kernels::cpu_kernels().from_f32(weights, advance(run.param, run.param_dtype, tile.offset), run.param_dtype,
                                    tile.count);
}

}  // namespace regatta
