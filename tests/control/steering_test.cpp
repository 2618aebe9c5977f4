// What a job does about commands, on all of its ranks: pauses, saves, drains, the last step, and what it shows.

#include "tests/control/steered_job.h"

namespace regatta::control {
namespace {

TEST_F(SteeredJob, NothingButAResumeOrADrainEndsAPause) {
  for (const Kind end : {Kind::resume, Kind::drain}) {
    SCOPED_TRACE(end == Kind::resume ? "resume" : "drain");
    Mailbox mailbox_of_this;
    const std::size_t lines_before = testing::lines_of(path_).size();
    std::atomic<int> saved{0};
    std::atomic<bool> ended{false};
    std::thread client;
    testing::run_ranks(3, [&](Transport& transport) {
      Mailbox* mailbox = transport.rank() == 0 ? &mailbox_of_this : nullptr;
      Loop loop(transport, mailbox, mailbox ? audit_.get() : nullptr, 100, {.save = [&] {
                  ++saved;
                  return std::string();
                }});
      EXPECT_EQ(loop.step(), Steering::Next::step);
      std::optional<Sent> pause;
      if (mailbox) {
        EXPECT_EQ(mailbox->view().state, State::running);
        pause.emplace(*mailbox, request(Kind::pause));
        client = std::thread([&, mailbox] {
          const auto ask = [&](Request made) { return mailbox->send(std::move(made), [] { return false; }); };
          EXPECT_EQ(pause->answer().kind, Answer::Kind::accepted);
          EXPECT_EQ(pause->answer().step, 3);
          EXPECT_EQ(mailbox->view().state, State::paused);
          EXPECT_EQ(mailbox->view().last->step, 2);
          const Answer again = ask(request(Kind::pause));
          EXPECT_EQ(again.kind, Answer::Kind::unfit);
          EXPECT_NE(again.sentence.find("paused already"), std::string::npos);
          EXPECT_EQ(ask(dry(set_lr(0.5))).step, 3) << "from the step that was paused before";
          EXPECT_EQ(ask(set_lr(-1)).kind, Answer::Kind::refused);
          const Answer lr = ask(set_lr(0.25));
          EXPECT_EQ(lr.kind, Answer::Kind::accepted);
          EXPECT_EQ(lr.step, 3);
          EXPECT_EQ(lr.changes.at(0).from, scheduled_lr);
          EXPECT_EQ(ask(set(Command::rho_given | Command::clip_given, 0, 0, 0, 0.75, 16)).step, 3);
          EXPECT_EQ(mailbox->view().clip, 16);
          EXPECT_EQ(saved, 0);
          EXPECT_EQ(ask(request(Kind::save)).step, 3);
          EXPECT_EQ(mailbox->view().state, State::paused);
          EXPECT_EQ(mailbox->view().last->step, 2) << "a step was made in the pause";
          EXPECT_FALSE(ended);
          const Answer last = ask(request(end));
          EXPECT_EQ(last.kind, Answer::Kind::accepted);
          EXPECT_EQ(last.step, 3);
          EXPECT_EQ(mailbox->view().state, end == Kind::resume ? State::running : State::draining);
        });
      }
      const Steering::Next next = loop.step();
      ended = true;
      EXPECT_EQ(next, end == Kind::resume ? Steering::Next::step : Steering::Next::drain) << transport.rank();
      if (mailbox) client.join();
      transport.barrier("the pause is over");
      EXPECT_EQ(saved, 3) << "each rank saves, once";
      EXPECT_EQ(loop.engine().options().clip, 16);
      loop.settings();
      if (end == Kind::drain) return;
      loop.step();
      EXPECT_EQ(loop.report.lr, 0.25);
      EXPECT_EQ(loop.report.step, 3);
      // Not paused any more.
      if (mailbox) {
        Sent resume(*mailbox, request(Kind::resume));
        loop.steering().before_vote();
        EXPECT_EQ(resume.answer().kind, Answer::Kind::unfit);
        EXPECT_NE(resume.answer().sentence.find("not paused"), std::string::npos);
      }
    });
    EXPECT_EQ(testing::lines_of(path_).size() - lines_before, end == Kind::resume ? 9U : 8U);
  }
}

TEST_F(SteeredJob, ADrainEndsAllRanksAfterTheSameStep) {
  run(3, [&](Transport& transport, Mailbox* mailbox, AuditLog* audit) {
    Loop loop(transport, mailbox, audit, 100);
    EXPECT_EQ(loop.step(), Steering::Next::step);
    std::optional<Sent> drain;
    if (mailbox) drain.emplace(*mailbox, request(Kind::drain));
    EXPECT_EQ(loop.step(), Steering::Next::drain) << "rank " << transport.rank();
    if (!mailbox) return;
    EXPECT_EQ(drain->answer().kind, Answer::Kind::accepted);
    EXPECT_EQ(drain->answer().step, 3) << "the step that will not be made";
    EXPECT_EQ(mailbox->view().state, State::draining);
    EXPECT_EQ(last_line(1)["command"], "drain");
    loop.steering().finish();
    EXPECT_EQ(mailbox->view().state, State::ended);
    EXPECT_EQ(mailbox->send(request(Kind::set), [] { return false; }).kind, Answer::Kind::unfit);
  });
}

// A job that is asked to end by its surroundings does so out of a pause, too.
TEST_F(SteeredJob, APausedJobThatIsToEndEnds) {
  std::atomic<bool> wanted{false};
  run(3, [&](Transport& transport, Mailbox* mailbox, AuditLog* audit) {
    Loop loop(transport, mailbox, audit, 100, {.drain_wanted = [&] { return transport.rank() == 0 && wanted; }});
    std::optional<Sent> pause;
    std::thread client;
    if (mailbox) {
      pause.emplace(*mailbox, request(Kind::pause));
      client = std::thread([&] {
        pause->answer();
        wanted = true;
      });
    }
    EXPECT_EQ(loop.step(), Steering::Next::drain) << transport.rank();
    if (client.joinable()) client.join();
  });
}

TEST_F(SteeredJob, SavesOnAllRanksAfterTheStepAndSaysWhyNot) {
  std::atomic<int> saved{0};
  std::string problem;
  run(3, [&](Transport& transport, Mailbox* mailbox, AuditLog* audit) {
    std::int64_t made_at_save = -1;
    Loop* self = nullptr;
    Loop loop(transport, mailbox, audit, 100, {.save = [&] {
                ++saved;
                made_at_save = self->engine().step_count();
                return problem;
              }});
    self = &loop;
    loop.step();
    EXPECT_EQ(saved, 0);
    for (int round = 1; round <= 2; ++round) {
      transport.barrier("a round begins");
      std::optional<Sent> save;
      if (mailbox) save.emplace(*mailbox, request(Kind::save));
      EXPECT_EQ(loop.step(), Steering::Next::step);
      EXPECT_EQ(made_at_save, loop.made);
      transport.barrier("all have saved");
      EXPECT_EQ(saved, 3 * round);
      if (mailbox && round == 1) {
        EXPECT_EQ(save->answer().kind, Answer::Kind::accepted);
        EXPECT_EQ(save->answer().step, 3);
        EXPECT_EQ(last_line(1)["accepted"], true);
        problem = "the disk is full";
      } else if (mailbox) {
        EXPECT_EQ(save->answer().kind, Answer::Kind::unfit);
        EXPECT_EQ(save->answer().sentence, "the disk is full");
        EXPECT_EQ(last_line(2)["accepted"], false);
        EXPECT_EQ(last_line(2)["reason"], "the disk is full");
      }
    }
    transport.barrier("all have looked");
    loop.step();
    EXPECT_EQ(saved, 6) << "nobody asked";
  });
}

TEST_F(SteeredJob, AJobWithoutCheckpointsSaysSo) {
  run(1, [&](Transport& transport, Mailbox* mailbox, AuditLog* audit) {
    Loop loop(transport, mailbox, audit, 100);
    Sent save(*mailbox, request(Kind::save));
    loop.steering().before_vote();
    EXPECT_EQ(save.answer().kind, Answer::Kind::unfit);
    EXPECT_NE(save.answer().sentence.find("--checkpoint-dir"), std::string::npos);
    EXPECT_EQ(last_line(1)["command"], "checkpoint");
  });
}

// Nothing can hold from a step on that is not made; what came too late is answered and written down.
TEST_F(SteeredJob, TheLastStepTakesNothing) {
  for (const Kind kind : {Kind::set, Kind::pause, Kind::drain, Kind::save}) {
    Mailbox mailbox;
    testing::run_ranks(1, [&](Transport& transport) {
      constexpr std::int64_t steps = 3;
      Loop loop(transport, &mailbox, audit_.get(), steps, {.save = [] { return std::string(); }});
      const std::size_t lines = testing::lines_of(path_).size();
      Request made = request(kind);
      if (kind == Kind::set) made = set_lr(0.5);
      loop.step();
      {
        Sent before(mailbox, dry(made));  // the step before the last can still bring it
        loop.steering().before_vote();
        EXPECT_EQ(before.answer().kind, Answer::Kind::accepted) << before.answer().sentence;
        EXPECT_EQ(before.answer().step, steps);
      }
      loop.step();
      for (const bool dry_run : {false, true}) {
        made.dry_run = dry_run;
        Sent late(mailbox, made);
        loop.steering().before_vote();
        EXPECT_EQ(late.answer().kind, Answer::Kind::unfit);
        EXPECT_NE(late.answer().sentence.find("last step"), std::string::npos);
      }
      made.dry_run = false;
      EXPECT_EQ(loop.step(), Steering::Next::step);
      EXPECT_EQ(loop.report.command.kind, Kind::none);
      Sent too_late(mailbox, made);
      loop.steering().finish();
      EXPECT_EQ(too_late.answer().kind, Answer::Kind::unfit);
      EXPECT_EQ(last_line(lines + 4)["reason"], too_late.answer().sentence);
    });
  }
}

// A job that goes on from a checkpoint counts its steps from there.
TEST_F(SteeredJob, AJobThatGoesOnCountsOn) {
  run(2, [&](Transport& transport, Mailbox* mailbox, AuditLog* audit) {
    Loop loop(transport, mailbox, audit, 100);
    loop.steering().start(43, 41);
    loop.made = 41;
    std::deque<Sent> sent;
    if (mailbox) {
      EXPECT_EQ(mailbox->job().steps, 43);
      sent.emplace_back(*mailbox, dry(set_lr(0.5)));
      sent.emplace_back(*mailbox, set_lr(0.25));
    }
    loop.step();
    if (mailbox) {
      EXPECT_EQ(sent[0].answer().step, 43);
      EXPECT_EQ(sent[1].answer().step, 43);
    }
    loop.steering().start(42, 41);
    if (mailbox) {
      Sent late(*mailbox, set_lr(0.5));
      loop.steering().before_vote();
      EXPECT_EQ(late.answer().kind, Answer::Kind::unfit) << "its first step is its last";
    }
  });
}

TEST_F(SteeredJob, ShowsThePlanTheGroupsAndEveryStep) {
  run(3, [&](Transport& transport, Mailbox* mailbox, AuditLog* audit) {
    Loop loop(transport, mailbox, audit, 77);
    const sharding::Plan& plan = loop.engine().plan();
    std::shared_ptr<Watcher> watcher = mailbox ? mailbox->watch() : nullptr;
    for (int i = 0; i < 3; ++i) loop.step();
    if (!mailbox) return;
    const JobFacts job = mailbox->job();
    EXPECT_EQ(job.steps, 77);
    EXPECT_EQ(job.world_size, 3);
    EXPECT_EQ(job.mesh, plan.mesh().text());
    EXPECT_EQ(job.plan_text, plan.text());
    EXPECT_EQ(job.fingerprint, plan.fingerprint());
    ASSERT_EQ(job.ranks.size(), 3U);
    for (int rank = 0; rank < 3; ++rank) EXPECT_EQ(job.ranks[static_cast<std::size_t>(rank)], plan.wire_bytes(rank));
    const Mailbox::View view = mailbox->view();
    EXPECT_EQ(view.state, State::running);
    EXPECT_EQ(view.clip, 64);
    ASSERT_EQ(view.groups.size(), 2U);
    EXPECT_EQ(view.groups[0].name, "matrices");
    EXPECT_EQ(view.groups[1].name, "rest");
    EXPECT_EQ(view.groups[1].lr_scale, 0.5);
    EXPECT_EQ(view.groups[0].rule, loop.engine().groups()[0].rule->settings_text());
    StepFacts facts;
    for (int step = 1; step <= 3; ++step) {
      ASSERT_EQ(watcher->next(facts, {}), Watcher::Got::step);
      EXPECT_EQ(facts.step, step);
      EXPECT_EQ(facts.loss, 2.0 * step);
      EXPECT_EQ(facts.seconds, 3);
      EXPECT_EQ(facts.tokens_per_second, 4);
      EXPECT_EQ(facts.report.step, step);
      EXPECT_EQ(facts.report.groups.size(), 2U);
    }
  });
}

}  // namespace
}  // namespace regatta::control
