#pragma once
// A job of ranks as threads, with an engine each, steered through a mailbox by requests that are put there at known
// steps.

#include "runtime/control/steering.h"

#include <gtest/gtest.h>

#include <deque>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "tests/control/waiting.h"
#include "tests/support/spmd.h"

namespace regatta::control {

using Kind = Command::Kind;
using testing::request;
using testing::Sent;

inline constexpr double nan = std::numeric_limits<double>::quiet_NaN(),
                        infinity = std::numeric_limits<double>::infinity();
inline constexpr double scheduled_lr = 0.125;

inline Request set(std::uint32_t fields, double lr, double weight_decay, double momentum, double rho, double clip,
                   const std::string& group = "") {
  Request made = request(Kind::set);
  made.command.fields = fields;
  made.command.lr = lr;
  made.command.weight_decay = weight_decay;
  made.command.momentum = momentum;
  made.command.rho = rho;
  made.command.clip = clip;
  made.group = group;
  return made;
}

inline Request set_lr(double lr, const std::string& group = "") {
  return set(Command::lr_given, lr, 0, 0, 0, 0, group);
}

inline Request dry(Request made) {
  made.dry_run = true;
  return made;
}

// One rank's loop as a trainer has it. On rank 0 requests can be put into the mailbox before a step.
class Loop {
 public:
  Loop(Transport& transport, Mailbox* mailbox, AuditLog* audit, std::int64_t steps, Steering::Abilities abilities = {})
      : transport_(transport),
        engine_({{.name = "W", .shape = {4, 3}, .group = 0}, {.name = "b", .shape = {3}, .group = 1}},
                {{"matrices", make_rule("reg", {}), 1}, {"rest", make_rule("adamw", {}), 0.5}},
                sharding::Mesh({{"dp", transport.world_size()}}), transport, options()),
        steering_(engine_, transport, mailbox, audit, std::move(abilities)) {
    engine_.publish_params();
    steering_.start(steps);
  }
  // The next step of the loop.
  Steering::Next step() {
    const std::vector<float> grad(12, 0.5F);
    for (int p = 0; p < 2; ++p) engine_.add_grad(p, grad.data(), DType::f32);
    steering_.before_vote();
    report = engine_.step(scheduled_lr);
    return steering_.after_step({.step = ++made,
                                 .loss = 2.0 * static_cast<double>(made),
                                 .seconds = 3,
                                 .tokens_per_second = 4,
                                 .report = report});
  }
  Engine& engine() { return engine_; }
  Steering& steering() { return steering_; }
  // Rules with all settings, and clipping: equal on all ranks when commands are.
  std::string settings() {
    std::string text;
    for (const Group& group : engine_.groups()) text += group.name + " " + group.rule->settings_text() + "; ";
    text += "clip " + std::to_string(engine_.options().clip);
    for (const std::string& theirs : transport_.gather_strings(text, "settings"))
      EXPECT_EQ(theirs, text) << "rank " << transport_.rank();
    return text;
  }
  StepReport report;
  std::int64_t made = 0;

 private:
  static EngineOptions options() {
    EngineOptions options;
    options.clip = 64;
    return options;
  }
  Transport& transport_;
  Engine engine_;
  Steering steering_;
};

class SteeredJob : public ::testing::Test {
 protected:
  SteeredJob()
      : path_(::testing::TempDir() + "audit" + std::to_string(::getpid()) + "." +
              ::testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove(path_);
    audit_ = std::make_unique<AuditLog>(path_);
  }
  ~SteeredJob() override { std::filesystem::remove(path_); }

  // The body on every rank; mailbox and audit are given on rank 0.
  void run(int ranks, const std::function<void(Transport&, Mailbox*, AuditLog*)>& body) {
    testing::run_ranks(ranks, [&](Transport& transport) {
      const bool zero = transport.rank() == 0;
      body(transport, zero ? &mailbox_ : nullptr, zero ? audit_.get() : nullptr);
    });
  }
  // While the job runs: lines are there as soon as a command is answered.
  nlohmann::json last_line(std::size_t lines) const {
    const std::vector<std::string> all = testing::lines_of(path_);
    EXPECT_EQ(all.size(), lines);
    return all.empty() ? nlohmann::json() : nlohmann::json::parse(all.back());
  }

  std::string path_;
  Mailbox mailbox_;
  std::unique_ptr<AuditLog> audit_;
};

}  // namespace regatta::control
