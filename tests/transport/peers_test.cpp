// What a rank knows of the others: records in order and at their edges, processes that end, what is said of whom.

#include "runtime/transport/peers.h"

#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "tests/transport/transport_checks.h"

namespace regatta::testing {
namespace {

TEST(PeerRecord, KeepsTheFirstReasonAsFarAsThereIsRoom) {
  constexpr std::size_t room = PeerRecord::reason_bytes - 1;
  for (const std::size_t length : {std::size_t{0}, std::size_t{1}, room - 1, room, room + 1, 3 * room}) {
    struct {
      PeerRecord record{};
      char behind[64] = {};
    } memory;
    const std::string reason(length, 'r');
    EXPECT_TRUE(memory.record.fail(reason, Code::device, true));
    EXPECT_EQ(memory.record.reason, reason.substr(0, room));
    EXPECT_EQ(memory.record.state, PeerRecord::failed);
    EXPECT_EQ(memory.record.code, static_cast<int>(Code::device));
    EXPECT_EQ(memory.record.secondary, 1);
    EXPECT_FALSE(memory.record.fail("later", Code::checkpoint, false));
    EXPECT_EQ(memory.record.code, static_cast<int>(Code::device));
    EXPECT_EQ(memory.record.secondary, 1);
    for (const char c : memory.behind) EXPECT_EQ(c, 0);
  }
}

/// A child that has ended, not waited for yet.
class EndedChild {
 public:
  EndedChild() {
    int ends[2] = {};
    EXPECT_EQ(pipe(ends), 0);
    pid_ = fork();
    if (pid_ == 0) {
      const ProcessId self = ProcessId::self();
      _exit(write(ends[1], &self, sizeof self) == sizeof self ? 0 : 1);
    }
    EXPECT_EQ(read(ends[0], &id_, sizeof id_), static_cast<ssize_t>(sizeof id_));
    close(ends[0]);
    close(ends[1]);
    siginfo_t info{};
    waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT);
  }
  ~EndedChild() { reap(); }
  const ProcessId& id() const { return id_; }
  pid_t pid() const { return pid_; }
  void reap() {
    if (!reaped_) waitpid(pid_, nullptr, 0);
    reaped_ = true;
  }

 private:
  pid_t pid_ = 0;
  ProcessId id_;
  bool reaped_ = false;
};

TEST(ProcessId, KnowsWhoHasEnded) {
  char name[16] = {};
  prctl(PR_GET_NAME, name);
  const ProcessId self = ProcessId::self();
  EXPECT_EQ(self.pid, getpid());
  EXPECT_GT(self.started, 0u);
  EXPECT_FALSE(self.ended());
  // The system's own text about a process holds its name, whatever that is.
  for (const char* awkward : {"a b c", "x) Z 1 (y", ") ) X 7"}) {
    if (getpid() == static_cast<pid_t>(gettid())) prctl(PR_SET_NAME, awkward);
    EXPECT_FALSE(self.ended()) << awkward;
    EXPECT_EQ(ProcessId::self().started, self.started) << awkward;
  }
  prctl(PR_SET_NAME, name);
  EXPECT_FALSE((ProcessId{0, 0}.ended())) << "one that cannot be watched";
  EXPECT_TRUE((ProcessId{self.pid, self.started - 1}.ended())) << "an earlier one with the same number";
  EXPECT_TRUE((ProcessId{self.pid, self.started + 1}.ended())) << "another one with the same number";
  EndedChild child;
  EXPECT_EQ(child.id().pid, child.pid());
  EXPECT_TRUE(child.id().ended()) << "not waited for yet";
  child.reap();
  EXPECT_TRUE(child.id().ended()) << "waited for";
}

class SeenByOne : public ::testing::Test {
 protected:
  static constexpr int ranks = 4, mine = 1;
  void SetUp() override {
    for (PeerRecord& record : records_) pointers_.push_back(&record);
    processes_.assign(ranks, ProcessId::self());
  }
  Peers peers() { return {mine, pointers_, {}, processes_, &stop_}; }
  std::string said(const Peers& peers) {
    try {
      peers.check("all_gather", "bucket 3");
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::aborted);
      return error.what();
    }
    return "";
  }

  PeerRecord records_[ranks] = {};
  std::vector<PeerRecord*> pointers_;
  std::vector<ProcessId> processes_;
  std::atomic<bool> stop_ = false;
};

TEST_F(SeenByOne, NothingIsWrongAtFirst) {
  const Peers them = peers();
  EXPECT_FALSE(them.troubled());
  EXPECT_EQ(said(them), "");
  for (int r = 0; r < ranks; ++r) {
    EXPECT_EQ(them.ended(r), "");
    EXPECT_EQ(them.status(r).state, PeerStatus::State::running);
    EXPECT_FALSE(them.status(r).closed);
  }
}

TEST_F(SeenByOne, EachOfManyFailuresHasItsPlace) {
  Peers them = peers();
  records_[3].fail("three", Code::device, false);
  EXPECT_TRUE(them.troubled());
  EXPECT_EQ(said(them), "rank 3 stopped: three");
  records_[0].fail("rank 3 stopped: three", Code::aborted, true);
  EXPECT_EQ(said(them), "rank 3 stopped: three");
  records_[2].fail("two", Code::checkpoint, false);
  EXPECT_EQ(said(them), "rank 2 stopped: two");
  them.fail("own", Code::timeout, false);
  EXPECT_EQ(said(them), "this rank stopped: own");
  stop_ = true;
  EXPECT_EQ(said(them), "this rank stopped: own") << "a failure tells more than the stop flag";
  const Code codes[] = {Code::aborted, Code::timeout, Code::checkpoint, Code::device};
  const char* const reasons[] = {"rank 3 stopped: three", "own", "two", "three"};
  for (int r = 0; r < ranks; ++r) {
    const PeerStatus status = them.status(r);
    EXPECT_EQ(status.state, PeerStatus::State::failed);
    EXPECT_EQ(status.code, codes[r]);
    EXPECT_EQ(status.reason, reasons[r]);
    EXPECT_EQ(status.secondary, r == 0);
    EXPECT_FALSE(status.closed);
  }
}

TEST_F(SeenByOne, TheStopFlagAndGivingUpNameTheCollective) {
  Peers them = peers();
  stop_ = true;
  EXPECT_TRUE(them.troubled());
  EXPECT_EQ(said(them), "the job was told to stop; all_gather 'bucket 3' was given up");
  stop_ = false;
  EXPECT_FALSE(them.troubled());
  EXPECT_FALSE(them.gave_up());
  them.give_up();
  EXPECT_TRUE(them.troubled());
  EXPECT_TRUE(them.gave_up());
  EXPECT_EQ(said(them), "all_gather 'bucket 3' was given up by this rank");
  EXPECT_EQ(them.status(mine).state, PeerStatus::State::running) << "the others are not told";
}

TEST_F(SeenByOne, WhoLeftAndWhoIsGone) {
  EndedChild child;
  processes_[2] = child.id();
  processes_[3] = child.id();
  Peers them = peers();
  const std::string gone = " (pid " + std::to_string(child.pid()) + ") is gone";
  records_[0].left = 1;
  EXPECT_EQ(them.ended(0), "rank 0 has left the job");
  EXPECT_EQ(them.status(0).state, PeerStatus::State::left);
  EXPECT_TRUE(them.status(0).closed);
  EXPECT_EQ(them.ended(2), "rank 2" + gone);
  EXPECT_EQ(them.status(2).state, PeerStatus::State::gone);
  EXPECT_EQ(them.status(2).code, Code::transport);
  EXPECT_EQ(them.status(2).reason, "rank 2" + gone);
  EXPECT_TRUE(them.status(2).closed);
  EXPECT_FALSE(them.troubled()) << "a collective may still be completed without them";
  // One that failed and then went away has failed; one that left properly has left, whatever its process did then.
  records_[3].fail("three", Code::device, false);
  EXPECT_EQ(them.status(3).state, PeerStatus::State::failed);
  EXPECT_EQ(them.status(3).reason, "three");
  EXPECT_TRUE(them.status(3).closed);
  records_[2].left = 1;
  EXPECT_EQ(them.status(2).state, PeerStatus::State::left);
  EXPECT_EQ(them.ended(2), "rank 2 has left the job");
  them.leave();
  EXPECT_TRUE(them.status(mine).closed);
}

/// Counts what is sent to ranks that share no memory.
struct CountingLink final : PeerLink {
  void send_failure(const std::string& reason, Code code, bool secondary) noexcept override {
    sent += "failure " + reason + " " + std::to_string(static_cast<int>(code)) + (secondary ? " secondary;" : ";");
  }
  void send_left() noexcept override { sent += "left;"; }
  void poll() noexcept override { ++polls; }
  std::string sent;
  int polls = 0;
};

TEST_F(SeenByOne, DistantRanksAreToldOnce) {
  Peers them = peers();
  const auto link = std::make_shared<CountingLink>();
  them.set_link(link);
  them.fail("own", Code::device, true);
  them.fail("again", Code::timeout, false);
  them.leave();
  them.leave();
  EXPECT_EQ(link->sent, "failure own " + std::to_string(static_cast<int>(Code::device)) + " secondary;left;");
  link->polls = 0;
  EXPECT_TRUE(them.troubled());
  EXPECT_EQ(link->polls, 1) << "what has arrived counts";
  said(them);
  EXPECT_EQ(link->polls, 2);
}

}  // namespace
}  // namespace regatta::testing
