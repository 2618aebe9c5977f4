// How processes without MPI meet: what the environment must say, who is let in, what is gathered, and what the others
// hear of a rank that fails, leaves or is gone.

#include "runtime/transport/nccl/meeting.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <memory>
#include <thread>

#include "runtime/transport/nccl/nccl_transport.h"
#include "runtime/transport/nccl/notices.h"
#include "tests/transport/transport_checks.h"

namespace regatta::testing {
namespace {

constexpr std::chrono::milliseconds generous{120'000};

std::string fresh_file() {
  static int count = 0;
  return ::testing::TempDir() + "regatta_meeting_test_" + std::to_string(getpid()) + "_" + std::to_string(++count);
}

constexpr const char* variables[] = {"RANK",        "WORLD_SIZE",  "LOCAL_RANK",
                                     "MASTER_ADDR", "MASTER_PORT", "REGATTA_MEETING_FILE"};

/// As torchrun would start rank 3 of 4, with one variable set otherwise; null takes it away.
JobPlace place_with(const char* name, const char* value) {
  const char* const good[] = {"3", "4", "1", "127.0.0.1", "29555", nullptr};
  for (int i = 0; i < 6; ++i) {
    const char* const text = name == std::string(variables[i]) ? value : good[i];
    text == nullptr ? unsetenv(variables[i]) : setenv(variables[i], text, 1);
  }
  try {
    const JobPlace place = job_place_from_environment();
    for (const char* variable : variables) unsetenv(variable);
    return place;
  } catch (...) {
    for (const char* variable : variables) unsetenv(variable);
    throw;
  }
}

TEST(JobPlace, IsWhatTorchrunSets) {
  for (const char* variable : variables) unsetenv(variable);
  EXPECT_EQ(job_place_from_environment().world_size, 1);
  JobPlace place = place_with("", "");
  EXPECT_EQ(place.rank, 3);
  EXPECT_EQ(place.world_size, 4);
  EXPECT_EQ(place.local_rank, 1);
  EXPECT_EQ(place.address, "127.0.0.1");
  EXPECT_EQ(place.port, 29555);
  EXPECT_EQ(place.file, "");
  place = place_with("REGATTA_MEETING_FILE", "/shared/meeting");
  EXPECT_EQ(place.file, "/shared/meeting");
  EXPECT_EQ(place.rank, 3);
  EXPECT_EQ(place_with("LOCAL_RANK", nullptr).local_rank, 0);
  EXPECT_EQ(place_with("RANK", "0").rank, 0);
  EXPECT_EQ(place_with("MASTER_PORT", "1").port, 1);
  EXPECT_EQ(place_with("MASTER_PORT", "65535").port, 65535);
}

TEST(JobPlace, WrongValuesAreNamed) {
  const auto refuse = [](const char* name, const char* value, const std::string& range) {
    require_error(Code::invalid_argument,
                  std::string(name) + " is '" + (value == nullptr ? "" : value) + "'; expected a number from " + range,
                  [&] { place_with(name, value); });
  };
  for (const char* value : {"-1", "4", "3x", "x", " 3", "0x3", "99999999999"}) refuse("RANK", value, "0 to 3");
  refuse("RANK", nullptr, "0 to 3");
  for (const char* value : {"0", "-4", "4 ", "1048577"}) refuse("WORLD_SIZE", value, "1 to 1048576");
  refuse("WORLD_SIZE", nullptr, "1 to 1048576");
  for (const char* value : {"-1", "65537", "one"}) refuse("LOCAL_RANK", value, "0 to 65536");
  for (const char* value : {"0", "65536", "port"}) refuse("MASTER_PORT", value, "1 to 65535");
  refuse("MASTER_PORT", nullptr, "1 to 65535");
  require_error(Code::invalid_argument, "MASTER_ADDR is not set", [] { place_with("MASTER_ADDR", nullptr); });
}

TEST(JobPlace, TheLocalRankComesFromTheLauncher) {
  const char* const names[] = {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "LOCAL_RANK"};
  for (const char* name : names) unsetenv(name);
  EXPECT_EQ(local_rank_of_job(), 0);
  for (int i = 2; i >= 0; --i) {
    setenv(names[i], std::to_string(5 + i).c_str(), 1);
    EXPECT_EQ(local_rank_of_job(), 5 + i) << names[i] << " comes before those after it";
  }
  for (const char* name : names) unsetenv(name);
}

int connected_to(int port) {
  const int one = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in there = {};
  there.sin_family = AF_INET;
  there.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  there.sin_port = htons(static_cast<std::uint16_t>(port));
  EXPECT_EQ(connect(one, reinterpret_cast<sockaddr*>(&there), sizeof there), 0);
  return one;
}

bool was_sent_away(int socket) {
  char byte;
  const bool away = recv(socket, &byte, 1, 0) <= 0;
  close(socket);
  return away;
}

/// One meeting per rank, made at the same time.
std::vector<std::unique_ptr<Meeting>> met(const std::vector<JobPlace>& places) {
  std::vector<std::unique_ptr<Meeting>> meetings(places.size());
  std::vector<std::jthread> threads;
  for (std::size_t r = 0; r < places.size(); ++r)
    threads.emplace_back([&, r] { meetings[r] = std::make_unique<Meeting>(places[r], generous); });
  threads.clear();
  return meetings;
}

std::vector<JobPlace> places_by_file(int ranks) {
  const std::string file = fresh_file();
  std::vector<JobPlace> places;
  for (int r = 0; r < ranks; ++r) places.push_back({r, ranks, r, "", 0, file});
  return places;
}

void require_gathers(std::vector<std::unique_ptr<Meeting>>& meetings) {
  std::vector<std::jthread> threads;
  for (auto& meeting : meetings)
    threads.emplace_back([&meeting, count = meetings.size()] {
      for (int round = 0; round < 3; ++round) {
        const auto text_of = [round](std::size_t r) {
          return std::string(r == 1 ? 0 : 50'000 * static_cast<std::size_t>(round) + r, static_cast<char>('a' + r)) +
                 std::string(1, '\0');
        };
        const auto rank = static_cast<std::size_t>(meeting->rank());
        const std::vector<std::string> all = meeting->gather(text_of(rank));
        ASSERT_EQ(all.size(), count);
        for (std::size_t r = 0; r < count; ++r) EXPECT_EQ(all[r], text_of(r)) << "rank " << r;
      }
    });
}

TEST(Meeting, GathersByRankOverAFile) {
  for (const int ranks : {1, 2, 4}) {
    const std::vector<JobPlace> places = places_by_file(ranks);
    auto meetings = met(places);
    EXPECT_NE(access(places[0].file.c_str(), F_OK), 0) << "the file is gone once all have met";
    for (int r = 0; r < ranks; ++r) {
      EXPECT_EQ(meetings[static_cast<std::size_t>(r)]->rank(), r);
      EXPECT_EQ(meetings[static_cast<std::size_t>(r)]->world_size(), ranks);
    }
    require_gathers(meetings);
  }
}

TEST(Meeting, GathersByRankOverAnAddress) {
  // A port that was free a moment ago.
  const int one = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in here = {};
  here.sin_family = AF_INET;
  socklen_t length = sizeof here;
  ASSERT_EQ(bind(one, reinterpret_cast<sockaddr*>(&here), sizeof here), 0);
  ASSERT_EQ(getsockname(one, reinterpret_cast<sockaddr*>(&here), &length), 0);
  close(one);
  const int port = ntohs(here.sin_port);
  auto meetings =
      met({{0, 3, 0, "127.0.0.1", port, ""}, {1, 3, 1, "127.0.0.1", port, ""}, {2, 3, 2, "127.0.0.1", port, ""}});
  require_gathers(meetings);
}

TEST(Meeting, SendsStrangersAway) {
  const std::vector<JobPlace> places = places_by_file(3);
  std::vector<std::unique_ptr<Meeting>> meetings(3);
  std::jthread first([&] { meetings[0] = std::make_unique<Meeting>(places[0], generous); });
  std::string host;
  int port = 0;
  await("rank 0 to listen", [&] { return static_cast<bool>(std::ifstream(places[0].file) >> host >> port); });
  constexpr int hello = 1;
  const auto knock = [&](int kind, int from, const std::string& text) {
    const int one = connected_to(port);
    Meeting::send_frame(one, kind, from, text);
    return one;
  };
  for (const int stranger : {knock(hello, 0, "3"), knock(hello, 3, "3"), knock(hello, -1, "3"), knock(hello, 1, "4"),
                             knock(hello, 1, ""), knock(hello + 1, 1, "3")})
    EXPECT_TRUE(was_sent_away(stranger));
  const int garbage = connected_to(port);
  const std::string request = "GET / HTTP/1.1\r\nHost: example\r\n\r\n";
  EXPECT_EQ(send(garbage, request.data(), request.size(), MSG_NOSIGNAL), std::ssize(request));
  EXPECT_TRUE(was_sent_away(garbage));
  meetings[1] = std::make_unique<Meeting>(places[1], generous);
  EXPECT_TRUE(was_sent_away(knock(hello, 1, "3"))) << "rank 1 is there already";
  meetings[2] = std::make_unique<Meeting>(places[2], generous);
  first.join();
  require_gathers(meetings);
}

TEST(Meeting, NamesWhoDidNotCome) {
  require_error(Code::timeout, "ranks 1, 2 did not come",
                [] { Meeting meeting(places_by_file(3)[0], std::chrono::milliseconds(100)); });
  require_error(Code::timeout, "rank 0 did not write ",
                [] { Meeting meeting(places_by_file(3)[1], std::chrono::milliseconds(100)); });
  const std::vector<JobPlace> places = places_by_file(4);
  std::jthread third([&] { EXPECT_NO_THROW(Meeting(places[2], generous)); });
  require_error(Code::timeout, "ranks 1, 3 did not come", [&] { Meeting meeting(places[0], std::chrono::seconds(3)); });
}

// ---- notices

class NoticesOfThree : public ::testing::Test {
 protected:
  void SetUp() override {
    std::vector<std::unique_ptr<Meeting>> meetings = met(places_by_file(3));
    for (int r = 0; r < 3; ++r) {
      std::vector<PeerRecord*> records;
      for (PeerRecord& record : records_[r]) records.push_back(&record);
      notices_[r] = std::make_unique<Notices>(std::move(meetings[static_cast<std::size_t>(r)]), records, counts_[r]);
    }
  }
  /// What rank `seer` knows of rank `rank` once it knows something.
  const PeerRecord& heard(int seer, int rank) {
    PeerRecord& record = records_[seer][rank];
    await("a notice of rank " + std::to_string(rank), [&] { return record.state == PeerRecord::failed; });
    return record;
  }
  bool has_left(int seer, int rank) { return records_[seer][rank].left != 0; }

  PeerRecord records_[3][3] = {};
  std::shared_ptr<CollectiveCounts> counts_[3] = {std::make_shared<CollectiveCounts>(3),
                                                  std::make_shared<CollectiveCounts>(3),
                                                  std::make_shared<CollectiveCounts>(3)};
  std::unique_ptr<Notices> notices_[3];
};

TEST_F(NoticesOfThree, FailuresReachAllWithTheirReason) {
  const std::string reasons[] = {"of rank 0", "disk full: /out 1 0 left", std::string(900, 'x')};
  for (int from : {1, 2, 0}) {
    notices_[from]->send_failure(reasons[from], from == 2 ? Code::aborted : Code::checkpoint, from == 2);
    for (int seer = 0; seer < 3; ++seer) {
      if (seer == from) continue;
      const PeerRecord& record = heard(seer, from);
      EXPECT_EQ(record.reason, reasons[from].substr(0, PeerRecord::reason_bytes - 1)) << from << " to " << seer;
      EXPECT_EQ(record.code, static_cast<int>(from == 2 ? Code::aborted : Code::checkpoint));
      EXPECT_EQ(record.secondary, from == 2);
      EXPECT_FALSE(has_left(seer, from));
    }
    EXPECT_EQ(records_[from][from].state, PeerRecord::running) << "its own record is its own affair";
  }
}

TEST_F(NoticesOfThree, FarewellsTellHowManyCollectivesTheirRankHadBegun) {
  for (int seer = 0; seer < 3; ++seer) EXPECT_FALSE(counts_[seer]->left_after(2, 0, 0));
  counts_[2]->join(0);
  counts_[2]->join(7);
  for (int i = 0; i < 12; ++i) counts_[2]->begin(7);
  notices_[2]->send_left();
  for (int seer : {0, 1}) {
    await("a farewell", [&] { return has_left(seer, 2); });
    EXPECT_TRUE(counts_[seer]->left_after(2, 0, 0));
    EXPECT_FALSE(counts_[seer]->left_after(2, 0, 1));
    EXPECT_TRUE(counts_[seer]->left_after(2, 7, 12));
    EXPECT_FALSE(counts_[seer]->left_after(2, 7, 13));
    EXPECT_FALSE(counts_[seer]->left_after(2, 1, 0));
    EXPECT_FALSE(counts_[seer]->left_after(1 - seer, 0, 0));
  }
}

TEST_F(NoticesOfThree, FarewellsReachAll) {
  for (int from : {2, 1, 0}) {
    notices_[from]->send_left();
    for (int seer = 0; seer < 3; ++seer)
      if (seer != from) await("a farewell", [&] { return has_left(seer, from); });
  }
  notices_[1].reset();  // after a farewell this is no failure
  notices_[2].reset();
  notices_[0].reset();
  for (const auto& of_seer : records_)
    for (const PeerRecord& record : of_seer) EXPECT_EQ(record.state, PeerRecord::running);
}

TEST_F(NoticesOfThree, AConnectionThatEndsWithoutAFarewellIsARankThatIsGone) {
  notices_[1].reset();
  for (int seer : {0, 2}) {
    const PeerRecord& record = heard(seer, 1);
    EXPECT_STREQ(record.reason, "its process is gone");
    EXPECT_EQ(record.code, static_cast<int>(Code::transport));
    EXPECT_EQ(record.secondary, 0);
  }
  await("rank 0 to know that it will not come back", [&] { return has_left(0, 1); });
  EXPECT_EQ(records_[0][2].state, PeerRecord::running);
  EXPECT_EQ(records_[2][0].state, PeerRecord::running);
}

}  // namespace
}  // namespace regatta::testing
