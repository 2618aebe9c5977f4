#include "runtime/control/messages.h"

#include <cmath>

#include "runtime/version.h"

namespace regatta::control {

void fill(v1::Step& message, const StepFacts& facts) {
  const StepReport& report = facts.report;
  message.set_step(facts.step);
  message.set_loss(facts.loss);
  message.set_lr(report.lr);
  message.set_grad_norm(report.grad_norm);
  message.set_clip_factor(report.clip_factor);
  message.set_skipped(report.skipped);
  message.set_culprit(report.culprit);
  message.set_skipped_steps(report.skipped_steps);
  message.set_seconds(facts.seconds);
  message.set_tokens_per_second(facts.tokens_per_second);
  for (const GroupReport& group : report.groups) {
    v1::GroupStep& out = *message.add_groups();
    out.set_name(group.name);
    out.set_lr(group.lr);
    out.set_grad_norm(group.grad_norm);
    out.set_update_rms(group.update_rms);
    out.set_weight_rms(group.weight_rms);
    out.set_update_to_weight(group.update_to_weight);
    out.set_zero_lines(group.zero_lines);
  }
}

void fill(v1::Status& message, const Mailbox::View& view, const JobFacts& job) {
  constexpr v1::Status::State states[] = {v1::Status::STATE_STARTING, v1::Status::STATE_RUNNING,
                                          v1::Status::STATE_PAUSED, v1::Status::STATE_DRAINING,
                                          v1::Status::STATE_ENDED};
  message.set_state(states[static_cast<int>(view.state)]);
  message.set_steps(job.steps);
  message.set_world_size(job.world_size);
  message.set_mesh(job.mesh);
  message.set_version(std::string(build_facts().version));
  message.set_seconds(view.seconds);
  message.set_clip(view.clip);
  for (const GroupFacts& group : view.groups) {
    v1::Group& out = *message.add_groups();
    out.set_name(group.name);
    out.set_rule(group.rule);
    out.set_lr_scale(group.lr_scale);
  }
  if (view.last) fill(*message.mutable_last_step(), *view.last);
}

void fill(v1::Plan& message, const JobFacts& job) {
  message.set_mesh(job.mesh);
  message.set_text(job.plan_text);
  message.set_fingerprint(job.fingerprint);
  for (const sharding::WireBytes& bytes : job.ranks) {
    v1::RankBytes& out = *message.add_ranks();
    out.set_reduce_scatter(bytes.reduce_scatter);
    out.set_all_gather(bytes.all_gather);
    out.set_exchange(bytes.exchange);
    out.set_vote(bytes.vote);
  }
}

grpc::Status fill(v1::CommandReply& message, const Answer& answer) {
  switch (answer.kind) {
    case Answer::Kind::accepted: break;
    case Answer::Kind::refused: return {grpc::StatusCode::INVALID_ARGUMENT, answer.sentence};
    case Answer::Kind::unfit: return {grpc::StatusCode::FAILED_PRECONDITION, answer.sentence};
    case Answer::Kind::full: return {grpc::StatusCode::RESOURCE_EXHAUSTED, answer.sentence};
    case Answer::Kind::given_up: return {grpc::StatusCode::CANCELLED, answer.sentence};
  }
  message.set_applies_at_step(answer.step);
  for (const SettingChange& change : answer.changes) {
    v1::Change& out = *message.add_changes();
    out.set_group(change.group);
    out.set_name(change.name);
    if (!std::isnan(change.from)) out.set_from(change.from);
    out.set_to(change.to);
  }
  return grpc::Status::OK;
}

}  // namespace regatta::control
