#include "cli/finetune/totals.h"

#include <algorithm>

namespace regatta::finetune {

void PhaseSeconds::add(const PhaseSeconds& other) {
  data += other.data;
  forward += other.forward;
  backward += other.backward;
  step += other.step;
}

void Totals::add(const StepRecord& record, const sharding::WireBytes& plan) {
  phases.add(record.phases);
  const StepTimes& t = record.report.times;
  times.wait_grad_seconds += t.wait_grad_seconds;
  times.vote_seconds += t.vote_seconds;
  times.sweep_seconds += t.sweep_seconds;
  times.wait_exchange_seconds += t.wait_exchange_seconds;
  times.wait_gather_seconds += t.wait_gather_seconds;
  times.step_seconds += t.step_seconds;
  times.grad_comm_seconds += t.grad_comm_seconds;
  times.gather_comm_seconds += t.gather_comm_seconds;
  const StepBytes& b = record.report.bytes;
  counted.reduce_scatter += b.reduce_scatter;
  counted.all_gather += b.all_gather;
  counted.exchange += b.exchange;
  counted.vote += b.vote;
  // A skipped step ends after the vote, whose plan covers the figures after the sweep too; count what was due.
  planned.reduce_scatter += plan.reduce_scatter;
  planned.all_gather += record.report.skipped ? 0 : plan.all_gather;
  planned.exchange += record.report.skipped ? 0 : plan.exchange;
  planned.vote += record.report.skipped ? b.vote : plan.vote;
}

bool Totals::bytes_as_planned() const {
  return counted.reduce_scatter == planned.reduce_scatter && counted.all_gather == planned.all_gather &&
         counted.exchange == planned.exchange && counted.vote == planned.vote;
}

void Summary::add_rank(std::int64_t rank_state_bytes, bool as_planned) {
  state_bytes.push_back(rank_state_bytes);
  bytes_as_planned = bytes_as_planned && as_planned;
}

double Summary::tokens_per_second() const {
  return static_cast<double>(tokens_per_step * own_steps()) / std::max(totals.phases.all(), 1e-9);
}

double Summary::step_ms() const {
  return 1e3 * totals.phases.all() / static_cast<double>(std::max<std::int64_t>(own_steps(), 1));
}

}  // namespace regatta::finetune
