#pragma once
// The inside of an Engine, shared by its source files and nobody else.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/device/thread_pool.h"
#include "runtime/engine/device_side.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/gradients.h"
#include "runtime/engine/line_exchange.h"
#include "runtime/engine/matrix_exchange.h"
#include "runtime/engine/proof.h"
#include "runtime/engine/state.h"
#include "runtime/engine/vote.h"
#include "runtime/engine/work.h"
#include "runtime/transport/transport.h"

namespace regatta {

struct Engine::Impl {
  struct Bucket {
    SymmetricBuffer params;
    // When `params` is the host's copy, for a transport that cannot read the device:
    HostPin pin;
    Buffer on_device;
    std::byte* home = nullptr;  // where the parameters lie
    DType dtype = DType::f32;
    std::vector<std::int64_t> bounds_bytes;
    std::string label;
    // Of any rank, so that all ranks gather in the same order:
    bool has_open_lines = false;
    int last_wave = -1;  // in which some matrix of it is computed; -1: none
    std::vector<int> works;
    Ticket gather;
  };

  Impl(std::vector<Param> params, std::vector<Group> groups, const sharding::Mesh& mesh, Transport& transport,
       EngineOptions options);
  ~Impl() { world->drain(); }  // queued calls read and write the members

  // Setting up (engine_setup.cpp).
  std::unique_ptr<Transport> own_world(Transport& transport, const sharding::Mesh& mesh) const;
  void allocate_buckets();
  void bind_works();
  void make_matrix_exchanges();
  void fill_master_weights();

  std::byte* element(int bucket, std::int64_t offset) const {
    return buckets[bucket].home + offset * size_of(buckets[bucket].dtype);
  }
  const Rule& rule(const Work& work) const { return *rules[work.param]; }

  // The step (engine.cpp).
  void hold_vote();
  bool vote_is_known() const { return !device_side || device_side->vote() == nullptr; }
  void update(StepReport& report, double lr);
  void set_infos(double lr, double clip_factor);
  void bind_gradients();
  void observe(int round);
  void update_bucket(int bucket);
  void update_closed(int first_bucket, int last_bucket);
  void apply_open(Bucket& bucket);
  void gather(Bucket& bucket);
  void sweep(StepTimes& times);
  void sweep_matrices(StepTimes& times, int& closed_done);
  void finish_wave(int wave);
  void sweep_lines(StepTimes& times, int& closed_done);

  // The same on a device, and what lies there seen from the host (engine_device.cpp).
  std::unique_ptr<DeviceSide> make_device_side() const;
  void begin_device_step();
  void end_device_step();
  void vote_on_device();
  void gather_from_device(Bucket& bucket);
  void take_gathered(Bucket& bucket);
  void fill_device_master_weights();
  void mirror_state() const;
  void* device_state(const StatePart& part) const;
  bool exchange_needed(int round) const;
  Ticket send_partials(int round);
  Ticket send_answers(int round);
  void take_answers(int round);
  /// On a device, what follows there waits; on the CPU, the caller.
  void await(const Ticket& ticket) const { device_side ? ticket.then(device_side->stream()) : ticket.wait(); }

  // What the step tells (engine_report.cpp).
  StepReport start_report(double lr) const;
  void take_norms(StepReport& report) const;
  void skip(StepReport& report);
  void collect_health(StepReport& report);
  void prove(StepReport& report);
  void adapt_loss_scale(bool skipped);
  StepBytes sent_bytes() const;
  void count_bytes(StepReport& report);

  // Commands (commands.cpp).
  void find_changes(const Command& command, std::vector<SettingChange>& changes, std::vector<Group>& changed) const;
  void refresh_rules();
  double group_lr(int group, double lr) const { return own_lr[group].value_or(lr * groups[group].lr_scale); }

  std::vector<Param> params;
  std::vector<Group> groups;
  EngineOptions options;
  int rank;
  sharding::Plan plan;
  std::vector<const Rule*> rules;  // by parameter
  // Groups of its own, so that the trainer's collectives are not counted as the engine's.
  std::unique_ptr<Transport> world, dp_group;
  const kernels::KernelTable& kernels;
  ThreadPool pool;
  HostArrays host_arrays;
  std::unique_ptr<DeviceSide> device_side;  // null on the CPU
  Gradients gradients;
  OptimizerState state;
  Vote vote;
  std::vector<Bucket> buckets;
  std::vector<Work> works;
  std::vector<std::unique_ptr<LineExchange>> exchanges;  // by round
  int rounds = 0;
  std::vector<MatrixStaging> staging;
  MatrixScratch matrix_scratch;
  std::vector<std::unique_ptr<MatrixExchange>> waves;
  mutable Buffer state_mirror;   // what state_parts() shows of a device's state
  std::unique_ptr<Proof> proof;  // null when there is none

  std::vector<StepInfo> infos;                // by group
  Command pending;                            // rank 0's, for the next vote
  std::optional<double> commanded_lr;         // in place of step()'s
  std::vector<std::optional<double>> own_lr;  // by group, in place of that
  std::optional<double> last_lr;              // of the last step
  // Health figures of parameters, as they travel: those of each rank's voted parameters, one rank after another.
  std::vector<kernels::SweepHealth> own_health, all_health, param_health;
  std::vector<std::int64_t> health_bytes;
  std::vector<int> health_params;  // the parameter of each entry of all_health
  std::vector<ParamReport> param_reports;
  std::int64_t step_count = 0, skipped_steps = 0;
  double loss_scale = 1;
  int finite_steps = 0;  // since the last change of the loss scale
  StepBytes counted;     // up to the last step
};

}  // namespace regatta
