#pragma once
// The flags that say how parameters and state lie on the ranks, shared by the subcommands.

#include <functional>
#include <string>
#include <vector>

#include "runtime/engine/engine.h"

namespace CLI {
class App;
}

namespace regatta::cli {

struct EngineFlags {
  std::string mesh = "dp=1", mode = "zero1", cut = "row", momentum_dtype = "fp32";
  std::vector<std::string> places, blocks;
  std::int64_t bucket_bytes = 25 << 20;
  int threads = 1;
  int proof_every = 0;
  bool proof_stops = false;
  double clip = 0;
};

/// --mesh, --mode, --cut, --place, --blocks, --bucket-bytes, --momentum-dtype, --threads, --clip.
void add_engine_flags(CLI::App& app, EngineFlags& flags);

/// The functions below throw Error(invalid_argument) with a sentence.
sharding::Mesh parse_mesh(const std::string& text);
EngineOptions engine_options(const EngineFlags& flags);
/// By name: the last --place that matches, otherwise `usual(name)` where it is given, otherwise replicated. In mode
/// sharded, rows over dp where nothing is said of dp.
std::vector<sharding::Placement> placements_for(
    const EngineFlags& flags, const std::vector<std::string>& names, const sharding::Mesh& mesh,
    const std::function<sharding::Placement(const std::string& name)>& usual = {});
/// Row counts of the logical blocks by name; empty where nothing is said.
std::vector<std::vector<std::int64_t>> blocks_for(const EngineFlags& flags, const std::vector<std::string>& names);

}  // namespace regatta::cli
