// What the eight calls let in and what they hand on: tokens, every field of every command and of every reply.

#include <gtest/gtest.h>
#include <unistd.h>

#include <cctype>
#include <cstdio>
#include <fstream>
#include <limits>
#include <mutex>
#include <optional>

#include "runtime/version.h"
#include "tests/control/calls.h"

namespace regatta::control {
namespace {

using namespace std::chrono_literals;
using grpc::StatusCode;
using Kind = Command::Kind;
using testing::call_names;
using testing::Calls;
using testing::Headers;

// Answers every command with accepted or what it is given, and keeps them; makes a step now and then.
class MadeUpJob {
 public:
  explicit MadeUpJob(Mailbox& mailbox, Answer answer = {.step = 7})
      : thread_([this, &mailbox, answer](const std::stop_token& stop) {
          while (!stop.stop_requested()) {
            mailbox.publish({});
            const std::optional<Request> request = mailbox.take(10ms);
            if (!request) continue;
            {
              const std::scoped_lock lock(mutex_);
              taken_.push_back(*request);
            }
            mailbox.answer(request->command.number, answer);
          }
        }) {}
  std::vector<Request> taken() {
    const std::scoped_lock lock(mutex_);
    return taken_;
  }

 private:
  std::mutex mutex_;
  std::vector<Request> taken_;
  std::jthread thread_;
};

class Door : public ::testing::Test {
 protected:
  std::string token_file(const std::string& contents) {
    const std::string path = ::testing::TempDir() + "token" + std::to_string(::getpid());
    std::ofstream(path, std::ios::binary) << contents;
    return path;
  }
  Mailbox mailbox_;
};

TEST_F(Door, EveryCallAsksForTheWholeToken) {
  mailbox_.start({});
  const std::string token = "0123456789abcdefXY", right = "Bearer " + token;
  const std::string file = token_file(token + "\r\n");
  Server server({.address = "127.0.0.1:0", .token_file = file}, mailbox_);
  MadeUpJob job(mailbox_);
  const Calls calls(server.address());
  std::vector<Headers> wrong{{},
                             {{"authorization", ""}},
                             {{"authorization", "Bearer"}},
                             {{"authorization", "Bearer "}},
                             {{"authorization", token}},
                             {{"authorization", "bearer " + token}},
                             {{"authorization", "BEARER " + token}},
                             {{"authorization", "Basic " + token}},
                             {{"authorization", "Bearer  " + token}},
                             {{"authorization", "Bearer " + right}},
                             {{"authorization", right + token}},
                             {{"authorization", right + right}},
                             {{"authorization", right + "x"}},
                             {{"authorization", "Bearer 0123456789ABCDEFXY"}},
                             {{"authorization", "Bearer 0123456789abcdefxy"}},
                             {{"authorization", "Bearer another-token-of-some-length"}},
                             {{"x-authorization", right}},
                             {{"token", token}},
                             {{"x-regatta-user", right}},
                             {{"authorization", "Bearer 0123456789"}, {"authorization", "abcdefXY"}},
                             {{"authorization", "Bearer "}, {"authorization", token}}};
  for (std::size_t length = 0; length < right.size(); ++length)
    wrong.push_back({{"authorization", right.substr(0, length)}});
  for (std::size_t at = 0; at < right.size(); ++at) {
    std::string changed = right;
    changed[at] =
        static_cast<char>(changed[at] ^ (std::isalpha(changed[at]) != 0 ? 0x20 : 1));  // letters in the other case
    wrong.push_back({{"authorization", changed}});
  }
  for (const Headers& headers : wrong) {
    for (const std::string& name : call_names) {
      const grpc::Status status = calls.make(name, headers);
      EXPECT_EQ(status.error_code(), StatusCode::UNAUTHENTICATED)
          << name << " with " << (headers.empty() ? "nothing" : headers[0].first + ": " + headers[0].second);
      EXPECT_EQ(status.error_message().find(token), std::string::npos) << "it tells the token";
    }
  }
  EXPECT_TRUE(job.taken().empty()) << "a command of a stranger came to the job";
  for (const std::string& name : call_names)
    EXPECT_EQ(calls.make(name, {{"authorization", right}}).error_code(), StatusCode::OK) << name;
  EXPECT_EQ(job.taken().size(), 6U);
  std::remove(file.c_str());
}

TEST_F(Door, WithoutATokenEverybodyMayWhoCanConnect) {
  mailbox_.start({});
  Server server({.address = "127.0.0.1:0"}, mailbox_);
  MadeUpJob job(mailbox_);
  const Calls calls(server.address());
  for (const std::string& name : call_names) {
    EXPECT_EQ(calls.make(name, {}).error_code(), StatusCode::OK) << name;
    EXPECT_EQ(calls.make(name, {{"authorization", "Bearer anything"}}).error_code(), StatusCode::OK) << name;
  }
}

TEST_F(Door, TokenFilesThatAreNoneAreRefused) {
  const auto serves = [&](const std::string& path) {
    try {
      Mailbox mailbox;
      const Server server({.address = "127.0.0.1:0", .token_file = path}, mailbox);
      return true;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_argument);
      EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
      return false;
    }
  };
  EXPECT_FALSE(serves(token_file("")));
  EXPECT_FALSE(serves(token_file("\n")));
  EXPECT_FALSE(serves(token_file(std::string(15, 't'))));
  EXPECT_FALSE(serves(token_file(std::string(15, 't') + "\r\n  \n")));
  EXPECT_FALSE(serves(::testing::TempDir() + "no such file"));
  EXPECT_TRUE(serves(token_file(std::string(16, 't'))));
  std::remove(token_file("x").c_str());
}

// Each number by itself, zeros too, and all of them, none in another's place.
TEST_F(Door, EveryFieldOfACommandArrivesAsItself) {
  Server server({.address = "127.0.0.1:0"}, mailbox_);
  MadeUpJob job(mailbox_);
  const Calls calls(server.address());
  struct Case {
    void (v1::SetHyperparametersRequest::*put)(double);
    std::uint32_t field;
    double Command::*place;
  };
  const std::vector<Case> cases{
      {&v1::SetHyperparametersRequest::set_lr, Command::lr_given, &Command::lr},
      {&v1::SetHyperparametersRequest::set_weight_decay, Command::weight_decay_given, &Command::weight_decay},
      {&v1::SetHyperparametersRequest::set_momentum, Command::momentum_given, &Command::momentum},
      {&v1::SetHyperparametersRequest::set_rho, Command::rho_given, &Command::rho},
      {&v1::SetHyperparametersRequest::set_clip, Command::clip_given, &Command::clip}};
  for (std::uint32_t given = 0; given < 1U << cases.size(); ++given) {
    for (const bool zeros : {false, true}) {
      v1::SetHyperparametersRequest asked;
      std::uint32_t fields = 0;
      for (std::size_t i = 0; i < cases.size(); ++i) {
        if ((given >> i & 1) == 0) continue;
        (asked.*cases[i].put)(zeros ? 0 : 0.1 + static_cast<double>(i));
        fields |= cases[i].field;
      }
      asked.set_group(zeros ? "" : "group " + std::to_string(given));
      asked.set_dry_run(given % 3 == 0);
      v1::CommandReply reply;
      ASSERT_TRUE(calls.set(asked, reply).ok());
      EXPECT_EQ(reply.dry_run(), given % 3 == 0);
      EXPECT_EQ(reply.applies_at_step(), 7);
      const Request taken = job.taken().back();
      EXPECT_EQ(taken.command.kind, Kind::set);
      EXPECT_EQ(taken.command.fields, fields) << given;
      EXPECT_EQ(taken.command.group, Command::all_groups);
      EXPECT_EQ(taken.group, asked.group());
      EXPECT_EQ(taken.dry_run, asked.dry_run());
      for (std::size_t i = 0; i < cases.size(); ++i)
        EXPECT_EQ(taken.command.*cases[i].place, (given >> i & 1) == 0 || zeros ? 0 : 0.1 + static_cast<double>(i))
            << given;
    }
  }
  EXPECT_EQ(job.taken().size(), 2U << cases.size()) << "a command came more than once";
}

TEST_F(Door, EachCallIsItsOwnCommandOfWhoSentIt) {
  Server server({.address = "127.0.0.1:0"}, mailbox_);
  MadeUpJob job(mailbox_);
  const Calls calls(server.address());
  const std::vector<std::pair<std::string, Kind>> commands{{"SetHyperparameters", Kind::set},
                                                           {"SaveCheckpoint", Kind::save},
                                                           {"Pause", Kind::pause},
                                                           {"Resume", Kind::resume},
                                                           {"Drain", Kind::drain}};
  for (const auto& [name, kind] : commands) {
    ASSERT_TRUE(calls.make(name, {{"x-regatta-user", "someone@somewhere"}}).ok());
    const Request taken = job.taken().back();
    EXPECT_EQ(taken.command.kind, kind) << name;
    EXPECT_FALSE(taken.dry_run);
    EXPECT_TRUE(taken.group.empty());
    EXPECT_EQ(taken.who.rfind("user=someone@somewhere ", 0), 0U) << taken.who;
    EXPECT_NE(taken.who.find("127.0.0.1"), std::string::npos) << taken.who;
  }
  EXPECT_EQ(job.taken().size(), commands.size());
  // A name as long as it likes does not fill the log.
  ASSERT_TRUE(calls.make("Pause", {{"x-regatta-user", std::string(1000, 'u')}}).ok());
  EXPECT_NE(job.taken().back().who.find("user=" + std::string(64, 'u') + " "), std::string::npos)
      << job.taken().back().who;
  ASSERT_TRUE(calls.make("Pause", {}).ok());
  EXPECT_EQ(job.taken().back().who.find("user="), std::string::npos);
}

TEST_F(Door, EveryAnswerHasItsStatus) {
  const std::vector<std::pair<Answer::Kind, StatusCode>> kinds{{Answer::Kind::accepted, StatusCode::OK},
                                                               {Answer::Kind::refused, StatusCode::INVALID_ARGUMENT},
                                                               {Answer::Kind::unfit, StatusCode::FAILED_PRECONDITION},
                                                               {Answer::Kind::full, StatusCode::RESOURCE_EXHAUSTED},
                                                               {Answer::Kind::given_up, StatusCode::CANCELLED}};
  for (const auto& [kind, code] : kinds) {
    Mailbox mailbox;
    Server server({.address = "127.0.0.1:0"}, mailbox);
    const Answer answer{
        kind,
        31,
        {{"matrices", "lr", std::numeric_limits<double>::quiet_NaN(), 0.5}, {"", "clip", 0, 4}, {"rest", "rho", 2, 3}},
        "the reason"};
    MadeUpJob job(mailbox, answer);
    const Calls calls(server.address());
    v1::SetHyperparametersRequest asked;
    asked.set_dry_run(true);
    v1::CommandReply reply;
    const grpc::Status status = calls.set(asked, reply);
    EXPECT_EQ(status.error_code(), code);
    if (code != StatusCode::OK) {
      EXPECT_EQ(status.error_message(), "the reason");
      continue;
    }
    EXPECT_EQ(reply.applies_at_step(), 31);
    EXPECT_TRUE(reply.dry_run());
    ASSERT_EQ(reply.changes_size(), 3);
    EXPECT_FALSE(reply.changes(0).has_from());
    EXPECT_EQ(reply.changes(0).group(), "matrices");
    EXPECT_EQ(reply.changes(0).name(), "lr");
    EXPECT_EQ(reply.changes(0).to(), 0.5);
    EXPECT_TRUE(reply.changes(1).has_from()) << "0 is a number";
    EXPECT_EQ(reply.changes(1).from(), 0);
    EXPECT_EQ(reply.changes(1).group(), "");
    EXPECT_EQ(reply.changes(2).from(), 2);
    EXPECT_EQ(reply.changes(2).to(), 3);
  }
}

TEST_F(Door, RequestsUpToSixteenKiBAreTaken) {
  Server server({.address = "127.0.0.1:0"}, mailbox_);
  MadeUpJob job(mailbox_);
  const Calls calls(server.address());
  v1::CommandReply reply;
  v1::SetHyperparametersRequest asked;
  asked.set_group(std::string((16 << 10) - 100, 'g'));
  EXPECT_TRUE(calls.set(asked, reply).ok());
  asked.set_group(std::string((16 << 10) + 100, 'g'));
  EXPECT_EQ(calls.set(asked, reply).error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(job.taken().size(), 1U);
}

TEST_F(Door, AnAddressThatIsTakenIsRefused) {
  Server server({.address = "127.0.0.1:0"}, mailbox_);
  EXPECT_EQ(server.address().rfind("127.0.0.1:", 0), 0U);
  EXPECT_NE(server.address(), "127.0.0.1:0");
  Mailbox other;
  EXPECT_THROW(Server({.address = server.address()}, other), Error);
  // Files of TLS that cannot be.
  EXPECT_THROW(
      Server({.address = "127.0.0.1:0", .tls_cert = "/no/cert", .tls_key = "/no/key", .tls_ca = "/no/ca"}, other),
      Error);
}

TEST_F(Door, TheServersEndEndsWhatWaits) {
  auto server = std::make_unique<Server>(ServerSettings{.address = "127.0.0.1:0"}, mailbox_);
  const Calls calls(server->address());
  grpc::Status status;
  std::thread sender([&] { status = calls.make("Drain", {}); });
  testing::wait_until([&] { return mailbox_.waiting() == 1; }, "a command waits");
  server.reset();
  sender.join();
  EXPECT_EQ(status.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(status.error_message(), "the job has ended");
  EXPECT_EQ(mailbox_.view().state, State::ended);
}

}  // namespace
}  // namespace regatta::control
