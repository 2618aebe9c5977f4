#pragma once
// Going on from a checkpoint: which one, whether this job is the one that was saved, and what it goes on with.

#include <memory>
#include <string>
#include <vector>

#include "cli/finetune/job.h"
#include "cli/ranks.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/engine/engine.h"

namespace regatta::finetune {

/// Collective. The checkpoint that --resume names, every byte of it checked, ranks sharing the work; null when there is
/// none to go on from. Throws Error(invalid_argument) on all ranks when the folder named holds no sound one, or when a
/// new job would write among another's checkpoints. `warned` hears of damaged ones that were skipped.
std::unique_ptr<checkpoint::Checkpoint> choose_checkpoint(const Options& options, cli::RankContext& context,
                                                          const std::function<void(const std::string&)>& warned);

/// The manifest's `job`: how far it is, what must be the same for a job that goes on, and what is good to know.
std::string job_json(const Job& job, const sharding::Mesh& mesh, const Engine& engine, std::int64_t step);

struct Resumed {
  std::int64_t step = 0;  ///< made already
  std::string told;       ///< one sentence: what goes on
};
/// Loads state and progress into the engine, after its parameters were published. Throws Error(invalid_argument)
/// listing what differs and the --allow that would go on all the same. Not collective.
Resumed resume(checkpoint::Checkpoint& from, const Job& job, const sharding::Mesh& mesh, Engine& engine);

}  // namespace regatta::finetune
