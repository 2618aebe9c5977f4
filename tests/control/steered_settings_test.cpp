// Settings that are changed in a running job: from which step, on whom, and what is refused.

#include "tests/control/steered_job.h"

namespace regatta::control {
namespace {

TEST_F(SteeredJob, SettingsHoldOnAllRanksFromTheStepThatIsNamed) {
  run(3, [&](Transport& transport, Mailbox* mailbox, AuditLog* audit) {
    Loop loop(transport, mailbox, audit, 100);
    const std::string first = loop.settings();
    for (int i = 0; i < 2; ++i) ASSERT_EQ(loop.step(), Steering::Next::step);
    std::deque<Sent> sent;
    if (mailbox) {
      sent.emplace_back(*mailbox, set(31, 0.5, 0.25, 0.75, 0.375, 8));
      sent.emplace_back(*mailbox, set_lr(0.0625, "rest"));
    }
    // One goes with each step, in order.
    ASSERT_EQ(loop.step(), Steering::Next::step);
    EXPECT_EQ(loop.report.lr, scheduled_lr);
    const std::string second = loop.settings();
    EXPECT_NE(second, first);
    if (mailbox) {
      const Answer& answer = sent[0].answer();
      EXPECT_EQ(answer.kind, Answer::Kind::accepted) << answer.sentence;
      EXPECT_EQ(answer.step, 4);
      std::map<std::string, std::pair<double, double>> changes;
      for (const SettingChange& change : answer.changes)
        changes[change.group + " " + change.name] = {change.from, change.to};
      EXPECT_EQ(changes.at("matrices lr"), std::pair(0.125, 0.5));
      EXPECT_EQ(changes.at("rest lr"), std::pair(0.0625, 0.25));
      EXPECT_EQ(changes.at(" clip"), std::pair(64.0, 8.0));
      EXPECT_EQ(changes.at("matrices rho").second, 0.375);
      EXPECT_EQ(changes.at("matrices momentum").second, 0.75);
      EXPECT_EQ(changes.at("rest weight_decay").second, 0.25);
      EXPECT_EQ(mailbox->waiting(), 1U) << "two commands in one step";
      const Mailbox::View view = mailbox->view();
      EXPECT_EQ(view.clip, 8);
      EXPECT_EQ(view.groups[0].rule, loop.engine().groups()[0].rule->settings_text());
      EXPECT_EQ(view.groups[1].rule, loop.engine().groups()[1].rule->settings_text());
    }
    ASSERT_EQ(loop.step(), Steering::Next::step);
    EXPECT_EQ(loop.report.lr, 0.5);
    EXPECT_EQ(loop.report.groups[1].lr, 0.25);
    if (mailbox) {
      EXPECT_EQ(sent[1].answer().step, 5);
    }
    ASSERT_EQ(loop.step(), Steering::Next::step);
    EXPECT_EQ(loop.report.lr, 0.5);
    EXPECT_EQ(loop.report.groups[1].lr, 0.0625);
    EXPECT_EQ(loop.settings(), second);
    if (mailbox) {
      EXPECT_EQ(last_line(2)["changes"].size(), 1U);
    }
  });
}

// Every setting with every value that it cannot have: nothing changes, and the log says so at once.
TEST_F(SteeredJob, ValuesThatCannotBeAreRefusedAndWrittenDown) {
  run(2, [&](Transport& transport, Mailbox* mailbox, AuditLog* audit) {
    Loop loop(transport, mailbox, audit, 1000);
    const std::string before = loop.settings();
    std::vector<Request> wrong;
    for (const double value : {-0.5, -1e-300, -infinity, infinity, nan, 1000001.0}) wrong.push_back(set_lr(value));
    for (const double value : {-1.0, -infinity, infinity, nan}) {
      wrong.push_back(set(Command::weight_decay_given, 0, value, 0, 0, 0));
      wrong.push_back(set(Command::momentum_given, 0, 0, value, 0, 0));
      wrong.push_back(set(Command::rho_given, 0, 0, 0, value, 0));
      wrong.push_back(set(Command::clip_given, 0, 0, 0, 0, value));
      wrong.push_back(set_lr(value, "rest"));
    }
    wrong.push_back(set(Command::momentum_given, 0, 0, 1, 0, 0));
    wrong.push_back(set(Command::momentum_given, 0, 0, 1.5, 0, 0));
    wrong.push_back(set(0, 1, 1, 0.5, 1, 1));                                        // nothing is given
    wrong.push_back(set(Command::clip_given, 0, 0, 0, 0, 1, "matrices"));            // of the whole gradient
    wrong.push_back(set(Command::rho_given, 0, 0, 0, 0.5, 0, "rest"));               // AdamW has none
    wrong.push_back(set(Command::momentum_given, 0, 0, 0.5, 0, 0, "rest"));          // nor this
    wrong.push_back(set(Command::lr_given | Command::rho_given, 0.5, 0, 0, -1, 0));  // one right, one wrong
    for (const char* group : {"Matrices", "matrice", "matricess", " ", "W", "0"}) wrong.push_back(set_lr(0.5, group));
    std::size_t lines = 0;
    for (const Request& each : wrong) {
      for (const bool dry_run : {false, true}) {
        if (!mailbox) continue;
        Request made = each;
        made.dry_run = dry_run;
        Sent sent(*mailbox, made);
        loop.steering().before_vote();  // nothing for the ranks comes of it
        const Command& c = each.command;
        const std::string what = "fields " + std::to_string(c.fields) + ": " + std::to_string(c.lr) + " " +
                                 std::to_string(c.weight_decay) + " " + std::to_string(c.momentum) + " " +
                                 std::to_string(c.rho) + " " + std::to_string(c.clip) + ", group '" + each.group + "'";
        ASSERT_EQ(mailbox->waiting(), 0U) << what << " was taken for good";
        EXPECT_EQ(sent.answer().kind, Answer::Kind::refused) << what;
        EXPECT_FALSE(sent.answer().sentence.empty()) << what;
        const nlohmann::json line = last_line(++lines);
        EXPECT_EQ(line["accepted"], false) << what;
        EXPECT_EQ(line["command"], "set");
        EXPECT_EQ(line["who"], "somebody");
        EXPECT_EQ(line["reason"], sent.answer().sentence);
        EXPECT_EQ(line.contains("dry_run"), dry_run);
        EXPECT_FALSE(line.contains("step"));
      }
    }
    ASSERT_EQ(loop.step(), Steering::Next::step);
    EXPECT_EQ(loop.report.command.kind, Kind::none);
    ASSERT_EQ(loop.step(), Steering::Next::step);
    EXPECT_EQ(loop.report.lr, scheduled_lr);
    EXPECT_EQ(loop.settings(), before);
  });
}

// The ends of what can be are taken.
TEST_F(SteeredJob, ValuesAtTheirEndsAreTaken) {
  run(1, [&](Transport& transport, Mailbox* mailbox, AuditLog* audit) {
    Loop loop(transport, mailbox, audit, 1000);
    for (const Request& each :
         {set_lr(0), set_lr(1e6), set_lr(0, "rest"), set(Command::weight_decay_given, 0, 0, 0, 0, 0),
          set(Command::momentum_given, 0, 0, 0, 0, 0), set(Command::clip_given, 0, 0, 0, 0, 0)}) {
      Sent sent(*mailbox, dry(each));
      loop.steering().before_vote();
      EXPECT_EQ(sent.answer().kind, Answer::Kind::accepted) << sent.answer().sentence;
    }
  });
}

TEST_F(SteeredJob, DryRunsSayAndDoNothing) {
  run(2, [&](Transport& transport, Mailbox* mailbox, AuditLog* audit) {
    Loop loop(transport, mailbox, audit, 100);
    const std::string before = loop.settings();
    for (int i = 0; i < 3; ++i) loop.step();
    std::deque<Sent> sent;
    if (mailbox) {
      sent.emplace_back(*mailbox, dry(set(31, 0.5, 0.25, 0.75, 0.375, 8)));
      sent.emplace_back(*mailbox, set_lr(0.5));  // goes with the same step
    }
    ASSERT_EQ(loop.step(), Steering::Next::step);
    if (mailbox) {
      EXPECT_EQ(sent[0].answer().kind, Answer::Kind::accepted);
      EXPECT_EQ(sent[0].answer().step, 5) << "the step from which it would hold";
      EXPECT_EQ(sent[0].answer().changes.size(), 7U);
      EXPECT_EQ(sent[1].answer().step, 5);
      EXPECT_EQ(sent[1].answer().changes.size(), 2U);
      const std::vector<std::string> lines = testing::lines_of(path_);
      ASSERT_EQ(lines.size(), 2U);
      EXPECT_EQ(nlohmann::json::parse(lines[0])["dry_run"], true);
      EXPECT_FALSE(nlohmann::json::parse(lines[1]).contains("dry_run"));
    }
    EXPECT_EQ(loop.settings(), before);
  });
}

}  // namespace
}  // namespace regatta::control
