#pragma once
// One rank's whole fine-tuning job, without LibTorch in sight: the program and its flags are compiled against system
// libraries only, as a Python-installed LibTorch brings headers of its own versions of some of them.

#include "cli/finetune/options.h"
#include "cli/ranks.h"
#include "sharding/mesh.h"

namespace regatta::finetune {

/// Collective over the ranks of the mesh. Requires completed options.
/// Throws Error(invalid_argument) when the model cannot be on options.engine.device.
void check_device(const Options& options, const sharding::Mesh& mesh);

void run_rank(const Options& options, const sharding::Mesh& mesh, cli::RankContext& context);

}  // namespace regatta::finetune
