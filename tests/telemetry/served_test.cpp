// How pages get out: over HTTP, by a push at the end, found through a file; and the hand-over between a rank's thread
// and those that read.

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <httplib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "runtime/error.h"
#include "runtime/telemetry/snapshot.h"
#include "tests/support/spmd.h"
#include "tests/telemetry/figures.h"

namespace regatta {
namespace {

using testing::Fresh;

sharding::Mesh mesh(int dp) { return sharding::Mesh({{"dp", dp}}); }

std::filesystem::path folder() {
  const auto path = std::filesystem::path(::testing::TempDir()) / ("metrics" + std::to_string(::getpid()));
  std::filesystem::remove_all(path);
  return path;
}

// Somebody else's port of this machine, while it lives.
class TakenPort {
 public:
  TakenPort() : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(::bind(socket_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(::listen(socket_, 1), 0);
    EXPECT_EQ(::getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
  }
  ~TakenPort() { ::close(socket_); }
  TakenPort(const TakenPort&) = delete;
  TakenPort& operator=(const TakenPort&) = delete;
  int port() const { return port_; }

 private:
  int socket_, port_ = 0;
};

int port_of(const std::string& address) { return std::stoi(address.substr(address.rfind(':') + 1)); }

std::string without_memory(const std::string& page) {
  std::istringstream lines(page);
  std::string text;
  for (std::string line; std::getline(lines, line);)
    if (line.rfind("regatta_resident_memory_bytes{", 0) != 0) text += line + "\n";
  return text;
}

TEST(ServedMetrics, EveryRankServesItsOwnPageAndIsFound) {
  const std::filesystem::path found = folder() / "deeper";
  std::mutex mutex;
  std::set<std::string> addresses;
  std::atomic<int> served{0};
  testing::run_ranks(3, [&](Transport& transport) {
    Fresh fresh(100 * transport.rank());
    {
      Telemetry telemetry({.address = "127.0.0.1:0", .job = "found", .discovery_dir = found.string()},
                          {mesh(3), "r", "t", 1}, transport);
      for (int step = 1; step < 4; ++step)
        telemetry.record(fresh_report(step, 0, fresh), {}, fresh_trainer_facts(fresh));
      httplib::Client client("127.0.0.1", port_of(telemetry.address()));
      client.set_read_timeout(60);
      const auto answer = client.Get("/metrics");
      ASSERT_TRUE(answer);
      EXPECT_EQ(answer->status, 200);
      EXPECT_EQ(answer->get_header_value("Content-Type").substr(0, 26), "text/plain; version=0.0.4;");
      EXPECT_EQ(without_memory(answer->body), without_memory(telemetry.page()));
      EXPECT_NE(answer->body.find("rank=\"" + std::to_string(transport.rank()) + "\""), std::string::npos);
      const auto hint = client.Get("/");
      ASSERT_TRUE(hint);
      EXPECT_NE(hint->body.find("/metrics"), std::string::npos);
      const std::scoped_lock lock(mutex);
      addresses.insert(telemetry.address());
      ++served;
    }
    transport.barrier("all have stopped");
  });
  EXPECT_EQ(served, 3);
  EXPECT_EQ(addresses.size(), 3U);
  EXPECT_FALSE(std::filesystem::exists(found / "found.json")) << "it outlived the job";
  std::filesystem::remove_all(found.parent_path());
}

TEST(ServedMetrics, TheFileNamesAllRanksInOrderAndTheJob) {
  const std::filesystem::path found = folder();
  std::vector<std::string> addresses(3);
  testing::run_ranks(3, [&](Transport& transport) {
    Telemetry telemetry({.address = "127.0.0.1:0", .job = "found", .discovery_dir = found.string()},
                        {mesh(3), "r", "t", 1}, transport);
    addresses[static_cast<std::size_t>(transport.rank())] = telemetry.address();
    transport.barrier("addresses are known");
    if (transport.rank() == 0) {
      const auto document = nlohmann::json::parse(std::ifstream(found / "found.json"));
      ASSERT_EQ(document.size(), 1U);
      EXPECT_EQ(document[0]["targets"], nlohmann::json(addresses));
      EXPECT_EQ(document[0]["labels"], nlohmann::json({{"job", "found"}}));
      EXPECT_FALSE(std::filesystem::exists(found / "found.json.new"));
    }
    transport.barrier("the file was read");
  });
  std::filesystem::remove_all(found);
}

// Neighbouring ports, by the number on the machine.
TEST(ServedMetrics, RanksOfAMachineTakeNeighbouringPorts) {
  for (int attempt = 0;; ++attempt) {  // somebody else may take one of the ports meanwhile
    const int first = TakenPort().port();
    std::vector<std::string> addresses(3);
    try {
      testing::run_ranks(3, [&](Transport& transport) {
        Telemetry telemetry({.address = "127.0.0.1:" + std::to_string(first), .job = "j"}, {mesh(3), "r", "t", 1},
                            transport);
        addresses[static_cast<std::size_t>(transport.rank())] = telemetry.address();
        transport.barrier("all serve");
      });
    } catch (const Error&) {
      ASSERT_LT(attempt, 20);
      continue;
    }
    for (int rank = 0; rank < 3; ++rank)
      EXPECT_EQ(addresses[static_cast<std::size_t>(rank)], "127.0.0.1:" + std::to_string(first + rank));
    return;
  }
}

// On all interfaces a rank is found by its machine's name.
TEST(ServedMetrics, AllInterfacesAreFoundByTheNodesName) {
  const std::filesystem::path found = folder();
  testing::run_ranks(1, [&](Transport& transport) {
    Telemetry telemetry({.address = "0.0.0.0:0", .job = "j", .discovery_dir = found.string()}, {mesh(1), "r", "t", 1},
                        transport);
    char node[256] = "";
    ::gethostname(node, sizeof node - 1);
    EXPECT_EQ(nlohmann::json::parse(std::ifstream(found / "j.json"))[0]["targets"][0],
              node + telemetry.address().substr(telemetry.address().rfind(':')));
  });
  std::filesystem::remove_all(found);
}

// One rank that cannot serve ends the job on all of them, in its words.
TEST(ServedMetrics, ATakenPortIsToldOnAllRanks) {
  const TakenPort taken;
  std::atomic<int> told{0};
  testing::run_ranks(3, [&](Transport& transport) {
    try {
      // Rank 1 takes the port above.
      Telemetry telemetry({.address = "127.0.0.1:" + std::to_string(taken.port() - 1), .job = "j"},
                          {mesh(3), "r", "t", 1}, transport);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_argument);
      told += std::string(error.what()).find("cannot be bound") != std::string::npos;
    }
  });
  EXPECT_EQ(told, 3);
}

// A second job on the machine hears that the ports are the first one's.
TEST(ServedMetrics, TwoJobsDoNotShareAPort) {
  testing::run_ranks(1, [&](Transport& transport) {
    const Telemetry first({.address = "127.0.0.1:0", .job = "first"}, {mesh(1), "r", "t", 1}, transport);
    EXPECT_THROW(Telemetry({.address = first.address(), .job = "second"}, {mesh(1), "r", "t", 1}, transport), Error);
  });
}

TEST(ServedMetrics, WrongAddressesAreRefused) {
  for (const char* address : {"9464", "127.0.0.1", "127.0.0.1:", ":9464", "127.0.0.1:-1", "127.0.0.1:65536",
                              "127.0.0.1:x", "127.0.0.1:0x", "127.0.0.1:0.5", "127.0.0.1:99999999999"}) {
    testing::run_ranks(1, [&](Transport& transport) {
      try {
        Telemetry telemetry({.address = address, .job = "j"}, {mesh(1), "r", "t", 1}, transport);
        ADD_FAILURE() << address << " was served at " << telemetry.address();
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), Code::invalid_argument) << address;
        EXPECT_NE(std::string(error.what()).find("HOST:PORT"), std::string::npos) << error.what();
      }
    });
  }
}

struct Gateway {
  httplib::Server server;
  std::mutex mutex;
  std::map<std::string, std::string> bodies;
  int port = 0;
  std::thread thread;
  explicit Gateway(int status) {
    server.Put(".*", [this, status](const httplib::Request& request, httplib::Response& response) {
      const std::scoped_lock lock(mutex);
      bodies[request.path] = request.body;
      response.status = status;
    });
    port = server.bind_to_any_port("127.0.0.1");
    thread = std::thread([this] { server.listen_after_bind(); });
  }
  ~Gateway() {
    while (!server.is_running()) std::this_thread::yield();
    server.stop();
    thread.join();
  }
};

TEST(ServedMetrics, TheLastFiguresOfEveryRankArePushedOnce) {
  for (const int status : {200, 503}) {  // a gateway that refuses is a warning, not the job's end
    Gateway gateway(status);
    std::vector<std::string> pages(2);
    testing::run_ranks(2, [&](Transport& transport) {
      Fresh fresh(100 * transport.rank());
      Telemetry telemetry({.job = "short", .push_address = "127.0.0.1:" + std::to_string(gateway.port)},
                          {mesh(2), "r", "t", 1}, transport);
      EXPECT_EQ(telemetry.address(), "");
      for (int step = 1; step < 4; ++step)
        telemetry.record(fresh_report(step, 0, fresh), {}, fresh_trainer_facts(fresh));
      telemetry.saved();
      pages[static_cast<std::size_t>(transport.rank())] = telemetry.page();
    });
    ASSERT_EQ(gateway.bodies.size(), 2U);
    for (int rank = 0; rank < 2; ++rank)
      EXPECT_EQ(without_memory(gateway.bodies["/metrics/job/short/rank/" + std::to_string(rank)]),
                without_memory(pages[static_cast<std::size_t>(rank)]));
  }
}

TEST(SnapshotExchange, TheReaderHasTheNewestAndKeepsIt) {
  SnapshotExchange exchange;
  EXPECT_EQ(exchange.front().tokens, 0);
  for (int i = 1; i < 20; ++i) {
    for (int k = 0; k <= i % 4; ++k) {  // several may be published between two looks
      exchange.back() = {};
      exchange.back().tokens = 100 * i + k;
      exchange.publish();
    }
    for (int look = 0; look < 3; ++look) EXPECT_EQ(exchange.front().tokens, 100 * i + i % 4);
    exchange.back().tokens = -1;  // not published yet
    EXPECT_EQ(exchange.front().tokens, 100 * i + i % 4);
  }
}

// No figure of one step beside one of another, and never an older one after a newer.
TEST(SnapshotExchange, NeverMixesSteps) {
  SnapshotExchange exchange;
  std::atomic<bool> done{false};
  constexpr std::int64_t steps = 20000;
  std::thread writer([&] {
    for (std::int64_t i = 1; i <= steps; ++i) {
      Snapshot& s = exchange.back();
      s.steps = s.tokens = s.proofs = s.sent.vote = i;
      s.by_update.assign(static_cast<std::size_t>(i % 5), {"p", static_cast<double>(i)});
      exchange.publish();
    }
    done = true;
  });
  std::int64_t last = 0;
  for (bool ended = false; !ended;) {
    ended = done;
    const Snapshot& s = exchange.front();
    ASSERT_TRUE(s.steps == s.tokens && s.steps == s.proofs && s.steps == s.sent.vote) << s.steps;
    ASSERT_EQ(s.by_update.size(), static_cast<std::size_t>(s.steps % 5));
    for (const TopParam& top : s.by_update) ASSERT_EQ(top.value, static_cast<double>(s.steps));
    ASSERT_GE(s.steps, last);
    last = s.steps;
  }
  writer.join();
  EXPECT_EQ(exchange.front().steps, steps);
}

}  // namespace
}  // namespace regatta
