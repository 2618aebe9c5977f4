#include "cli/finetune/trainer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "cli/finetune/weights.h"
#include "runtime/error.h"

namespace regatta::finetune {

namespace {

class Stopwatch {
 public:
  /// Seconds since the last call.
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - last_).count();
    last_ = now;
    return seconds;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

/// Before the first tensor of this thread: the thread count is part of the arithmetic's order, and each thread has its
/// own.
const Options& with_threads(const Options& options) {
  at::set_num_threads(options.threads);
  return options;
}

std::string text_of_data(const std::vector<std::string>& paths, const char* flag) {
  return std::string(flag) + " " + paths.front() + (paths.size() > 1 ? " and others" : "");
}

}  // namespace

Trainer::Trainer(const Options& options, const sharding::Mesh& mesh, Transport& transport)
    : options_(with_threads(options)),
      mesh_(mesh),
      transport_(transport),
      model_(make_model()),
      train_(options_.data, model_->config().vocab),
      sampler_(train_.size(), options_.seq, options_.seed, text_of_data(options_.data, "--data")),
      params_(module_params(*model_)),
      engine_(make_engine()),
      attachment_(params_, engine_) {
  if (!options_.eval_data.empty()) {
    eval_ = std::make_unique<TokenData>(options_.eval_data, model_->config().vocab);
    eval_sampler_ = std::make_unique<WindowSampler>(eval_->size(), options_.seq, 0,
                                                    text_of_data(options_.eval_data, "--eval-data"));
  }
}

std::unique_ptr<Decoder> Trainer::make_model() const {
  const at::ScalarType type = options_.dtype == DType::bf16 ? at::kBFloat16 : at::kFloat;
  const DecoderConfig config = options_.random_init() ? options_.sizes : read_decoder_config(options_.init);
  const auto limit = [&](std::int64_t most, const char* what) {
    if (options_.seq > most) {
      throw Error(Code::invalid_argument, "--seq " + std::to_string(options_.seq) + " is longer than the model's " +
                                              what + " of " + std::to_string(most));
    }
  };
  limit(config.positions, "longest sequence (max_position_embeddings)");
  if (config.sliding_window > 0) limit(config.sliding_window, "sliding window, which this decoder does not compute,");
  auto model = std::make_unique<Decoder>(config, type);
  if (options_.random_init()) {
    init_random(*model, options_.seed);
  } else {
    load_weights(*model, options_.init);
  }
  return model;
}

Engine Trainer::make_engine() {
  std::vector<std::string> names;
  for (const ModuleParam& param : params_) names.push_back(param.name);
  const cli::RuleChoice choice =
      cli::choose_rules(options_.rules, names, options_.schedule.base, [&](const std::string& name) {
        const auto param =
            std::find_if(params_.begin(), params_.end(), [&](const ModuleParam& p) { return p.name == name; });
        return usual_rule(param->kind, options_.rules.rule);
      });
  options_.schedule.base = choice.lr;
  std::vector<Param> described = describe(params_);
  for (std::size_t i = 0; i < described.size(); ++i) described[i].group = choice.group_of[i];
  return Engine(std::move(described), choice.groups, mesh_, transport_, options_.engine);
}

torch::Tensor Trainer::sequences(const TokenData& data, std::int64_t count,
                                 const std::function<std::int64_t(std::int64_t)>& begin) const {
  const std::int64_t length = options_.seq + 1;
  const torch::Tensor tokens = at::empty({count, length}, at::kLong);
  for (std::int64_t row = 0; row < count; ++row) {
    data.read(begin(row), {tokens.data_ptr<std::int64_t>() + row * length, static_cast<std::size_t>(length)});
  }
  return tokens;
}

std::vector<std::vector<double>> Trainer::gather(const std::vector<double>& mine, std::string_view label) {
  const std::string bytes(reinterpret_cast<const char*>(mine.data()), mine.size() * sizeof(double));
  std::vector<std::vector<double>> all;
  for (const std::string& theirs : transport_.gather_strings(bytes, label)) {
    all.emplace_back(theirs.size() / sizeof(double));
    if (!theirs.empty()) std::memcpy(all.back().data(), theirs.data(), theirs.size());
  }
  return all;
}

StepRecord Trainer::train_step(std::int64_t step) {
  StepRecord record;
  record.step = step + 1;
  const std::int64_t per_rank = options_.engine.micro_batches;
  const std::int64_t all = options_.global_batch / options_.micro_batch;
  std::vector<double> losses;  // index and loss of each micro-batch here
  Stopwatch watch;
  for (std::int64_t k = 0; k < per_rank; ++k) {
    const std::int64_t micro_batch = engine_.micro_batch_index(static_cast<int>(k));
    const torch::Tensor tokens = sequences(train_, options_.micro_batch, [&](std::int64_t row) {
      return sampler_.begin(step * options_.global_batch + micro_batch * options_.micro_batch + row);
    });
    record.phases.data += watch.lap();
    const torch::Tensor loss = model_->loss(tokens);
    losses.push_back(static_cast<double>(micro_batch));
    losses.push_back(loss.item<float>());
    record.phases.forward += watch.lap();
    (loss * (engine_.loss_scale() / static_cast<double>(all))).backward();
    record.phases.backward += watch.lap();
  }
  record.report = engine_.step(options_.schedule.lr(step));
  record.phases.step += watch.lap();

  // In the order of the global batch, so that the logged loss does not depend on who computed what either.
  std::vector<double> by_index(static_cast<std::size_t>(all));
  for (const std::vector<double>& theirs : gather(losses, "losses of a step")) {
    for (std::size_t i = 0; i + 1 < theirs.size(); i += 2)
      by_index.at(static_cast<std::size_t>(theirs[i])) = theirs[i + 1];
  }
  for (const double loss : by_index) record.loss += loss;
  record.loss /= static_cast<double>(all);
  return record;
}

EvalRecord Trainer::evaluate() {
  const torch::NoGradGuard no_grad;
  Stopwatch watch;
  const std::int64_t wanted = options_.eval_sequences > 0 ? options_.eval_sequences : eval_sampler_->windows();
  const std::int64_t count = std::min(wanted, eval_sampler_->windows());
  const std::int64_t batches = (count + options_.micro_batch - 1) / options_.micro_batch;
  std::vector<double> sums;
  for (std::int64_t b = transport_.rank(); b < batches; b += transport_.world_size()) {
    const std::int64_t first = b * options_.micro_batch;
    const std::int64_t rows = std::min(options_.micro_batch, count - first);
    const torch::Tensor tokens =
        sequences(*eval_, rows, [&](std::int64_t row) { return eval_sampler_->even_begin(first + row, count); });
    sums.push_back(model_->loss(tokens).item<float>() * static_cast<double>(rows));
  }
  const std::vector<std::vector<double>> all = gather(sums, "losses of an evaluation");
  double total = 0;
  for (std::int64_t b = 0; b < batches; ++b) {
    total += all[static_cast<std::size_t>(b % transport_.world_size())].at(
        static_cast<std::size_t>(b / transport_.world_size()));
  }
  return {engine_.step_count(), total / static_cast<double>(count), watch.lap()};
}

void Trainer::warn_about_text(const Observer& observer) const {
  constexpr std::int64_t largest_byte_vocabulary = 1024;  // some room for special tokens
  if (!observer.warned || options_.random_init() || model_->config().vocab <= largest_byte_vocabulary) return;
  if (train_.has_text() || (eval_ && eval_->has_text())) {
    observer.warned("text is read byte by byte, but " + options_.init + " has a vocabulary of " +
                    std::to_string(model_->config().vocab) + "; give it .u16 or .u32 files of its own tokenizer's ids");
  }
}

Summary Trainer::run(const Observer& observer) {
  Summary summary;
  summary.world_size = transport_.world_size();
  summary.tokens_per_step = options_.global_batch * options_.seq;
  for (const ModuleParam& param : params_) summary.params += param.tensor.numel();
  warn_about_text(observer);
  if (observer.started) observer.started(summary);

  const auto evaluate_into = [&](std::optional<double>& loss) {
    summary.evals.push_back(evaluate());
    loss = summary.evals.back().loss;
    if (observer.evaluated) observer.evaluated(summary.evals.back());
  };
  if (eval_) evaluate_into(summary.eval_before);
  const sharding::WireBytes planned = engine_.plan().wire_bytes(transport_.rank());
  for (std::int64_t step = 0; step < options_.steps; ++step) {
    const StepRecord record = train_step(step);
    summary.totals.add(record, planned);
    if (step == 0) summary.train_loss_first = record.loss;
    summary.train_loss_last = record.loss;
    summary.steps = record.step;
    summary.skipped_steps = record.report.skipped_steps;
    if (observer.stepped) observer.stepped(record);
    if (!std::isfinite(record.loss) && !record.report.skipped) {
      throw Error(Code::non_finite, "the loss of step " + std::to_string(record.step) + " is " +
                                        std::to_string(record.loss) +
                                        " though all gradients were finite; nothing was saved");
    }
    if (eval_ &&
        (record.step == options_.steps || (options_.eval_every > 0 && record.step % options_.eval_every == 0))) {
      evaluate_into(summary.eval_after);
    }
  }
  if (transport_.rank() == 0) {
    summary.files = save_weights(*model_, options_.out);
    if (!options_.random_init()) copy_tokenizer(options_.init, options_.out);
  }
  for (const std::vector<double>& theirs :
       gather({static_cast<double>(engine_.state_bytes()), summary.totals.bytes_as_planned() ? 1.0 : 0.0},
              "byte counts")) {
    summary.state_bytes.push_back(static_cast<std::int64_t>(theirs.at(0)));
    summary.bytes_as_planned = summary.bytes_as_planned && theirs.at(1) == 1;
  }
  return summary;
}

}  // namespace regatta::finetune
