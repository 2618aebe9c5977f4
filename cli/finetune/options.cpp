#include "cli/finetune/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string_view>

#include "runtime/error.h"

namespace regatta::finetune {

namespace {

[[noreturn]] void refuse(const std::string& sentence) { throw Error(Code::invalid_argument, sentence); }

template <class Number>
bool parse(std::string_view text, Number& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

// "STEP=VALUE", steps as the log counts them.
Schedule::Change parse_change(const std::string& text, std::int64_t steps) {
  const std::size_t equals = text.find('=');
  Schedule::Change change;
  if (equals == std::string::npos || !parse(std::string_view(text).substr(0, equals), change.step) ||
      !parse(std::string_view(text).substr(equals + 1), change.lr) || change.step < 1 || change.step > steps ||
      !(change.lr >= 0) || std::isinf(change.lr))
    refuse("--lr-at " + text + " is not STEP=VALUE with a step from 1 to " + std::to_string(steps) +
           " and a learning rate from 0 up");
  --change.step;
  return change;
}

}  // namespace

sharding::Mesh mesh_of(const Options& options) {
  const std::string& text = options.engine_flags.mesh;
  sharding::Mesh mesh = cli::parse_mesh(text);
  for (const sharding::Axis& axis : mesh.axes()) {
    if (axis.name != "dp" && axis.name != "tp")
      refuse("--mesh " + text + ": the axis '" + axis.name + "' is unknown; dp and tp exist");
  }
  return mesh;
}

void complete(Options& options, const sharding::Mesh& mesh) {
  if (options.engine_flags.mode == "sharded") {
    refuse(
        "--mode sharded is for trainers that cut parameters over dp themselves; this one keeps them whole there, and "
        "takes zero1 or zero2");
  }
  if (!options.engine_flags.places.empty()) {
    refuse("--place " + options.engine_flags.places.front() +
           " is not for finetune: the decoder knows which of its parameters tp cuts, and over dp the engine shards");
  }
  const LossScaling loss_scaling = options.engine.loss_scaling;
  options.engine = cli::engine_options(options.engine_flags);
  options.engine.loss_scaling = loss_scaling;
  options.engine.accumulation = options.accumulation == "tree" ? Accumulation::tree : Accumulation::sum;
  options.engine.non_finite = options.non_finite == "stop" ? NonFinite::stop : NonFinite::skip;
  options.dtype = *dtype_of(options.dtype_name);
  options.schedule.kind = Schedule::parse(options.schedule_name);
  if (!(options.schedule.base >= 0) || std::isinf(options.schedule.base)) {
    refuse("--lr " + std::to_string(options.schedule.base) + " is no learning rate; a number from 0 up was expected");
  }

  // The range of the flag lets NaN through.
  if (!(options.schedule.final_ratio >= 0 && options.schedule.final_ratio <= 1))
    refuse("--final-lr-ratio is " + std::to_string(options.schedule.final_ratio) +
           ", but a part of the learning rate from 0 to 1 was expected");

  const std::int64_t dp = mesh.size("dp");
  for (const auto& [flag, value] : {std::pair<const char*, std::int64_t>{"--steps", options.steps},
                                    {"--seq", options.seq},
                                    {"--micro-batch", options.micro_batch},
                                    {"--threads", options.engine_flags.threads}}) {
    if (value < 1) refuse(std::string(flag) + " is " + std::to_string(value) + ", but at least 1 was expected");
  }
  if (options.global_batch == 0) options.global_batch = options.micro_batch * dp;
  if (options.global_batch < 1 || options.global_batch % (options.micro_batch * dp) != 0) {
    refuse("--global-batch " + std::to_string(options.global_batch) + " is no multiple of " +
           std::to_string(options.micro_batch * dp) + ", the sequences of one micro-batch (" +
           std::to_string(options.micro_batch) + ") on each of the " + std::to_string(dp) + " dp ranks");
  }
  const std::int64_t micro_batches = options.global_batch / (options.micro_batch * dp);
  if (options.engine.accumulation == Accumulation::tree && dp > 1 && (micro_batches & (micro_batches - 1)) != 0) {
    refuse("--accumulation tree with " + std::to_string(micro_batches) + " micro-batches on each of " +
           std::to_string(dp) + " ranks does not make one balanced tree; a power of two per rank was expected");
  }
  options.engine.micro_batches = static_cast<int>(micro_batches);
  options.schedule.steps = options.steps;
  for (const std::string& text : options.lr_at) options.schedule.changes.push_back(parse_change(text, options.steps));
  std::stable_sort(options.schedule.changes.begin(), options.schedule.changes.end(),
                   [](const Schedule::Change& a, const Schedule::Change& b) { return a.step < b.step; });
  if (!options.control.address.empty()) control::check(options.control);
  if (options.checkpoints.keep_every > 0 && options.checkpoints.keep_last == 0)
    refuse("--keep-every says what stays beside the newest ones; it needs --keep-last");
  if (options.schedule.warmup < 0 || options.schedule.warmup > options.steps) {
    refuse("--warmup " + std::to_string(options.schedule.warmup) + " is not between 0 and the " +
           std::to_string(options.steps) + " steps");
  }
  if (options.eval_every > 0 && options.eval_data.empty()) refuse("--eval-every needs --eval-data");
  if (options.random_init() && (!(options.sizes.init_std > 0) || std::isinf(options.sizes.init_std)))
    refuse("--init-std is " + std::to_string(options.sizes.init_std) + ", but a number above 0 was expected");
  if (options.random_init()) options.sizes.check("the model of --init random");
}

}  // namespace regatta::finetune
