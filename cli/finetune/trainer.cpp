#include "cli/finetune/trainer.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "cli/finetune/resume.h"
#include "cli/finetune/weights.h"
#include "runtime/error.h"
#include "runtime/stopwatch.h"

namespace regatta::finetune {

namespace {

constexpr int most_skipped_in_a_row = 10;

}  // namespace

Trainer::Trainer(Job& job, const sharding::Mesh& mesh, Transport& transport, control::Mailbox* mailbox,
                 control::AuditLog* audit, std::function<bool()> drain_wanted)
    : job_(job),
      options_(job.options),
      transport_(transport),
      mesh_(mesh),
      engine_(job.params, job.groups, mesh, transport, job.options.engine),
      attachment_(job.module_params, engine_),
      saver_(job.options.checkpoints.wanted() ? std::make_unique<Saver>(job, mesh, engine_, transport) : nullptr),
      drain_wanted_(std::move(drain_wanted)),
      steering_(engine_, transport, mailbox, audit,
                {saver_ ? [this] { return saver_->save(made_); } : std::function<std::string()>(), drain_wanted_}) {
  job.model->join(TensorGroup::make(transport, mesh));
  if (options_.metrics.wanted()) {
    const TelemetryIdentity identity{mesh, options_.rules.rule, options_.transport, engine_.state_bytes()};
    telemetry_ = std::make_unique<Telemetry>(options_.metrics, identity, transport);
  }
}

void Trainer::go_on_from(checkpoint::Checkpoint& checkpoint) {
  const Resumed resumed = resume(checkpoint, job_, mesh_, engine_);
  made_ = resumed.step;
  resumed_ = resumed.told;
  if (saver_) saver_->went_on_from(checkpoint.path(), made_);
  if (made_ > options_.steps)
    throw Error(Code::invalid_argument, checkpoint.path() + " is of step " + std::to_string(made_) + ", beyond the " +
                                            std::to_string(options_.steps) + " steps of this job");
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

StepRecord Trainer::train_step(std::int64_t step, bool& drain) {
  StepRecord record;
  record.step = step + 1;
  const std::int64_t per_rank = options_.engine.micro_batches;
  const std::int64_t all = options_.global_batch / options_.micro_batch;
  std::vector<double> losses;  // index and loss of each micro-batch here
  Stopwatch watch;
  for (std::int64_t k = 0; k < per_rank; ++k) {
    const std::int64_t micro_batch = engine_.micro_batch_index(static_cast<int>(k));
    const torch::Tensor tokens = job_.train.rows(options_.micro_batch, [&](std::int64_t row) {
      return job_.train.windows.begin(step * options_.global_batch + micro_batch * options_.micro_batch + row);
    });
    record.phases.data += watch.lap();
    const torch::Tensor loss = job_.model->loss(tokens);
    losses.push_back(static_cast<double>(micro_batch));
    losses.push_back(loss.item<float>());
    record.phases.forward += watch.lap();
    (loss * (engine_.loss_scale() / static_cast<double>(all))).backward();
    record.phases.backward += watch.lap();
  }
  steering_.before_vote();
  attachment_.use_current_stream();
  record.report = engine_.step(options_.schedule.lr(step));
  record.phases.step += watch.lap();

  // One that was asked to end asks all.
  losses.push_back(drain_wanted_ && drain_wanted_() ? 1 : 0);
  // In the order of the global batch, so that the logged loss does not depend on who computed what either.
  std::vector<double> by_index(static_cast<std::size_t>(all));
  for (const std::vector<double>& theirs : gather(losses, "losses of a step")) {
    drain = drain || theirs.back() == 1;
    for (std::size_t i = 0; i + 1 < theirs.size(); i += 2)
      by_index.at(static_cast<std::size_t>(theirs[i])) = theirs[i + 1];
  }
  for (const double loss : by_index) record.loss += loss;
  record.loss /= static_cast<double>(all);
  if (telemetry_) {
    telemetry_->record(record.report, engine_.param_reports(),
                       {record.loss, options_.global_batch * options_.seq, record.phases.data, record.phases.forward,
                        record.phases.backward});
  }
  return record;
}

EvalRecord Trainer::evaluate() {
  const torch::NoGradGuard no_grad;
  Stopwatch watch;
  const std::int64_t windows = job_.eval->windows.windows();
  const std::int64_t count = options_.eval_sequences > 0 ? std::min(options_.eval_sequences, windows) : windows;
  const std::int64_t batches = (count + options_.micro_batch - 1) / options_.micro_batch;
  std::vector<double> sums;
  // Tensor-parallel peers compute the same batches.
  const int dp = mesh_.size("dp");
  for (std::int64_t b = mesh_.coordinate(transport_.rank(), "dp"); b < batches; b += dp) {
    const std::int64_t first = b * options_.micro_batch;
    const std::int64_t rows = std::min(options_.micro_batch, count - first);
    const torch::Tensor tokens =
        job_.eval->rows(rows, [&](std::int64_t row) { return job_.eval->windows.even_begin(first + row, count); });
    sums.push_back(job_.model->loss(tokens).item<float>() * static_cast<double>(rows));
  }
  const std::vector<std::vector<double>> all = gather(sums, "losses of an evaluation");
  const std::vector<int> dp_peers = mesh_.group(0, {"dp"});
  double total = 0;
  for (std::int64_t b = 0; b < batches; ++b) {
    total +=
        all[static_cast<std::size_t>(dp_peers[static_cast<std::size_t>(b % dp)])].at(static_cast<std::size_t>(b / dp));
  }
  return {engine_.step_count(), total / static_cast<double>(count), watch.lap()};
}

void Trainer::check_progress(const StepRecord& record) {
  skipped_in_a_row_ = record.report.skipped ? skipped_in_a_row_ + 1 : 0;
  if (skipped_in_a_row_ == most_skipped_in_a_row) {
    throw Error(Code::non_finite, "the last " + std::to_string(most_skipped_in_a_row) +
                                      " steps were skipped, up to step " + std::to_string(record.step) +
                                      "; the gradient of " + record.report.culprit +
                                      " is not finite, and nothing was saved");
  }
  if (!std::isfinite(record.loss) && !record.report.skipped) {
    throw Error(Code::non_finite, "the loss of step " + std::to_string(record.step) + " is " +
                                      std::to_string(record.loss) +
                                      " though all gradients were finite; nothing was saved");
  }
}

void Trainer::save_now_and_then(std::int64_t step, const Observer& observer) {
  if (!saver_) return;
  const auto failed = [&](const std::string& sentence) {
    if (observer.warned) observer.warned(sentence);
  };
  const std::int64_t every = options_.checkpoints.every;
  if (every > 0 && step % every == 0) {
    if (const std::string problem = saver_->save(step); !problem.empty()) failed(problem);
  }
  tell_saved(observer);
}

void Trainer::tell_saved(const Observer& observer) {
  saver_->tell(
      [&](const checkpoint::SaveOutcome& save) {
        if (telemetry_) telemetry_->saved();
        if (observer.saved) observer.saved(save);
      },
      [&](const std::string& sentence) {
        if (observer.warned) observer.warned(sentence);
      });
}

Summary Trainer::run(const Observer& observer) {
  Summary summary;
  summary.world_size = transport_.world_size();
  summary.tokens_per_step = options_.global_batch * options_.seq;
  for (const ParamShard& shard : job_.model->shards()) summary.params += shard.numel();
  if (observer.warned) {
    for (const std::string& warning : job_.warnings) observer.warned(warning);
  }
  summary.first_step = made_;
  if (observer.started) observer.started(summary);
  if (observer.told && !resumed_.empty()) observer.told(resumed_);

  const auto evaluate_into = [&](std::optional<double>& loss) {
    summary.evals.push_back(evaluate());
    loss = summary.evals.back().loss;
    if (observer.evaluated) observer.evaluated(summary.evals.back());
  };
  if (job_.eval && made_ == 0) evaluate_into(summary.eval_before);
  const sharding::WireBytes planned = engine_.plan().wire_bytes(transport_.rank());
  steering_.start(options_.steps, made_);
  const std::int64_t start = made_;
  for (std::int64_t step = start; step < options_.steps; ++step) {
    bool drain = false;
    const StepRecord record = train_step(step, drain);
    made_ = record.step;
    summary.totals.add(record, planned);
    if (step == start) summary.train_loss_first = record.loss;
    summary.train_loss_last = record.loss;
    summary.steps = record.step;
    summary.skipped_steps = record.report.skipped_steps;
    if (observer.stepped) observer.stepped(record);
    check_progress(record);
    const double seconds = record.phases.all();
    save_now_and_then(record.step, observer);
    const auto next =
        steering_.after_step({record.step, record.loss, seconds,
                              static_cast<double>(summary.tokens_per_step) / std::max(seconds, 1e-9), record.report});
    if (drain || next == control::Steering::Next::drain) {
      if (observer.warned)
        observer.warned("drained after step " + std::to_string(record.step) + " of " + std::to_string(options_.steps));
      break;
    }
    if (job_.eval &&
        (record.step == options_.steps || (options_.eval_every > 0 && record.step % options_.eval_every == 0))) {
      evaluate_into(summary.eval_after);
    }
  }
  steering_.finish();
  if (saver_) {
    saver_->save_last(made_);
    tell_saved(observer);
  }
  if (mesh_.coordinate(transport_.rank(), "dp") == 0) summary.files = save_weights(*job_.model, options_.out);
  if (transport_.rank() == 0 && !options_.random_init()) copy_tokenizer(options_.init, options_.out);
  if (telemetry_) telemetry_->saved();
  for (const std::vector<double>& theirs : gather(
           {static_cast<double>(engine_.state_bytes()), summary.totals.bytes_as_planned() ? 1.0 : 0.0}, "byte counts"))
    summary.add_rank(static_cast<std::int64_t>(theirs.at(0)), theirs.at(1) == 1);
  return summary;
}

}  // namespace regatta::finetune
