// The service over real sockets, with a made-up job behind the mailbox: status codes, limits, readers that do not read.

#include "runtime/control/server.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <regatta/v1/control.grpc.pb.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <future>
#include <thread>

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
  static void limit(grpc::ClientContext& context, std::chrono::seconds time = 30s) {
    context.set_deadline(std::chrono::system_clock::now() + time);
  }
  Mailbox mailbox_;
};

TEST_F(ControlServer, TokenIsAskedOfEveryCall) {
  const std::string file = ::testing::TempDir() + "token" + std::to_string(getpid());
  std::ofstream(file) << "0123456789abcdef\n";
  Server server({.address = "127.0.0.1:0", .token_file = file}, mailbox_);
  const auto client = stub(server.address());
  const auto code = [&](const std::string& header) {
    grpc::ClientContext context;
    limit(context);
    if (!header.empty()) context.AddMetadata("authorization", header);
    v1::Status reply;
    return client->GetStatus(&context, {}, &reply).error_code();
  };
  EXPECT_EQ(code(""), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(code("Bearer 0123456789abcdeF"), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(code("Bearer 0123456789abcdef0123456789abcdef"), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(code("0123456789abcdef"), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(code("Bearer 0123456789abcdef"), grpc::StatusCode::OK);
  std::remove(file.c_str());
}

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
  std::this_thread::sleep_for(500ms);  // both watch now

  StepFacts facts;
  facts.report.groups.resize(50);  // several KiB, so that the connection's window fills soon
  for (GroupReport& group : facts.report.groups) group.name = std::string(100, 'g');
  double longest = 0;
  constexpr std::int64_t steps = 400;
  for (facts.step = 1; facts.step <= steps; ++facts.step) {
    const auto start = std::chrono::steady_clock::now();
    mailbox_.publish(facts);
    longest = std::max(longest, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    for (int wait = 0; wait < 1000 && read < facts.step - 20; ++wait) std::this_thread::sleep_for(1ms);
  }
  EXPECT_LT(longest, 0.5);
  std::this_thread::sleep_for(1500ms);  // time to cut it off
  v1::Step step;
  while (slow->Read(&step)) {
  }
  const grpc::StatusCode code = slow->Finish().error_code();
  EXPECT_TRUE(code == grpc::StatusCode::RESOURCE_EXHAUSTED || code == grpc::StatusCode::CANCELLED) << code;
  EXPECT_LT(step.step(), steps);
  mailbox_.close("done");
  reader.join();
  EXPECT_EQ(read, steps);
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

  std::vector<std::thread> senders;  // nobody takes their commands
  std::atomic<int> full{0}, given_up{0};
  for (std::size_t i = 0; i < Mailbox::most_requests + 8; ++i) {
    senders.emplace_back([&] {
      grpc::ClientContext mine;
      limit(mine, 5s);
      v1::CommandReply reply;
      const grpc::StatusCode code = client->Drain(&mine, {}, &reply).error_code();
      full += code == grpc::StatusCode::RESOURCE_EXHAUSTED;
      given_up += code == grpc::StatusCode::DEADLINE_EXCEEDED;
    });
  }
  for (std::thread& sender : senders) sender.join();
  EXPECT_EQ(full, 8);
  EXPECT_EQ(given_up, static_cast<int>(Mailbox::most_requests));
  std::this_thread::sleep_for(500ms);
  EXPECT_FALSE(mailbox_.take()) << "a command whose sender gave up is still there";
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

TEST(ControlSettings, OnlyLoopbackWithoutTlsAndToken) {
  for (const char* address : {"127.0.0.1:0", "127.8.8.8:70", "localhost:70", "[::1]:70"})
    EXPECT_NO_THROW(check({.address = address})) << address;
  for (const char* address : {"0.0.0.0:70", "10.0.0.1:70", "127.0.0.1.example.org:70", "[::]:70", "node7:70", "70",
                              ":70", "127.0.0.1:x", "127.0.0.1:70000", "::1:70"})
    EXPECT_THROW(check({.address = address}), Error) << address;
  EXPECT_THROW(check({.address = "0.0.0.0:70", .tls_cert = "c", .tls_key = "k", .tls_ca = "a"}), Error);
  EXPECT_NO_THROW(check({.address = "0.0.0.0:70", .tls_cert = "c", .tls_key = "k", .tls_ca = "a", .token_file = "t"}));
  EXPECT_THROW(check({.address = "127.0.0.1:70", .tls_cert = "c"}), Error);
}

}  // namespace
}  // namespace regatta::control
