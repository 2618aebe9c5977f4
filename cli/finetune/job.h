#pragma once
// What a rank brings to the training run before it meets the others: the model with its first weights, the data, the
// rules.
//
// Nothing here is collective, so bad input is found by each rank on its own. One per rank, used by its thread.

#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/finetune/decoder.h"
#include "cli/finetune/options.h"
#include "cli/finetune/token_data.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/torch/adapter.h"
#include "sharding/mesh.h"

namespace regatta::finetune {

/// Tokens of some files and the windows that are cut from them.
struct Corpus {
  Corpus(const std::vector<std::string>& paths, const std::string& flag, std::int64_t vocab, std::int64_t seq,
         std::uint64_t seed);
  /// `count` windows of seq + 1 tokens as [count, seq + 1]; `begin(row)` says where each starts.
  torch::Tensor rows(std::int64_t count, const std::function<std::int64_t(std::int64_t)>& begin) const;

  std::int64_t seq;
  TokenData tokens;
  WindowSampler windows;
};

struct Job {
  /// Reads everything the options name, of the model what `rank` holds. Throws Error(invalid_argument). Sets the
  /// calling thread's LibTorch threads.
  /// `resumed`: its weights take the place of the first ones.
  Job(const Options& options, const sharding::Mesh& mesh, int rank, checkpoint::Checkpoint* resumed = nullptr);

  Options options;
  std::unique_ptr<Decoder> model;
  Corpus train;
  std::optional<Corpus> eval;
  std::vector<ModuleParam> module_params;
  std::vector<Param> params;  ///< for the engine, with their groups and global shapes
  std::vector<Group> groups;
  std::vector<std::string> warnings;
};

}  // namespace regatta::finetune
