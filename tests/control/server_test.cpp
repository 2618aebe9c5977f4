// The service over real sockets, with a made-up job behind the mailbox: limits, readers that do not read, come late or
// leave.

#include "runtime/control/server.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <regatta/v1/control.grpc.pb.h>

#include <atomic>
#include <chrono>
#include <deque>
#include <future>
#include <optional>
#include <thread>

#include "tests/control/calls.h"

namespace regatta::control {
namespace {

using namespace std::chrono_literals;

// Answers every command at step 7, as a rank's thread would.
class MadeUpJob {
 public:
  explicit MadeUpJob(Mailbox& mailbox)
      : thread_([&mailbox](const std::stop_token& stop) {
          while (!stop.stop_requested())
            if (const auto request = mailbox.take(10ms)) mailbox.answer(request->command.number, {.step = 7});
        }) {}

 private:
  std::jthread thread_;
};

class ControlServer : public ::testing::Test {
 protected:
  std::unique_ptr<v1::Control::Stub> stub(const std::string& address) {
    return v1::Control::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  }
  static void limit(grpc::ClientContext& context) { testing::limit(context); }
  Mailbox mailbox_;
};

TEST_F(ControlServer, OversizedMessagesAreRefusedAndTheNextOneIsServed) {
  Server server({.address = "127.0.0.1:0"}, mailbox_);
  const MadeUpJob job(mailbox_);
  const auto client = stub(server.address());
  v1::CommandReply reply;
  v1::SetHyperparametersRequest large;
  large.set_group(std::string(1 << 20, 'x'));
  grpc::ClientContext first, second;
  limit(first);
  EXPECT_EQ(client->SetHyperparameters(&first, large, &reply).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  limit(second);
  EXPECT_TRUE(client->Pause(&second, {}, &reply).ok());
  EXPECT_EQ(reply.applies_at_step(), 7);
}

TEST_F(ControlServer, SlowReadersAreDroppedAndPublishingNeverWaits) {
  Server server({.address = "127.0.0.1:0"}, mailbox_);
  const auto client = stub(server.address());
  grpc::ChannelArguments small_window;  // otherwise the library buffers megabytes for a reader that does not read
  small_window.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  const auto slow_client = v1::Control::NewStub(
      grpc::CreateCustomChannel(server.address(), grpc::InsecureChannelCredentials(), small_window));
  grpc::ClientContext slow_context, quick_context;
  limit(slow_context);
  limit(quick_context);
  const auto slow = slow_client->WatchSteps(&slow_context, {});
  const auto quick = client->WatchSteps(&quick_context, {});
  std::atomic<std::int64_t> read{0};
  std::thread reader([&] {
    for (v1::Step step; quick->Read(&step);) read = step.step();
  });

  StepFacts facts;
  facts.report.groups.resize(50);  // several KiB, so that the connection's window fills soon
  for (GroupReport& group : facts.report.groups) group.name = std::string(100, 'g');
  // Both watch when the first step that each sees has come.
  v1::Step first;
  std::atomic<bool> begun{false};
  std::thread begins([&] { begun = slow->Read(&first); });
  const auto publish = [&] {
    ++facts.step;
    mailbox_.publish(facts);
  };
  while (read == 0 || !begun) {
    publish();
    std::this_thread::sleep_for(10ms);
  }
  begins.join();
  // The job makes steps for as long as it likes, whatever becomes of the slow reader; the quick one has all of them.
  const std::int64_t from = facts.step;
  constexpr std::int64_t many = 400;  // beyond all that is buffered on the way to the slow one
  while (facts.step < from + many) {
    publish();
    testing::wait_until([&] { return read > facts.step - 20; }, "the quick reader follows");
  }
  // It is cut off without reading anything, and its place is free again.
  testing::wait_until([&] { return mailbox_.watching() == 1; }, "the slow reader is cut off");
  v1::Step step;
  while (slow->Read(&step)) {
  }
  const grpc::StatusCode code = slow->Finish().error_code();
  EXPECT_TRUE(code == grpc::StatusCode::RESOURCE_EXHAUSTED || code == grpc::StatusCode::CANCELLED) << code;
  EXPECT_LT(step.step(), facts.step);
  mailbox_.close("done");
  reader.join();
  EXPECT_EQ(read, facts.step);
  EXPECT_TRUE(quick->Finish().ok());
}

TEST_F(ControlServer, WatchersAndWaitingCommandsAreBounded) {
  Server server({.address = "127.0.0.1:0"}, mailbox_);
  const auto client = stub(server.address());
  std::vector<std::shared_ptr<Watcher>> watchers;
  for (std::size_t i = 0; i < Mailbox::most_watchers; ++i) watchers.push_back(mailbox_.watch());
  grpc::ClientContext context;
  limit(context);
  v1::Step step;
  const auto late = client->WatchSteps(&context, {});
  EXPECT_FALSE(late->Read(&step));
  EXPECT_EQ(late->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);

  watchers.front().reset();
  grpc::ClientContext next_context;
  limit(next_context);
  const auto next = client->WatchSteps(&next_context, {});
  testing::wait_until([&] { return mailbox_.watching() == Mailbox::most_watchers; },
                      "the place that came free is taken");
  mailbox_.publish({.step = 5});
  EXPECT_TRUE(next->Read(&step));
  EXPECT_EQ(step.step(), 5);

  std::deque<testing::Sent> senders;  // nobody takes their commands
  for (std::size_t i = 1; i < Mailbox::most_requests; ++i)
    senders.emplace_back(mailbox_, testing::request(Command::Kind::pause));
  grpc::ClientContext last_context;
  limit(last_context);
  grpc::Status last;
  v1::CommandReply last_reply;
  std::thread sender([&] { last = client->Drain(&last_context, {}, &last_reply); });
  testing::wait_until([&] { return mailbox_.waiting() == Mailbox::most_requests; }, "the last place is taken");
  for (int i = 0; i < 8; ++i) {
    grpc::ClientContext mine;
    limit(mine);
    v1::CommandReply reply;
    EXPECT_EQ(client->Drain(&mine, {}, &reply).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  }
  // A sender that leaves takes its command along.
  last_context.TryCancel();
  sender.join();
  EXPECT_EQ(last.error_code(), grpc::StatusCode::CANCELLED);
  testing::wait_until([&] { return mailbox_.waiting() == Mailbox::most_requests - 1; }, "its place is free");
  for (std::size_t i = 1; i < Mailbox::most_requests; ++i) {
    const std::optional<Request> request = mailbox_.take();
    ASSERT_TRUE(request);
    EXPECT_EQ(request->command.kind, Command::Kind::pause);
    mailbox_.answer(request->command.number, {});
  }
  EXPECT_FALSE(mailbox_.take()) << "a command whose sender gave up is still there";
}

// A reader that comes late sees what is made from then on, one that leaves frees its place, and the end ends all.
TEST_F(ControlServer, ReadersComeAndLeave) {
  Server server({.address = "127.0.0.1:0"}, mailbox_);
  const testing::Calls calls(server.address());
  mailbox_.publish({.step = 1});
  std::int64_t made = 1;
  for (int round = 0; round < 3; ++round) {
    grpc::ClientContext context;
    limit(context);
    const auto reader = calls.stub().WatchSteps(&context, {});
    testing::wait_until([&] { return mailbox_.watching() == 1; }, "the reader watches");
    const std::int64_t from = made;
    for (int i = 0; i < 5; ++i) mailbox_.publish({.step = ++made, .loss = 0.5 * static_cast<double>(made)});
    v1::Step step;
    for (int i = 1; i <= 5; ++i) {
      ASSERT_TRUE(reader->Read(&step));
      EXPECT_EQ(step.step(), from + i);
      EXPECT_EQ(step.loss(), 0.5 * static_cast<double>(from + i));
    }
    if (round < 2) {
      context.TryCancel();
      EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
      testing::wait_until([&] { return mailbox_.watching() == 0; }, "one that left is gone");
    } else {
      mailbox_.publish({.step = ++made});
      mailbox_.close("over");
      EXPECT_TRUE(reader->Read(&step));
      EXPECT_EQ(step.step(), made);
      EXPECT_FALSE(reader->Read(&step));
      EXPECT_TRUE(reader->Finish().ok());
    }
  }
}

// A plan before there is one is not an empty plan.
TEST_F(ControlServer, AJobThatStartsHasNoPlanYet) {
  Server server({.address = "127.0.0.1:0"}, mailbox_);
  const testing::Calls calls(server.address());
  const auto plan = [&](v1::Plan& reply) {
    grpc::ClientContext context;
    limit(context);
    return calls.stub().GetPlan(&context, {}, &reply);
  };
  v1::Plan reply;
  EXPECT_EQ(plan(reply).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_TRUE(calls.make("GetStatus", {}).ok());
  mailbox_.start({.mesh = "dp=1", .ranks = {{1, 2, 3, 4}}, .plan_text = "text", .fingerprint = 6});
  for (const State state : {State::running, State::paused, State::draining, State::ended}) {
    mailbox_.set_state(state);
    reply.Clear();
    ASSERT_TRUE(plan(reply).ok());
    EXPECT_EQ(reply.mesh(), "dp=1");
    EXPECT_EQ(reply.text(), "text");
    EXPECT_EQ(reply.fingerprint(), 6U);
    ASSERT_EQ(reply.ranks_size(), 1);
    EXPECT_EQ(reply.ranks(0).exchange(), 3);
  }
}

TEST_F(ControlServer, HealthAndReflection) {
  Server server({.address = "127.0.0.1:0"}, mailbox_);
  grpc::GenericStub generic(grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials()));
  const auto ask = [&](const std::string& method, const std::string& request) {
    grpc::ClientContext context;
    limit(context);
    const grpc::Slice slice(request);
    const grpc::ByteBuffer in(&slice, 1);
    grpc::ByteBuffer out;
    std::promise<grpc::Status> done;
    generic.UnaryCall(&context, method, {}, &in, &out, [&](grpc::Status status) { done.set_value(status); });
    const grpc::Status status = done.get_future().get();
    EXPECT_TRUE(status.ok()) << status.error_message();
    std::vector<grpc::Slice> slices;
    std::string text;
    if (status.ok() && out.Dump(&slices).ok())
      for (const grpc::Slice& part : slices) text.append(reinterpret_cast<const char*>(part.begin()), part.size());
    return text;
  };
  const std::string service = "regatta.v1.Control";
  EXPECT_EQ(ask("/grpc.health.v1.Health/Check", "\x0a" + std::string(1, static_cast<char>(service.size())) + service),
            "\x08\x01");  // SERVING
  const std::string list_services("\x3a\x00", 2);
  EXPECT_NE(ask("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", list_services).find(service),
            std::string::npos);
}

// Other machines are served with all four files and not with any less; this machine with all of TLS or none of it.
TEST(ControlSettings, OnlyLoopbackWithoutTlsAndToken) {
  const std::vector<std::string> here{"127.0.0.1:0", "127.8.8.8:70",    "localhost:70",
                                      "[::1]:70",    "127.0.0.1:65535", "127.255.255.254:1"};
  const std::vector<std::string> elsewhere{"0.0.0.0:70",
                                           "10.0.0.1:70",
                                           "127.0.0.1.example.org:70",
                                           "[::]:70",
                                           "node7:70",
                                           "128.0.0.1:70",
                                           "127:70",
                                           "localhost.example.org:70",
                                           "1270.0.0.1:70",
                                           "[::2]:70",
                                           "LOCALHOST1:70",
                                           "27.0.0.1:70",
                                           "[fe80::1]:70"};
  for (int files = 0; files < 16; ++files) {
    const auto given = [&](int bit) { return (files >> bit & 1) != 0 ? "f" : ""; };
    const int tls = files & 7;
    for (const bool local : {true, false}) {
      for (const std::string& address : local ? here : elsewhere) {
        const ServerSettings settings{
            .address = address, .tls_cert = given(0), .tls_key = given(1), .tls_ca = given(2), .token_file = given(3)};
        const bool may = local ? tls == 0 || tls == 7 : files == 15;
        try {
          check(settings);
          EXPECT_TRUE(may) << address << " with files " << files;
        } catch (const Error& error) {
          EXPECT_FALSE(may) << error.what();
          EXPECT_EQ(error.code(), Code::invalid_argument);
        }
        EXPECT_EQ(is_loopback(address), local) << address;
      }
    }
  }
}

TEST(ControlSettings, WhatIsNoAddressIsNone) {
  for (const char* address :
       {"", ":", "70", ":70", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70x", "127.0.0.1:-1",
        "127.0.0.1:65536", "127.0.0.1:99999999999", "::1:70", "127.0.0.1:0x10", "localhost:7 0"}) {
    EXPECT_THROW(is_loopback(address), Error) << address;
    EXPECT_THROW(check({.address = address, .tls_cert = "c", .tls_key = "k", .tls_ca = "a", .token_file = "t"}), Error)
        << address;
  }
}

}  // namespace
}  // namespace regatta::control
