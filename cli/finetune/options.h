#pragma once
// What `regatta finetune` was asked for, as its flags give it. Plain values; check_options says what cannot be.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/device_flags.h"
#include "cli/engine_flags.h"
#include "cli/finetune/decoder_config.h"
#include "cli/rule_flags.h"
#include "runtime/control/server.h"
#include "runtime/engine/engine.h"
#include "runtime/rules/schedule.h"
#include "runtime/telemetry/telemetry.h"
#include "sharding/mesh.h"

namespace regatta::finetune {

struct CheckpointFlags {
  std::string dir;         ///< empty: OUT/checkpoints
  std::int64_t every = 0;  ///< steps; 0: only when asked to
  int keep_last = 0;       ///< 0: all
  std::int64_t keep_every = 0;
  std::string resume;              ///< "auto", or a folder; empty: from the beginning
  std::vector<std::string> allow;  ///< what may differ between the job that saved and this one

  bool wanted() const { return every > 0 || !dir.empty() || !resume.empty(); }
};

struct Options {
  std::string init = "random";  ///< or a folder
  DecoderConfig sizes;          ///< of a random model
  std::vector<std::string> data;
  std::vector<std::string> eval_data;
  std::int64_t eval_every = 0;  ///< 0: before and after only
  std::int64_t eval_sequences = 64;
  std::int64_t steps = 100;
  std::int64_t seq = 128;
  std::int64_t micro_batch = 4;
  std::int64_t global_batch = 0;  ///< 0: one micro-batch per dp rank
  std::string transport = "local";
  std::string dtype_name = "fp32", accumulation = "sum", schedule_name = "constant", non_finite = "skip";
  DType dtype = DType::f32;  ///< from its name, by complete()
  std::uint64_t seed = 0;
  cli::RuleFlags rules;
  Schedule schedule;
  std::vector<std::string> lr_at;  ///< STEP=VALUE, steps from 1
  cli::EngineFlags engine_flags;
  cli::DeviceFlags device;
  bool bucket_bytes_given = false;  ///< otherwise they follow the size of the model
  EngineOptions engine;             ///< from engine_flags and others, by complete()
  double deadline_seconds = 600;
  TelemetrySettings metrics;
  control::ServerSettings control;  ///< no address: no service
  std::string control_audit;        ///< empty: OUT/audit.jsonl
  CheckpointFlags checkpoints;
  std::string out;
  std::string config;
  bool json = false;

  bool random_init() const { return init == "random"; }
  std::string checkpoint_dir() const { return checkpoints.dir.empty() ? out + "/checkpoints" : checkpoints.dir; }
};

/// The mesh asked for; throws Error(invalid_argument) when it cannot be, also for axes other than dp and tp.
sharding::Mesh mesh_of(const Options& options);

/// Completes defaults that depend on the mesh and throws Error(invalid_argument) with one sentence on what does not
/// fit.
void complete(Options& options, const sharding::Mesh& mesh);

}  // namespace regatta::finetune
