#pragma once
// What a rank holds of a decoder's parameters, by name: all of each, or its tensor-parallel part.

#include <cstdint>
#include <string>
#include <vector>

#include "cli/finetune/decoder_config.h"
#include "sharding/mesh.h"
#include "sharding/placement.h"

namespace regatta::finetune {

struct ParamShard {
  std::string name;
  std::vector<std::int64_t> shape;        ///< global
  sharding::Placement placement;          ///< over tp
  Range rows, cols;                       ///< this rank's, of the global matrix; a vector is one row
  std::vector<std::int64_t> local_shape;  ///< of this rank's tensor
  std::int64_t numel() const { return (shape.size() == 1 ? 1 : shape[0]) * shape.back(); }  ///< global
};

/// Throws Error(invalid_argument) when the decoder cannot be split that way.
std::vector<ParamShard> decoder_shards(const DecoderConfig& config, const sharding::Mesh& mesh, int rank);

const ParamShard* find_shard(const std::vector<ParamShard>& shards, const std::string& name);

}  // namespace regatta::finetune
