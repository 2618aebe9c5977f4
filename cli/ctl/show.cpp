#include "cli/ctl/show.h"

#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>

namespace regatta::cli {
namespace {

using nlohmann::ordered_json;

const char* name_of(v1::Status::State state) {
  switch (state) {
    case v1::Status::STATE_STARTING: return "starting";
    case v1::Status::STATE_RUNNING: return "running";
    case v1::Status::STATE_PAUSED: return "paused";
    case v1::Status::STATE_DRAINING: return "draining";
    case v1::Status::STATE_ENDED: return "ended";
    default: return "unknown";
  }
}

ordered_json json_of(const v1::Step& step) {
  ordered_json groups = ordered_json::array();
  for (const v1::GroupStep& group : step.groups())
    groups.push_back({{"name", group.name()},
                      {"lr", group.lr()},
                      {"grad_norm", group.grad_norm()},
                      {"update_rms", group.update_rms()},
                      {"weight_rms", group.weight_rms()},
                      {"update_to_weight", group.update_to_weight()},
                      {"zero_lines", group.zero_lines()}});
  return {{"step", step.step()},
          {"loss", step.loss()},
          {"lr", step.lr()},
          {"grad_norm", step.grad_norm()},
          {"clip_factor", step.clip_factor()},
          {"skipped", step.skipped()},
          {"culprit", step.culprit()},
          {"skipped_steps", step.skipped_steps()},
          {"seconds", step.seconds()},
          {"tokens_per_second", step.tokens_per_second()},
          {"groups", groups}};
}

std::string step_line(const v1::Step& step) {
  return fmt::format("{:>9} {:>10.4f} {:>11.4g} {:>11.4g} {:>9.3f} {:>11.0f}{}", step.step(), step.loss(), step.lr(),
                     step.grad_norm(), step.seconds(), step.tokens_per_second(),
                     step.skipped() ? "  skipped: " + step.culprit() : "");
}

const std::string heading =
    fmt::format("{:>9} {:>10} {:>11} {:>11} {:>9} {:>11}", "step", "loss", "lr", "grad norm", "seconds", "tokens/s");

}  // namespace

std::string json_text(const v1::Status& status) {
  ordered_json groups = ordered_json::array();
  for (const v1::Group& group : status.groups())
    groups.push_back({{"name", group.name()}, {"rule", group.rule()}, {"lr_scale", group.lr_scale()}});
  return ordered_json{{"state", name_of(status.state())},
                      {"steps", status.steps()},
                      {"world_size", status.world_size()},
                      {"mesh", status.mesh()},
                      {"version", status.version()},
                      {"seconds", status.seconds()},
                      {"clip", status.clip()},
                      {"groups", groups},
                      {"last_step", status.has_last_step() ? json_of(status.last_step()) : ordered_json()}}
      .dump();
}

std::string json_text(const v1::Plan& plan) {
  ordered_json ranks = ordered_json::array();
  for (const v1::RankBytes& rank : plan.ranks())
    ranks.push_back({{"reduce_scatter", rank.reduce_scatter()},
                     {"all_gather", rank.all_gather()},
                     {"exchange", rank.exchange()},
                     {"vote", rank.vote()}});
  return ordered_json{
      {"mesh", plan.mesh()}, {"fingerprint", plan.fingerprint()}, {"wire_bytes", ranks}, {"text", plan.text()}}
      .dump();
}

std::string json_text(const v1::Step& step) { return json_of(step).dump(); }

std::string json_text(const v1::CommandReply& reply) {
  ordered_json changes = ordered_json::array();
  for (const v1::Change& change : reply.changes())
    changes.push_back({{"group", change.group()},
                       {"name", change.name()},
                       {"from", change.has_from() ? ordered_json(change.from()) : ordered_json()},
                       {"to", change.to()}});
  return ordered_json{{"applies_at_step", reply.applies_at_step()}, {"dry_run", reply.dry_run()}, {"changes", changes}}
      .dump();
}

std::string plain_text(const v1::Status& status) {
  std::string text = fmt::format("{}, {} ranks ({}), regatta {}, {:.0f} s since the start\n", name_of(status.state()),
                                 status.world_size(), status.mesh(), status.version(), status.seconds());
  for (const v1::Group& group : status.groups())
    text += fmt::format("  group {:<12} {}, lr scale {:g}\n", group.name(), group.rule(), group.lr_scale());
  text += status.clip() > 0 ? fmt::format("  clip {:g}\n", status.clip()) : std::string("  no clipping\n");
  if (!status.has_last_step()) return text + fmt::format("  no step of {} made yet\n", status.steps());
  const v1::Step& step = status.last_step();
  return text + fmt::format(
                    "  step {} of {}: loss {:.4f}, lr {:g}, gradient norm {:.4g}, {:.3f} s, {:.0f} tokens/s, {} "
                    "skipped so far\n",
                    step.step(), status.steps(), step.loss(), step.lr(), step.grad_norm(), step.seconds(),
                    step.tokens_per_second(), step.skipped_steps());
}

std::string plain_text(const v1::Plan& plan) {
  std::string text = plan.text();
  if (!text.empty() && text.back() != '\n') text += '\n';
  text += "bytes sent per step: reduce-scatter, all-gather, exchange, vote\n";
  int rank = 0;
  for (const v1::RankBytes& bytes : plan.ranks())
    text += fmt::format("  rank {:<5} {:>12} {:>12} {:>12} {:>12}\n", rank++, bytes.reduce_scatter(),
                        bytes.all_gather(), bytes.exchange(), bytes.vote());
  return text;
}

std::string plain_text(const v1::CommandReply& reply, const std::string& done) {
  std::string text =
      fmt::format("{}{} step {}\n", reply.dry_run() ? "not sent; would be " : "", done, reply.applies_at_step());
  for (const v1::Change& change : reply.changes())
    text += fmt::format("  {}{}: {} -> {}\n", change.group().empty() ? "" : change.group() + " ", change.name(),
                        change.has_from() ? fmt::format("{}", change.from()) : "by the schedule", change.to());
  return text;
}

void WatchTable::add(const v1::Step& step) {
  if (!terminal_) {
    if (!begun_) std::printf("%s\n", heading.c_str());
    begun_ = true;
    std::printf("%s\n", step_line(step).c_str());
    std::fflush(stdout);
    return;
  }
  constexpr std::size_t most_rows = 12;
  rows_.push_back(step_line(step));
  if (rows_.size() > most_rows) rows_.pop_front();
  std::string screen = drawn_ > 0 ? fmt::format("\x1b[{}A", drawn_) : "";
  drawn_ = 0;
  const auto line = [&](const std::string& text) {
    screen += "\x1b[2K" + text + "\n";
    ++drawn_;
  };
  line(heading);
  for (const std::string& row : rows_) line(row);
  line("");
  line(fmt::format("{:>14} {:>11} {:>11} {:>11} {:>11}", "group", "lr", "update RMS", "upd/weight", "zero lines"));
  for (const v1::GroupStep& group : step.groups())
    line(fmt::format("{:>14} {:>11.4g} {:>11.4g} {:>11.4g} {:>11}", group.name(), group.lr(), group.update_rms(),
                     group.update_to_weight(), group.zero_lines()));
  screen += "\x1b[J";
  std::fputs(screen.c_str(), stdout);
  std::fflush(stdout);
}

}  // namespace regatta::cli
