#pragma once
// The engine: owns bucketed parameters, momentum and master weights of one rank and makes the optimizer's step.
//
// One engine per rank, driven by one thread; add_grad may come from that thread only (LibTorch's CPU backward
// runs hooks on the thread that called backward). Gradients are summed over dp, never averaged: scale the loss.
//
//     Engine engine(params, groups, mesh, transport, options);          // collective
//     ... write initial values to engine.param(i), then engine.publish_params()
//     for each step:
//       for each of options.micro_batches: backward, handing each gradient to engine.add_grad(i, ...)
//       StepReport report = engine.step(lr);                            // collective
//
// Gradients of the last micro-batch start the reduce-scatter of their bucket as soon as the bucket is full, behind the
// rest of backward. step() waits for them, agrees on finiteness and the global norm before any state is written,
// sweeps, and gathers the parameters back.
//
// Errors: Error(invalid_argument) on a wrong call, before anything is sent; ranks whose plans differ learn the first
// difference at construction. Transport errors leave the engine unusable.

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/engine/param.h"
#include "runtime/engine/step_report.h"
#include "runtime/rules/rule.h"
#include "sharding/mesh.h"
#include "sharding/plan.h"

namespace regatta {

class Device;
class Transport;

enum class Mode {
  zero1,    ///< whole (tp-local) parameters and gradients; state sharded over dp
  zero2,    ///< as zero1, but a bucket's gradients are freed when its reduce-scatter ends; each micro-batch is reduced
  sharded,  ///< parameters and gradients are shards already (rows, columns or flat over dp); only lines are exchanged
};

enum class Accumulation {
  sum,   ///< plain addition in arrival order
  tree,  ///< balanced binary tree over the global batch: the same bits on 1, 2, 4, ... ranks
};

enum class NonFinite { skip, stop };

struct Group {
  std::string name;
  std::shared_ptr<const Rule> rule;  ///< shared: one rule may serve several groups, and holds no state
  double lr_scale = 1;
};

struct LossScaling {
  double initial = 1;       ///< 1 and growth_interval 0: off
  int growth_interval = 0;  ///< finite steps before doubling; 0: static
  double smallest = 1;
};

struct EngineOptions {
  Mode mode = Mode::zero1;
  sharding::Cut cut = sharding::Cut::row;
  std::int64_t bucket_bytes = 25 << 20;
  int micro_batches = 1;  ///< add_grad calls per parameter and step on this rank
  Accumulation accumulation = Accumulation::sum;
  double clip = 0;  ///< global gradient norm; 0: no clipping
  NonFinite non_finite = NonFinite::skip;
  LossScaling loss_scaling;
  DType momentum_dtype = DType::f32;
  int threads = 1;  ///< of the sweeps
  /// Every so many steps one parameter, drawn anew, is gathered before and after the step and computed again on one
  /// rank, whole; 0: never. Its messages are not counted in StepReport::bytes.
  int proof_every = 0;
  bool proof_stops = false;  ///< a proof that fails ends the job with Error(device)
  /// Where parameters, gradients and state lie and sweeps run; null: the CPU. shared_ptr: ranks of a process share it.
  std::shared_ptr<Device> device;
  /// On a device, by a single rank: a step's launches are captured into a CUDA graph in the second step and launched as
  /// one from then on. Refused with more ranks.
  bool device_graph = false;
};

/// Where a parameter lies on this rank.
struct ParamView {
  void* data = nullptr;  ///< contiguous local values, in `dtype`, on the engine's device; stable for its life
  std::int64_t numel = 0;
  DType dtype = DType::f32;
};

/// A part of one state tensor that this rank holds (replicas excluded when `primary` is false). Most states are as
/// large as their block; rules that see whole matrices also keep numbers per row, per column or per block, whole at one
/// rank.
struct StatePart {
  std::string state;  ///< "momentum", "moment2", "master", ...
  int param = 0;
  int block = 0;
  sharding::BlockPart part;
  const void* data = nullptr;  ///< part.run.size() elements on the host; of a device, a copy that the next call renews
  DType dtype = DType::f32;
  bool primary = true;  ///< false on ranks that hold a replica of another rank's part
  MatrixShape shape;    ///< of the whole state of the block, in whose coordinates `part` is
};

/// The numbers that a resumed engine goes on with, beside its state parts. Equal on all ranks.
struct EngineProgress {
  struct GroupSettings {
    std::string name;
    std::vector<std::pair<std::string, std::string>> rule;  ///< settings of the rule, as commands have changed them
    std::optional<double> own_lr;                           ///< that a command gave to this group
  };
  std::int64_t steps = 0;  ///< updates applied
  std::int64_t skipped_steps = 0;
  double loss_scale = 1;
  int finite_steps = 0;                ///< since the loss scale last changed
  std::optional<double> commanded_lr;  ///< in place of the schedule's
  double clip = 0;
  std::vector<GroupSettings> groups;
};

class Engine {
 public:
  Engine(std::vector<Param> params, std::vector<Group> groups, const sharding::Mesh& mesh, Transport& transport,
         EngineOptions options);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  ParamView param(int index);
  /// Copies param(index) to or from memory of the host, wherever it lies. Blocking.
  void read_param(int index, void* to);
  void write_param(int index, const void* from);
  /// On a device: the stream (a cudaStream_t) that gradients and the model's arithmetic are on, from now on; at first
  /// the default stream. step() puts its work there as well. Not between add_grad() and step().
  void use_stream(void* stream);
  /// Collective. Takes the values now in param(i) as the model: fills master weights. Ranks that hold replicas of a
  /// parameter (dp peers, and along axes that do not cut it) must hold equal values; others are refused by name.
  void publish_params();

  /// One micro-batch's gradient of a parameter, param(index).numel elements, on the engine's device. The memory may be
  /// reused on return; on a device, by what follows on the same stream.
  void add_grad(int index, const void* grad, DType dtype);
  /// The global index of this rank's micro-batch `k` of a step, so that every mesh sees the same global batch in the
  /// same tree.
  std::int64_t micro_batch_index(int k) const;
  /// The factor the loss must carry (fp16); 1 when loss scaling is off.
  double loss_scale() const;

  /// Collective. Parameters without a gradient in this step count as zero gradients.
  StepReport step(double lr);

  /// On rank 0: sends `command` to all ranks with the next step. Its settings hold on every rank from the step after
  /// that, which also StepReport::command says. Throws Error(invalid_argument) on what cannot be, and when a command is
  /// waiting already.
  void post(const Command& command);
  /// What the settings of `command` would change, by group; throws Error(invalid_argument) on what cannot be.
  std::vector<SettingChange> changes_of(const Command& command) const;
  /// Applies settings between two steps. Collective in effect: every rank makes the same call at the same point.
  void apply(const Command& command);
  /// With the rules as commands have changed them.
  const std::vector<Group>& groups() const;

  /// Every parameter's figures of the last step that was not skipped; valid until the next step.
  std::span<const ParamReport> param_reports() const;

  std::int64_t step_count() const;
  const sharding::Plan& plan() const;
  const EngineOptions& options() const;
  /// Bytes of optimizer state (momentum, moments, master weights) on this rank.
  std::int64_t state_bytes() const;
  /// This rank's parts of all state tensors, for saving, loading and proofs.
  std::vector<StatePart> state_parts() const;
  /// Overwrites a part that state_parts() returned.
  void load_state(const StatePart& part, const void* data);
  void set_step_count(std::int64_t step);
  EngineProgress progress() const;
  /// Between two steps, equally on all ranks. Throws Error(invalid_argument) when the groups or their rules' settings
  /// have other names than this engine's.
  void restore(const EngineProgress& progress);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace regatta
