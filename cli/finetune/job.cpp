#include "cli/finetune/job.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "cli/finetune/weights.h"
#include "runtime/error.h"

namespace regatta::finetune {

namespace {

/// Before the first tensor of this thread: the thread count is part of the arithmetic's order, and each thread has its
/// own.
const Options& with_threads(const Options& options) {
  at::set_num_threads(options.engine.threads);
  return options;
}

std::unique_ptr<Decoder> make_model(const Options& options, const sharding::Mesh& mesh, int rank) {
  const at::ScalarType type = options.dtype == DType::bf16 ? at::kBFloat16 : at::kFloat;
  const DecoderConfig config = options.random_init() ? options.sizes : read_decoder_config(options.init);
  const auto limit = [&](std::int64_t most, const char* what) {
    if (options.seq > most) {
      throw Error(Code::invalid_argument, "--seq " + std::to_string(options.seq) + " is longer than the model's " +
                                              what + " of " + std::to_string(most));
    }
  };
  limit(config.positions, "longest sequence (max_position_embeddings)");
  if (config.sliding_window > 0) limit(config.sliding_window, "sliding window, which this decoder does not compute,");
  auto model = std::make_unique<Decoder>(config, type, mesh, rank);
  if (options.random_init()) {
    init_random(*model, options.seed);
  } else {
    load_weights(*model, options.init);
  }
  return model;
}

}  // namespace

Corpus::Corpus(const std::vector<std::string>& paths, const std::string& flag, std::int64_t vocab, std::int64_t length,
               std::uint64_t seed)
    : seq(length),
      tokens(paths, vocab),
      windows(tokens.size(), length, seed, flag + " " + paths.front() + (paths.size() > 1 ? " and others" : "")) {}

torch::Tensor Corpus::rows(std::int64_t count, const std::function<std::int64_t(std::int64_t)>& begin) const {
  const std::int64_t length = seq + 1;
  const torch::Tensor result = at::empty({count, length}, at::kLong);
  for (std::int64_t row = 0; row < count; ++row) {
    tokens.read(begin(row), {result.data_ptr<std::int64_t>() + row * length, static_cast<std::size_t>(length)});
  }
  return result;
}

Job::Job(const Options& given, const sharding::Mesh& mesh, int rank, checkpoint::Checkpoint* resumed)
    : options(with_threads(given)),
      model(make_model(options, mesh, rank)),
      train(options.data, "--data", model->config().vocab, options.seq, options.seed),
      module_params(regatta::module_params(*model)),
      params(describe(module_params)) {
  if (!options.eval_data.empty()) eval.emplace(options.eval_data, "--eval-data", model->config().vocab, options.seq, 0);

  std::vector<std::string> names;
  for (Param& param : params) {
    const ParamShard& shard = *find_shard(model->shards(), param.name);
    param.shape = shard.shape;
    param.placement = shard.placement;
    names.push_back(param.name);
  }
  const auto usual = [&](const std::string& name) {
    const auto at = std::find(names.begin(), names.end(), name) - names.begin();
    return usual_rule(module_params[static_cast<std::size_t>(at)].kind, options.rules.rule);
  };
  cli::RuleChoice choice = cli::choose_rules(options.rules, names, options.schedule.base, usual);
  options.schedule.base = choice.lr;
  groups = std::move(choice.groups);
  const std::vector<std::vector<std::int64_t>> blocks = cli::blocks_for(options.engine_flags, names);
  for (std::size_t i = 0; i < params.size(); ++i) {
    params[i].group = choice.group_of[i];
    params[i].block_rows = blocks[i];
  }

  if (!options.bucket_bytes_given) {
    // About ten buckets, so that reductions start early in backward; each worth its messages, none above the usual
    // size.
    // From global sizes, as all ranks must choose alike.
    std::int64_t bytes = 0;
    for (const ParamShard& shard : model->shards()) bytes += shard.numel() * size_of(options.dtype) / mesh.size("tp");
    options.engine.bucket_bytes = std::clamp<std::int64_t>(bytes / 10, 64 << 10, options.engine.bucket_bytes);
  }

  if (resumed != nullptr) {
    const std::vector<std::string>& allow = options.checkpoints.allow;
    const bool partial = std::find(allow.begin(), allow.end(), "tensors") != allow.end();
    const std::string misfits = load_weights(*model, resumed->weights(), resumed->path(), partial);
    if (!misfits.empty()) warnings.push_back("went on with other tensors: " + misfits);
  }

  constexpr std::int64_t largest_byte_vocabulary = 1024;  // some room for special tokens
  const bool text = train.tokens.has_text() || (eval && eval->tokens.has_text());
  if (text && !options.random_init() && model->config().vocab > largest_byte_vocabulary) {
    warnings.push_back("text is read byte by byte, but " + options.init + " has a vocabulary of " +
                       std::to_string(model->config().vocab) +
                       "; give it .u16 or .u32 files of its own tokenizer's ids");
  }
}

}  // namespace regatta::finetune
