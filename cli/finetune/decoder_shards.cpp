#include "cli/finetune/decoder_shards.h"

#include <algorithm>

#include "cli/finetune/decoder_shapes.h"
#include "cli/finetune/tensor_parallel.h"
#include "runtime/error.h"

namespace regatta::finetune {

std::vector<ParamShard> decoder_shards(const DecoderConfig& config, const sharding::Mesh& mesh, int rank) {
  const int tp = mesh.size("tp"), tp_rank = mesh.coordinate(rank, "tp");
  std::vector<ParamShard> shards;
  for (const ParamShape& param : decoder_shapes(config)) {
    ParamShard& shard = shards.emplace_back();
    shard.name = param.name;
    shard.shape = param.shape;
    shard.placement = decoder_placement(config, param.name, mesh);
    shard.local_shape = param.shape;
    const bool vector = param.shape.size() == 1;
    shard.rows = {0, vector ? 1 : param.shape[0]};
    shard.cols = {0, param.shape.back()};
    if (const sharding::AxisPlacement* cut = shard.placement.find("tp")) {
      Range& range = vector || cut->dim == 1 ? shard.cols : shard.rows;
      const std::int64_t extent = range.size();
      range = sharding::chunk(extent, tp, tp_rank);
      if (range.empty()) {
        throw Error(Code::invalid_argument, "mesh " + mesh.text() + ": " + std::to_string(extent) + " rows of " +
                                                param.name + " leave nothing for tp rank " + std::to_string(tp_rank) +
                                                "; fewer tp ranks were expected");
      }
      shard.local_shape[vector ? 0 : static_cast<std::size_t>(cut->dim)] = range.size();
    }
  }
  return shards;
}

const ParamShard* find_shard(const std::vector<ParamShard>& shards, const std::string& name) {
  const auto found =
      std::find_if(shards.begin(), shards.end(), [&](const ParamShard& shard) { return shard.name == name; });
  return found == shards.end() ? nullptr : &*found;
}

}  // namespace regatta::finetune
