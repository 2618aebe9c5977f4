#pragma once
// What the rules of the matrix view share: momentum and direction of a run, Newton-Schulz at the owner, and the way
// back into the weights.
//
//     ema         M <- mu M + (1 - mu) G      Nesterov: D = mu M + (1 - mu) G
//     heavy_ball  M <- mu M + G               Nesterov: D = mu M + G          without Nesterov D = M
//
// M and D are computed in fp64 and rounded once to fp32, M also to the momentum's dtype. D travels as bf16 when the
// iteration computes in bf16, as fp32 otherwise.

#include <span>

#include "runtime/rules/newton_schulz.h"
#include "runtime/rules/rule.h"
#include "runtime/rules/settings.h"
#include "runtime/rules/sweep_tasks.h"

namespace regatta {

struct MatrixSettings {
  enum class Form : std::uint8_t { ema, heavy_ball };
  double momentum = 0.95;
  bool nesterov = true;
  Form form = Form::ema;
  double weight_decay = 0;
  NewtonSchulz iteration;

  // The iteration's, under their own names so that the tables of settings can point at them.
  int steps = 5;
  NewtonSchulz::Coefficients coefficients = NewtonSchulz::Coefficients::classic;
  bool fp32 = false;
};

inline constexpr std::string_view off_on[] = {"off", "on"};
inline constexpr std::string_view precision_names[] = {"bf16", "fp32"};
inline constexpr std::string_view coefficient_names[] = {"classic", "quintic", "polar_express"};

/// momentum, nesterov, weight_decay, steps, coefficients, precision.
template <class Settings>
constexpr std::array<Setting<Settings>, 6> matrix_settings() {
  return {fraction_setting<&MatrixSettings::momentum, Settings>("momentum"),
          choice_setting<&MatrixSettings::nesterov, off_on, Settings>("nesterov", "on or off"),
          amount_setting<&MatrixSettings::weight_decay, Settings>("weight_decay"),
          Setting<Settings>{"steps", "a whole number from 1 to 32",
                            [](Settings& s, std::string_view text) {
                              return parse_number(text, s.steps) && s.steps >= 1 && s.steps <= 32;
                            },
                            [](const Settings& s) { return std::to_string(s.steps); }},
          choice_setting<&MatrixSettings::coefficients, coefficient_names, Settings>(
              "coefficients", "classic, quintic or polar_express"),
          choice_setting<&MatrixSettings::fp32, precision_names, Settings>("precision", "bf16 or fp32")};
}

/// Own settings before or after the shared ones.
template <class Settings, std::size_t own_count>
constexpr auto with_matrix_settings(const Setting<Settings> (&own)[own_count]) {
  std::array<Setting<Settings>, own_count + 6> all{};
  std::size_t at = 0;
  for (const Setting<Settings>& setting : own) all[at++] = setting;
  for (const Setting<Settings>& setting : matrix_settings<Settings>()) all[at++] = setting;
  return all;
}

class MatrixRule : public Rule {
 public:
  std::vector<StateSpec> state(DType momentum_dtype) const override { return {{"momentum", momentum_dtype}}; }
  sharding::View view(MatrixShape) const override { return sharding::View::matrix(traffic()); }
  DType payload_dtype() const override { return common_.fp32 ? DType::f32 : DType::bf16; }
  void direct(const RunTensors&, MatrixShape block, const StepInfo&, DType momentum_dtype, void* direction,
              const Riders&, ThreadPool&) const override;
  std::int64_t scratch(MatrixShape block) const override { return newton_schulz_scratch(common_.iteration, block); }
  /// Orthogonalises, counts the direction's norm as a line of the health figures, then calls finish().
  void solve(WholeMatrix&, const StepInfo&, ThreadPool&, kernels::SweepHealth&) const override;
  /// w <- fl(w decay) - fl(s o), s = scale * row factor * column factor in fp64, rounded once. Those of the factors
  /// that travel.
  void update(const RunTensors&, MatrixShape block, const StepInfo&, DType momentum_dtype, ThreadPool&,
              kernels::SweepHealth&) const override;

 protected:
  explicit MatrixRule(const MatrixSettings& common);

  /// Payload of elements alone; rules add what rides along.
  virtual sharding::View::Traffic traffic() const { return {.element_bytes = size_of(payload_dtype())}; }
  /// The direction's sign in its place, taken before it travels.
  virtual bool takes_sign() const { return false; }
  /// At the owner, with the orthogonal factor in `matrix.values`: its states, factors and number.
  virtual void finish(WholeMatrix&, const StepInfo&) const {}
  /// Of update(), with the block's number.
  struct Step {
    double scale = 0;
    double decay = 1;
  };
  virtual Step step(MatrixShape, const StepInfo&, double /*number*/) const { return {}; }
  Step decoupled(const StepInfo& info, double scale) const {
    return {info.lr * scale, 1 - info.lr * common_.weight_decay};
  }

  MatrixSettings common_;
};

/// Tasks of a run and tiles of a task: some neighbouring elements of one row.
struct Tile {
  std::int64_t offset = 0;  ///< from the run's first element
  std::int64_t row = 0;     ///< from the first row the run touches
  std::int64_t col = 0;     ///< of the run's matrix
  std::int64_t count = 0;   ///< at most tile_numel
};
inline constexpr std::int64_t tile_numel = 512;

template <class Body>
void for_each_tile(const MatrixRun& run, const Body& body) {
  if (run.empty()) return;
  const std::int64_t first_row = run.touched_rows().begin;
  for (std::int64_t at = run.begin; at < run.end;) {
    const std::int64_t row = at / run.cols, col = at % run.cols;
    const std::int64_t count = std::min({run.cols - col, run.end - at, tile_numel});
    body(Tile{at - run.begin, row - first_row, col, count});
    at += count;
  }
}

/// Calls body(tile, health) for all tiles of a run on the pool's threads.
template <class Body>
void sweep_tiles(const MatrixRun& run, ThreadPool& pool, kernels::SweepHealth& health, const Body& body) {
  const SweepTasks tasks(run, std::int64_t{1} << 16);
  const std::int64_t first_row = run.empty() ? 0 : run.touched_rows().begin;
  run_with_health(pool, tasks.count(), health, [&](std::int64_t task, kernels::SweepHealth& part) {
    const MatrixRun piece = tasks.task(task);
    if (piece.empty()) return;
    const std::int64_t rows = piece.touched_rows().begin - first_row, offset = piece.begin - run.begin;
    for_each_tile(piece, [&](Tile tile) {
      tile.row += rows;
      tile.offset += offset;
      body(tile, part);
    });
  });
}

/// A tile of an array of any dtype as fp32.
inline void read_tile(const void* from, DType dtype, const Tile& tile, float* to) {
  kernels::cpu_kernels().to_f32(advance(from, dtype, tile.offset), dtype, to, tile.count);
}
/// Writes new weights, and the parameter where it has another dtype, and counts them.
void write_weights(const RunTensors&, const Tile&, const float* weights, kernels::SweepHealth&);

}  // namespace regatta
