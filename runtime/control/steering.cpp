#include "runtime/control/steering.h"

namespace regatta::control {

namespace {

// How often rank 0 tells the others that the job is still paused; they wait for that, so it must be far below any
// deadline.
constexpr std::chrono::milliseconds pause_beat{50};

}  // namespace

Steering::Steering(Engine& engine, Transport& transport, Mailbox* mailbox, AuditLog* audit, Abilities abilities)
    : engine_(engine), transport_(transport), mailbox_(mailbox), audit_(audit), abilities_(std::move(abilities)) {}

void Steering::start(std::int64_t steps, std::int64_t made) {
  steps_ = steps;
  made_ = made;
  if (!mailbox_) return;
  JobFacts job{steps, transport_.world_size(), engine_.plan().mesh().text(),
               {},    engine_.plan().text(),   engine_.plan().fingerprint()};
  for (int rank = 0; rank < transport_.world_size(); ++rank) job.ranks.push_back(engine_.plan().wire_bytes(rank));
  show_groups();
  mailbox_->start(std::move(job));
}

void Steering::show_groups() {
  std::vector<GroupFacts> groups;
  for (const Group& group : engine_.groups())
    groups.push_back({group.name, group.rule->settings_text(), group.lr_scale});
  mailbox_->set_groups(std::move(groups), engine_.options().clip);
}

void Steering::settle(const Request& request, Answer answer) {
  if (audit_) audit_->write(request, answer);
  mailbox_->answer(request.command.number, std::move(answer));
}

std::optional<Request> Steering::next_request(bool paused, std::chrono::milliseconds patience) {
  while (std::optional<Request> request = mailbox_->take(patience)) {
    Command& command = request->command;
    Answer refusal;
    if (command.kind == Command::Kind::resume && !paused) {
      refusal = {Answer::Kind::unfit, 0, {}, "the job is not paused"};
    } else if (command.kind == Command::Kind::pause && paused) {
      refusal = {Answer::Kind::unfit, 0, {}, "the job is paused already"};
    } else if (command.kind == Command::Kind::save && !abilities_.save) {
      refusal = {Answer::Kind::unfit, 0, {}, "the job keeps no checkpoints; start it with --checkpoint-dir"};
    } else if (!paused && made_ + 1 >= steps_) {
      refusal = {Answer::Kind::unfit, 0, {}, "the job is in its last step; nothing can hold from a later one on"};
    } else {
      try {
        if (!request->group.empty()) {
          const std::vector<Group>& groups = engine_.groups();
          std::string known;
          for (std::size_t g = 0; g < groups.size(); ++g) {
            if (groups[g].name == request->group) command.group = static_cast<std::int32_t>(g);
            known += (g > 0 ? ", " : "") + groups[g].name;
          }
          if (command.group == Command::all_groups)
            throw Error(Code::invalid_argument,
                        "there is no group \"" + request->group + "\"; the groups are " + known);
        }
        its_changes_ = engine_.changes_of(command);
        if (!request->dry_run) return request;
        settle(*request, {Answer::Kind::accepted, made_ + (paused ? 1 : 2), its_changes_, {}});
        continue;
      } catch (const Error& error) {
        refusal = {Answer::Kind::refused, 0, {}, error.what()};
      }
    }
    settle(*request, std::move(refusal));
  }
  return {};
}

// What the loop does at once; on all ranks.
Answer Steering::done(const Command& command, std::int64_t step) {
  Answer answer{Answer::Kind::accepted, step, its_changes_, {}};
  if (command.kind != Command::Kind::save) return answer;
  if (std::string problem = abilities_.save(); !problem.empty()) answer = {Answer::Kind::unfit, 0, {}, problem};
  return answer;
}

void Steering::before_vote() {
  if (!mailbox_) return;
  on_its_way_ = next_request(false, {});
  if (on_its_way_) engine_.post(on_its_way_->command);
}

Steering::Next Steering::after_step(const StepFacts& facts) {
  made_ = facts.step;
  const Command& command = facts.report.command;
  if (mailbox_) {
    if (command.kind == Command::Kind::set) show_groups();
    if (command.kind == Command::Kind::drain) mailbox_->set_state(State::draining);
    if (command.kind == Command::Kind::pause) mailbox_->set_state(State::paused);
    mailbox_->publish(facts);
  }
  Answer answer = done(command, made_ + 1);
  if (on_its_way_) settle(*on_its_way_, std::move(answer));
  on_its_way_.reset();
  if (command.kind == Command::Kind::drain) return Next::drain;
  if (command.kind == Command::Kind::pause) return pause(made_ + 1);
  return Next::step;
}

// Rank 0's commands now come by broadcast, and all ranks act on each as they get it.
Steering::Next Steering::pause(std::int64_t step) {
  for (;;) {
    Command command;
    std::optional<Request> request;
    if (mailbox_) {
      request = next_request(true, pause_beat);
      if (request) command = request->command;
      if (!request && abilities_.drain_wanted && abilities_.drain_wanted()) command.kind = Command::Kind::drain;
    }
    transport_.broadcast(std::as_writable_bytes(std::span(&command, 1)), 0, "command to a paused job").wait();
    if (command.kind == Command::Kind::set) engine_.apply(command);
    Answer answer = done(command, step);
    if (request) {
      if (command.kind == Command::Kind::set) show_groups();
      if (command.kind == Command::Kind::resume) mailbox_->set_state(State::running);
      if (command.kind == Command::Kind::drain) mailbox_->set_state(State::draining);
      settle(*request, std::move(answer));
    }
    if (command.kind == Command::Kind::resume) return Next::step;
    if (command.kind == Command::Kind::drain) return Next::drain;
  }
}

void Steering::finish() {
  if (!mailbox_) return;
  const std::string sentence = "the job makes no further step";
  // What came after the last vote is in the audit log as well.
  while (const std::optional<Request> late = mailbox_->take()) settle(*late, {Answer::Kind::unfit, 0, {}, sentence});
  mailbox_->close(sentence);
}

}  // namespace regatta::control
