#pragma once
// What the training loop does about commands, on every rank: rank 0 puts requests into the votes of steps, and all
// ranks act on what the votes brought, between the same two steps. Driven by the rank's thread; calls are collective.
//
//     Steering steering(engine, transport, mailbox, audit);   // mailbox and audit are null except on rank 0
//     steering.start(job)
//     for each step:
//       ... backward;  steering.before_vote(step);  report = engine.step(lr)
//       if (steering.after_step(facts) == Steering::Next::drain) break;
//     steering.finish()

#include <functional>
#include <optional>

#include "runtime/control/audit_log.h"
#include "runtime/control/mailbox.h"
#include "runtime/engine/engine.h"
#include "runtime/transport/transport.h"

namespace regatta::control {

class Steering {
 public:
  enum class Next { step, drain };

  /// What the loop can do beside making steps.
  struct Abilities {
    /// Saves a checkpoint after the step that was made last; collective. Gives back why that could not begin, or
    /// nothing. Not set: there are none.
    std::function<std::string()> save;
    /// Whether this rank was asked to end the job. Looked at while the job is paused, on rank 0.
    std::function<bool()> drain_wanted;
  };

  Steering(Engine& engine, Transport& transport, Mailbox* mailbox, AuditLog* audit, Abilities abilities = {});

  /// The loop is to reach step `steps` and has made `made` of them, as a job that goes on has.
  void start(std::int64_t steps, std::int64_t made = 0);
  /// Right before engine.step().
  void before_vote();
  /// Stays here while the job is paused.
  Next after_step(const StepFacts& facts);
  /// No further step is made.
  void finish();

 private:
  /// Answers what cannot be, and dry runs; gives back what the ranks must hear.
  std::optional<Request> next_request(bool paused, std::chrono::milliseconds patience);
  void settle(const Request& request, Answer answer);
  Answer done(const Command& command, std::int64_t step);
  void show_groups();
  Next pause(std::int64_t step);

  Engine& engine_;
  Transport& transport_;
  Mailbox* mailbox_;
  AuditLog* audit_;
  Abilities abilities_;
  std::int64_t steps_ = 0;
  std::int64_t made_ = 0;  // steps of the loop
  std::optional<Request> on_its_way_;
  std::vector<SettingChange> its_changes_;
};

}  // namespace regatta::control
