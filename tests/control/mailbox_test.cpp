// The mailbox by itself: every request once and in order, every answer to its sender, bounds, and readers of steps that
// are slow, come late or leave.

#include "runtime/control/mailbox.h"

#include <gtest/gtest.h>

#include <deque>
#include <set>

#include "tests/control/waiting.h"

namespace regatta::control {
namespace {

using namespace std::chrono_literals;
using Kind = Command::Kind;
using testing::request;
using testing::Sent;

constexpr auto at_once = 0ms;

TEST(Mailbox, RequestsComeOnceInOrderAndAnswersGoToTheirSenders) {
  Mailbox mailbox;
  EXPECT_FALSE(mailbox.take());
  std::deque<Sent> sent;
  for (int i = 0; i < 5; ++i) {
    Request made = request(Kind::set, "sender " + std::to_string(i));
    made.command.lr = 10 + i;
    made.command.number = 77;  // the sender's own is of no account
    made.group = "group " + std::to_string(i);
    made.dry_run = i % 2 == 1;
    sent.emplace_back(mailbox, made);
  }
  std::vector<Request> taken;
  std::set<std::uint64_t> numbers;
  for (int i = 0; i < 5; ++i) {
    const std::optional<Request> next = mailbox.take();
    ASSERT_TRUE(next);
    EXPECT_EQ(next->who, "sender " + std::to_string(i));
    EXPECT_EQ(next->group, "group " + std::to_string(i));
    EXPECT_EQ(next->command.lr, 10 + i);
    EXPECT_EQ(next->command.kind, Kind::set);
    EXPECT_EQ(next->dry_run, i % 2 == 1);
    EXPECT_TRUE(numbers.insert(next->command.number).second) << "two requests have one number";
    EXPECT_NE(next->command.number, 0U) << "0 is no request's";
    taken.push_back(*next);
  }
  EXPECT_FALSE(mailbox.take()) << "a request came twice";
  EXPECT_EQ(mailbox.waiting(), 5U);
  mailbox.answer(123456, {.step = 99});  // nobody's
  for (const int i : {3, 0, 4, 2, 1}) {
    const std::uint64_t number = taken[static_cast<std::size_t>(i)].command.number;
    mailbox.answer(number,
                   {Answer::Kind::refused, 100 + i, {{"g", "lr", 1.0 * i, 2.0 * i}}, "for " + std::to_string(i)});
    mailbox.answer(number, {.step = 999});  // too late: the first one counts
  }
  for (int i = 0; i < 5; ++i) {
    const Answer& answer = sent[static_cast<std::size_t>(i)].answer();
    EXPECT_EQ(answer.kind, Answer::Kind::refused);
    EXPECT_EQ(answer.step, 100 + i);
    EXPECT_EQ(answer.sentence, "for " + std::to_string(i));
    ASSERT_EQ(answer.changes.size(), 1U);
    EXPECT_EQ(answer.changes[0].to, 2.0 * i);
  }
  EXPECT_EQ(mailbox.waiting(), 0U);
}

TEST(Mailbox, TakeWaitsForARequestAndNoLonger) {
  Mailbox mailbox;
  EXPECT_FALSE(mailbox.take(1ms));
  std::jthread taker([&] {
    const std::optional<Request> taken = mailbox.take(10min);  // does not last: it is woken
    ASSERT_TRUE(taken);
    mailbox.answer(taken->command.number, {.step = 5});
  });
  Sent sent(mailbox, request(Kind::pause));
  EXPECT_EQ(sent.answer().step, 5);
}

TEST(Mailbox, WhoLeavesBeforeItsTurnIsForgottenAndWhoLeavesAfterwardsIsNot) {
  Mailbox mailbox;
  Sent leaves(mailbox, request(Kind::drain, "leaves")), stays(mailbox, request(Kind::pause, "stays"));
  leaves.give_up();
  EXPECT_EQ(leaves.answer().kind, Answer::Kind::given_up);
  EXPECT_FALSE(leaves.answer().sentence.empty());
  const std::optional<Request> taken = mailbox.take();
  ASSERT_TRUE(taken);
  EXPECT_EQ(taken->who, "stays");
  EXPECT_FALSE(mailbox.take());
  stays.give_up();                     // it is on its way to the ranks
  std::this_thread::sleep_for(150ms);  // would give up in this time; passes without it, too
  EXPECT_EQ(mailbox.waiting(), 1U);
  mailbox.answer(taken->command.number, {.step = 8});
  EXPECT_EQ(stays.answer().kind, Answer::Kind::accepted);
  EXPECT_EQ(stays.answer().step, 8);
}

TEST(Mailbox, OnlySoManyRequestsWait) {
  Mailbox mailbox;
  std::deque<Sent> sent;
  for (std::size_t i = 0; i < Mailbox::most_requests; ++i) sent.emplace_back(mailbox, request(Kind::pause));
  EXPECT_EQ(mailbox.waiting(), Mailbox::most_requests);
  const auto one_more = [&] { return mailbox.send(request(Kind::drain), [] { return true; }); };
  EXPECT_EQ(one_more().kind, Answer::Kind::full);
  EXPECT_FALSE(one_more().sentence.empty());
  const std::optional<Request> first = mailbox.take();
  EXPECT_EQ(one_more().kind, Answer::Kind::full) << "one that is on its way has its place still";
  mailbox.answer(first->command.number, {.step = 2});
  EXPECT_EQ(sent.front().answer().step, 2);
  EXPECT_EQ(one_more().kind, Answer::Kind::given_up) << "there is a place again";
  for (std::size_t i = 1; i < Mailbox::most_requests; ++i) {
    const std::optional<Request> next = mailbox.take();
    ASSERT_TRUE(next);
    EXPECT_EQ(next->command.kind, Kind::pause) << "one that was refused came through";
    mailbox.answer(next->command.number, {.step = 3});
  }
  EXPECT_FALSE(mailbox.take());
}

TEST(Mailbox, CloseAnswersWhatWaitsAndWhatStillComes) {
  Mailbox mailbox;
  Sent taken(mailbox, request(Kind::set)), waiting(mailbox, request(Kind::set));
  const std::uint64_t number = mailbox.take()->command.number;
  const std::shared_ptr<Watcher> reader = mailbox.watch();
  mailbox.publish({.step = 4});
  mailbox.close("it is over");
  mailbox.close("a second time");
  mailbox.answer(number, {.step = 9});
  for (Sent* sent : {&taken, &waiting}) {
    EXPECT_EQ(sent->answer().kind, Answer::Kind::unfit);
    EXPECT_EQ(sent->answer().sentence, "it is over");
  }
  EXPECT_FALSE(mailbox.take());
  const Answer late = mailbox.send(request(Kind::set), [] { return false; });
  EXPECT_EQ(late.kind, Answer::Kind::unfit);
  EXPECT_EQ(late.sentence, "it is over");
  EXPECT_EQ(mailbox.view().state, State::ended);
  ASSERT_TRUE(mailbox.view().last);
  EXPECT_EQ(mailbox.view().last->step, 4);
  // A reader sees what was published before, then the end; and so does one that comes now.
  StepFacts facts;
  EXPECT_EQ(reader->next(facts, at_once), Watcher::Got::step);
  EXPECT_EQ(facts.step, 4);
  EXPECT_EQ(reader->next(facts, 10min), Watcher::Got::ended);
  EXPECT_EQ(mailbox.watch()->next(facts, 10min), Watcher::Got::ended);
}

TEST(Mailbox, ReadersGetEveryStepFromTheirComingOn) {
  Mailbox mailbox;
  StepFacts facts;
  const std::shared_ptr<Watcher> early = mailbox.watch();
  EXPECT_EQ(early->next(facts, at_once), Watcher::Got::nothing);
  for (int step = 1; step <= 3; ++step) mailbox.publish({.step = step, .loss = 0.5 * step});
  const std::shared_ptr<Watcher> late = mailbox.watch();
  EXPECT_EQ(late->next(facts, at_once), Watcher::Got::nothing) << "steps before its coming are not a reader's";
  mailbox.publish({.step = 4, .loss = 2});
  for (int step = 1; step <= 4; ++step) {
    ASSERT_EQ(early->next(facts, at_once), Watcher::Got::step);
    EXPECT_EQ(facts.step, step);
    EXPECT_EQ(facts.loss, 0.5 * step);
  }
  EXPECT_EQ(early->next(facts, at_once), Watcher::Got::nothing);
  ASSERT_EQ(late->next(facts, at_once), Watcher::Got::step);
  EXPECT_EQ(facts.step, 4);
  EXPECT_EQ(late->next(facts, at_once), Watcher::Got::nothing);
  std::jthread publisher([&] { mailbox.publish({.step = 5}); });
  EXPECT_EQ(late->next(facts, 10min), Watcher::Got::step) << "a reader that waits is woken";
  EXPECT_EQ(facts.step, 5);
}

TEST(Mailbox, AReaderThatLetsStepsPileUpIsDroppedAndNoOther) {
  constexpr auto capacity = static_cast<std::int64_t>(Watcher::capacity);
  Mailbox mailbox;
  StepFacts facts;
  const std::shared_ptr<Watcher> slow = mailbox.watch(), just_in_time = mailbox.watch(), quick = mailbox.watch();
  std::int64_t step = 0;
  for (int round = 0; round < 2; ++round) {  // full twice, and read in time
    for (std::int64_t i = 0; i < capacity; ++i) {
      mailbox.publish({.step = ++step});
      ASSERT_EQ(quick->next(facts, at_once), Watcher::Got::step);
    }
    for (std::int64_t i = 1; i <= capacity; ++i) {
      for (const auto& reader : {slow, just_in_time}) {
        ASSERT_EQ(reader->next(facts, at_once), Watcher::Got::step) << i;
        EXPECT_EQ(facts.step, step - capacity + i);
        EXPECT_FALSE(reader->dropped());
      }
    }
  }
  for (std::int64_t i = 0; i < capacity; ++i) mailbox.publish({.step = ++step});
  EXPECT_FALSE(slow->dropped());
  for (const auto& reader : {just_in_time, quick}) ASSERT_EQ(reader->next(facts, at_once), Watcher::Got::step);
  mailbox.publish({.step = ++step});
  EXPECT_TRUE(slow->dropped());
  for (int look = 0; look < 2; ++look) EXPECT_EQ(slow->next(facts, at_once), Watcher::Got::dropped);
  for (std::int64_t i = 1; i <= capacity; ++i) {
    ASSERT_EQ(just_in_time->next(facts, at_once), Watcher::Got::step);
    EXPECT_EQ(facts.step, step - capacity + i);
  }
  EXPECT_FALSE(just_in_time->dropped());
  mailbox.publish({.step = ++step});
  EXPECT_EQ(slow->next(facts, at_once), Watcher::Got::dropped) << "dropped for good";
  EXPECT_EQ(just_in_time->next(facts, at_once), Watcher::Got::step);
  mailbox.close("over");
  EXPECT_EQ(slow->next(facts, at_once), Watcher::Got::dropped);
}

TEST(Mailbox, OnlySoManyReadersAndTheirPlacesComeFree) {
  Mailbox mailbox;
  std::vector<std::shared_ptr<Watcher>> readers;
  for (std::size_t i = 0; i < Mailbox::most_watchers; ++i) {
    readers.push_back(mailbox.watch());
    ASSERT_TRUE(readers.back()) << i;
  }
  EXPECT_FALSE(mailbox.watch());
  EXPECT_EQ(mailbox.watching(), Mailbox::most_watchers);
  for (int round = 0; round < 3; ++round) {
    readers[static_cast<std::size_t>(7 * round)].reset();
    readers[static_cast<std::size_t>(7 * round)] = mailbox.watch();
    EXPECT_TRUE(readers[static_cast<std::size_t>(7 * round)]);
    EXPECT_FALSE(mailbox.watch());
  }
  mailbox.publish({.step = 3});
  for (const auto& reader : readers) {
    StepFacts facts;
    EXPECT_EQ(reader->next(facts, at_once), Watcher::Got::step);
  }
}

TEST(Mailbox, ShowsTheJobAsItIs) {
  Mailbox mailbox;
  EXPECT_EQ(mailbox.view().state, State::starting);
  EXPECT_FALSE(mailbox.view().last);
  mailbox.set_groups({{"a", "rule a", 0.5}, {"b", "rule b", 2}}, 0.75);
  EXPECT_EQ(mailbox.view().state, State::starting);
  mailbox.start({.steps = 12, .world_size = 3, .mesh = "m", .plan_text = "p", .fingerprint = 9});
  EXPECT_EQ(mailbox.view().state, State::running);
  EXPECT_EQ(mailbox.job().steps, 12);
  EXPECT_EQ(mailbox.job().world_size, 3);
  for (const State state : {State::paused, State::running, State::draining}) {
    mailbox.set_state(state);
    EXPECT_EQ(mailbox.view().state, state);
  }
  ASSERT_EQ(mailbox.view().groups.size(), 2U);
  EXPECT_EQ(mailbox.view().groups[1].rule, "rule b");
  EXPECT_EQ(mailbox.view().groups[1].lr_scale, 2);
  EXPECT_EQ(mailbox.view().clip, 0.75);
  mailbox.set_groups({{"a", "rule c", 1}}, 0);
  EXPECT_EQ(mailbox.view().groups.size(), 1U);
  EXPECT_EQ(mailbox.view().clip, 0);
  for (int step = 1; step < 4; ++step) {
    mailbox.publish({.step = step});
    EXPECT_EQ(mailbox.view().last->step, step);
  }
  // Seconds since the start, in seconds.
  using Clock = std::chrono::steady_clock;
  const Clock::time_point first = Clock::now();
  const double before = mailbox.view().seconds;
  for (const Clock::time_point from = Clock::now(); Clock::now() - from < 20ms;) {
  }
  const double passed = mailbox.view().seconds - before;
  EXPECT_GE(passed, 0.02);
  EXPECT_LE(passed, std::chrono::duration<double>(Clock::now() - first).count());
}

}  // namespace
}  // namespace regatta::control
