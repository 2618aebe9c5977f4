#include "cli/finetune/reporter.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "runtime/checkpoint/system_calls.h"
#include "runtime/error.h"

namespace regatta::finetune {

namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

std::string path_in(const std::string& folder, const char* name) { return (fs::path(folder) / name).string(); }

std::string duration(double seconds) {
  const auto whole = static_cast<std::int64_t>(seconds + 0.5);
  if (whole >= 3600) return fmt::format("{}h{:02}m", whole / 3600, whole / 60 % 60);
  if (whole >= 60) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  return fmt::format("{}s", whole);
}

/// 1234567 -> "1.23 M".
std::string short_number(double value) {
  for (const auto& [scale, suffix] : {std::pair<double, const char*>{1e9, " G"}, {1e6, " M"}, {1e3, " k"}}) {
    if (value >= scale) return fmt::format("{:.3g}{}", value / scale, suffix);
  }
  return fmt::format("{:.3g} ", value);
}

ordered_json seconds_json(const PhaseSeconds& phases, const StepTimes& times) {
  return {{"data", phases.data},
          {"forward", phases.forward},
          {"backward", phases.backward},
          {"step", phases.step},
          {"wait_grad", times.wait_grad_seconds},
          {"vote", times.vote_seconds},
          {"sweep", times.sweep_seconds},
          {"wait_exchange", times.wait_exchange_seconds},
          {"wait_gather", times.wait_gather_seconds},
          {"grad_comm", times.grad_comm_seconds},
          {"gather_comm", times.gather_comm_seconds}};
}

template <typename Bytes>
ordered_json bytes_json(const Bytes& bytes) {
  return {{"reduce_scatter", bytes.reduce_scatter},
          {"all_gather", bytes.all_gather},
          {"exchange", bytes.exchange},
          {"vote", bytes.vote},
          {"total", bytes.total()}};
}

/// Whole lines of a log up to a step; a killed job may have left the last one cut short.
std::string lines_up_to(const std::string& path, std::int64_t step) {
  std::ifstream file(path);
  std::string kept;
  for (std::string line; std::getline(file, line);) {
    const auto record = nlohmann::json::parse(line, nullptr, false);
    if (!record.is_object() || record.value("step", step + 1) > step) continue;
    kept += line + "\n";
  }
  return kept;
}

ordered_json optional_json(const std::optional<double>& value) {
  return value ? ordered_json(*value) : ordered_json(nullptr);
}

}  // namespace

Reporter::Reporter(const Options& options, std::int64_t kept_steps)
    : options_(options), terminal_(::isatty(STDERR_FILENO) == 1) {
  std::error_code failed;
  if (!options.random_init() && fs::equivalent(options.init, options.out, failed)) {
    throw Error(Code::invalid_argument,
                "--out " + options.out + " is the folder of --init; another one was expected, so that the base stays");
  }
  try {
    checkpoint::make_folder(checkpoint::system_calls(), options.out);
  } catch (const Error& error) {
    throw Error(Code::invalid_argument, std::string("--out ") + error.what());
  }
  const std::string path = path_in(options.out, "log.jsonl");
  const std::string kept = kept_steps > 0 ? lines_up_to(path, kept_steps) : "";
  log_.open(path, std::ios::trunc);
  log_ << kept << std::flush;
  if (!log_)
    throw Error(Code::invalid_argument, "--out " + options.out + " cannot be written to: " + path + " does not open");
}

Reporter::~Reporter() { clear_bar(); }

void Reporter::started(const Summary& summary) {
  tokens_per_step_ = summary.tokens_per_step;
  first_step_ = summary.first_step;
  fmt::print(stderr, "{} parameters, {} tokens per step, mesh {}, {} steps, rule {}\n",
             short_number(static_cast<double>(summary.params)), summary.tokens_per_step, options_.engine_flags.mesh,
             options_.steps, options_.rules.rule);
}

void Reporter::stepped(const StepRecord& record) {
  const StepReport& report = record.report;
  ordered_json line{{"step", record.step},
                    {"loss", record.loss},
                    {"lr", report.lr},
                    {"grad_norm", report.grad_norm},
                    {"clip_factor", report.clip_factor},
                    {"loss_scale", report.loss_scale},
                    {"skipped", report.skipped}};
  if (report.skipped) line["culprit"] = report.culprit;
  for (const GroupReport& group : report.groups) {
    line["groups"].push_back({{"name", group.name},
                              {"grad_norm", group.grad_norm},
                              {"update_rms", group.update_rms},
                              {"weight_rms", group.weight_rms},
                              {"update_to_weight", group.update_to_weight},
                              {"zero_lines", group.zero_lines}});
  }
  line["seconds"] = seconds_json(record.phases, report.times);
  line["bytes"] = bytes_json(report.bytes);
  line["grad_overlap"] = report.times.grad_overlap();
  log_ << line.dump() << '\n' << std::flush;
  if (!log_) throw Error(Code::checkpoint, path_in(options_.out, "log.jsonl") + " cannot be written any more");

  const double seconds = record.phases.all();
  busy_seconds_ += seconds;
  recent_seconds_ = record.step == first_step_ + 1 ? seconds : 0.9 * recent_seconds_ + 0.1 * seconds;
  if (report.skipped) {
    clear_bar();
    fmt::print(stderr, "step {}: skipped, the gradient of {} is not finite\n", record.step, report.culprit);
  }
  const bool last = record.step == options_.steps;
  if (terminal_) {
    const auto now = std::chrono::steady_clock::now();
    if (last || now - drawn_ >= std::chrono::milliseconds(100)) {
      draw_bar(record);
      drawn_ = now;
    }
    return;
  }
  const std::int64_t every = std::max<std::int64_t>(1, options_.steps / 20);
  if (last || record.step == 1 || record.step % every == 0) print_line(record);
}

void Reporter::draw_bar(const StepRecord& record) {
  constexpr int width = 24;
  const auto filled = static_cast<std::size_t>(width * record.step / options_.steps);
  fmt::print(stderr, "\r\x1b[K[{}{}] {}/{}  loss {:.4f}  lr {:.2e}  {}tokens/s  {} left", std::string(filled, '#'),
             std::string(width - filled, '.'), record.step, options_.steps, record.loss, record.report.lr,
             short_number(static_cast<double>(tokens_per_step_) / recent_seconds_),
             duration(recent_seconds_ * static_cast<double>(options_.steps - record.step)));
  std::fflush(stderr);
  bar_shown_ = true;
}

void Reporter::print_line(const StepRecord& record) {
  fmt::print(stderr, "step {}/{}  loss {:.4f}  lr {:.2e}  {}tokens/s  {} left\n", record.step, options_.steps,
             record.loss, record.report.lr,
             short_number(static_cast<double>(tokens_per_step_ * (record.step - first_step_)) / busy_seconds_),
             duration(recent_seconds_ * static_cast<double>(options_.steps - record.step)));
}

void Reporter::clear_bar() {
  if (!bar_shown_) return;
  fmt::print(stderr, "\r\x1b[K");
  std::fflush(stderr);
  bar_shown_ = false;
}

void Reporter::evaluated(const EvalRecord& record) {
  log_ << ordered_json{{"step", record.step}, {"eval_loss", record.loss}, {"eval_seconds", record.seconds}}.dump()
       << '\n'
       << std::flush;
  clear_bar();
  fmt::print(stderr, "evaluation loss {:.4f} after {} updates ({:.1f} s)\n", record.loss, record.step, record.seconds);
}

void Reporter::saved(const checkpoint::SaveOutcome& save) {
  log_ << ordered_json{{"step", save.step},
                       {"checkpoint",
                        {{"bytes", save.bytes},
                         {"copy_seconds", save.copy_seconds},
                         {"write_seconds", save.write_seconds}}}}
              .dump()
       << '\n'
       << std::flush;
}

void Reporter::warned(const std::string& sentence) {
  clear_bar();
  fmt::print(stderr, "warning: {}\n", sentence);
}

std::string Reporter::table(const Summary& summary) const {
  std::string text;
  const auto row = [&](std::string_view name, const std::string& value) {
    text += fmt::format("  {:<28}{}\n", name, value);
  };
  text += fmt::format("{} steps on {} ({}, {}), {} parameters, {} tokens per step\n", summary.steps,
                      options_.engine_flags.mesh, options_.transport, options_.engine_flags.mode,
                      short_number(static_cast<double>(summary.params)), summary.tokens_per_step);
  row("training loss", fmt::format("{:.4f} -> {:.4f}", summary.train_loss_first, summary.train_loss_last));
  if (summary.eval_before && summary.eval_after) {
    row("evaluation loss", fmt::format("{:.4f} -> {:.4f}", *summary.eval_before, *summary.eval_after));
  }
  if (summary.skipped_steps > 0) row("skipped steps", std::to_string(summary.skipped_steps));
  row("tokens per second", fmt::format("{:.0f}", summary.tokens_per_second()));
  const auto per_step = [&](double seconds) {
    return 1e3 * seconds / static_cast<double>(std::max<std::int64_t>(summary.own_steps(), 1));
  };
  const PhaseSeconds& phases = summary.totals.phases;
  const StepTimes& times = summary.totals.times;
  row("step",
      fmt::format("{:.1f} ms = data {:.1f} + forward {:.1f} + backward {:.1f} + optimizer {:.1f}", summary.step_ms(),
                  per_step(phases.data), per_step(phases.forward), per_step(phases.backward), per_step(phases.step)));
  row("optimizer", fmt::format("{:.2f} ms: wait for gradients {:.2f}, vote {:.2f}, sweep {:.2f}, wait for lines "
                               "{:.2f}, for parameters {:.2f}",
                               per_step(phases.step), per_step(times.wait_grad_seconds), per_step(times.vote_seconds),
                               per_step(times.sweep_seconds), per_step(times.wait_exchange_seconds),
                               per_step(times.wait_gather_seconds)));
  if (summary.world_size > 1) {
    row("gradient communication", fmt::format("{:.2f} ms per step, {:.0f} % of it hidden behind backward",
                                              per_step(times.grad_comm_seconds), 100 * times.grad_overlap()));
    text += fmt::format("  {:<28}{:>16}{:>16}\n", "bytes sent by rank 0", "planned", "counted");
    const auto bytes = [&](std::string_view name, std::int64_t planned, std::int64_t counted) {
      text += fmt::format("    {:<26}{:>16}{:>16}\n", name, planned, counted);
    };
    const sharding::WireBytes& planned = summary.totals.planned;
    const StepBytes& counted = summary.totals.counted;
    bytes("reduce-scatter (gradients)", planned.reduce_scatter, counted.reduce_scatter);
    bytes("all-gather (parameters)", planned.all_gather, counted.all_gather);
    bytes("exchange (lines)", planned.exchange, counted.exchange);
    bytes("vote", planned.vote, counted.vote);
    text +=
        fmt::format("    {}\n", summary.bytes_as_planned ? "every rank sent what the plan predicts"
                                                         : "some rank sent OTHER byte counts than the plan predicts");
  }
  row("optimizer state per rank", fmt::format("{}B", short_number(static_cast<double>(*std::max_element(
                                                         summary.state_bytes.begin(), summary.state_bytes.end())))));
  row("results", options_.out);
  return text;
}

std::string Reporter::json(const Summary& summary) const {
  const Totals& totals = summary.totals;
  ordered_json document{
      {"command", "finetune"},
      {"init", options_.init},
      {"rule", options_.rules.rule},
      {"mesh", options_.engine_flags.mesh},
      {"transport", options_.transport},
      {"mode", options_.engine_flags.mode},
      {"dtype", options_.dtype == DType::bf16 ? "bf16" : "fp32"},
      {"world_size", summary.world_size},
      {"params", summary.params},
      {"steps", summary.steps},
      {"first_step", summary.first_step},
      {"skipped_steps", summary.skipped_steps},
      {"tokens_per_step", summary.tokens_per_step},
      {"train_loss_first", summary.train_loss_first},
      {"train_loss_last", summary.train_loss_last},
      {"eval_loss_before", optional_json(summary.eval_before)},
      {"eval_loss_after", optional_json(summary.eval_after)},
      {"evals", ordered_json::array()},
      {"tokens_per_second", summary.tokens_per_second()},
      {"step_ms", summary.step_ms()},
      {"grad_overlap", totals.times.grad_overlap()},
      {"seconds", seconds_json(totals.phases, totals.times)},
      {"bytes_planned", bytes_json(totals.planned)},
      {"bytes_counted", bytes_json(totals.counted)},
      {"bytes_as_planned", summary.bytes_as_planned},
      {"state_bytes_per_rank", *std::max_element(summary.state_bytes.begin(), summary.state_bytes.end())},
      {"state_bytes", summary.state_bytes},
      {"out", options_.out},
      {"files", summary.files}};
  for (const EvalRecord& eval : summary.evals) document["evals"].push_back({{"step", eval.step}, {"loss", eval.loss}});
  return document.dump(2) + "\n";
}

void Reporter::finished(const Summary& summary) {
  clear_bar();
  const std::string text = json(summary);
  std::ofstream(path_in(options_.out, "summary.json"), std::ios::trunc) << text;
  (options_.json ? std::cerr : std::cout) << table(summary) << std::flush;
  if (options_.json) std::cout << text << std::flush;
}

}  // namespace regatta::finetune
