#pragma once
// How a Llama-family decoder lies on a mesh with an axis `tp`: the layout of Megatron, which needs two sums of
// activations per layer. Shared by the trainer and by `regatta plan`, so that both mean the same shards.
//
// Queries, keys, values, gate and up are cut by output rows (whole heads), the two projections back to the hidden size
// by input columns, embedding and head by vocabulary; norms, and biases of the projections back, are replicated. Where
// the key-value heads are fewer than tp, keys and values are replicated: each rank reads the heads that its queries
// share.
//
// Pure functions. Errors: Error(invalid_argument) naming the mesh, the size and what was expected.

#include <string>

#include "cli/finetune/decoder_config.h"
#include "sharding/mesh.h"
#include "sharding/placement.h"

namespace regatta::finetune {

/// Refuses a mesh whose `tp` axis does not divide the heads, the intermediate size, or the key-value heads (unless they
/// divide tp). The vocabulary may be uneven: it is cut as torch.chunk cuts it, and the last ranks may hold less or
/// nothing.
void check_tensor_parallel(const DecoderConfig&, const sharding::Mesh&);

/// Whether every tp rank keeps all keys and values. Requires a checked mesh.
bool replicates_key_values(const DecoderConfig&, const sharding::Mesh&);

/// Of the parameter `name` as in the checkpoint, such as model.layers.0.mlp.up_proj.weight. Says nothing about dp.
/// Throws also when no such parameter is in the decoder.
sharding::Placement decoder_placement(const DecoderConfig&, const std::string& name, const sharding::Mesh&);

}  // namespace regatta::finetune
