// A disk that fails at any point of a save costs that save and no other: the sentence names the file, the checkpoint
// before it stays whole, and the next save cleans up.

#include <gtest/gtest.h>

#include <cerrno>

#include "runtime/error.h"
#include "tests/checkpoint/failing_calls.h"
#include "tests/checkpoint/small_job.h"
#include "tests/support/refusal.h"

namespace regatta::testing {
namespace {

namespace fs = std::filesystem;
using checkpoint::SaveSettings;

std::string error_of(const std::function<void()>& body) { return regatta::testing::refusal(body, Code::checkpoint); }

class SaveFaults : public ::testing::Test {
 protected:
  void SetUp() override { first_ = job_.run({"dp=2"}, "", 1, SaveSettings{.folder = folder_.path()}); }

  SaveSettings with(checkpoint::SystemCalls& calls) const {
    return {.folder = folder_.path(), .deadline_seconds = 120, .calls = &calls};
  }
  /// Step 1 is there as it was saved; step 2 is there whole or not at all.
  void expect_sound() {
    checkpoint::Checkpoint(folder_.at("step-00000001")).verify();
    EXPECT_EQ(job_.run({"dp=1"}, folder_.at("step-00000001"), 1), first_);
    if (fs::exists(folder_.at("step-00000002"))) checkpoint::Checkpoint(folder_.at("step-00000002")).verify();
  }

  TestFolder folder_;
  SmallJob job_;
  SmallJob::Whole first_;
};

// Each call of a save in turn, until a save makes fewer calls than that.
TEST_F(SaveFaults, AnyCallMayFail) {
  struct Case {
    FailingCalls::Kind kind;
    int number;
    const char* words;
  };
  int failures = 0;
  for (const Case& each : {Case{FailingCalls::Kind::write, EIO, "Input/output error"},
                           Case{FailingCalls::Kind::short_write, ENOSPC, "No space left"},
                           Case{FailingCalls::Kind::fsync, EIO, "Input/output error"},
                           Case{FailingCalls::Kind::rename, EIO, "Input/output error"}}) {
    for (int at = 0;; ++at) {
      ASSERT_LT(at, 200);
      FailingCalls calls(each.kind, at, each.number);
      const std::string sentence = error_of([&] { job_.run({"dp=2"}, "", 2, with(calls)); });
      if (!calls.failed()) {
        EXPECT_EQ(sentence, "");
        break;
      }
      ++failures;
      EXPECT_NE(sentence.find(each.words), std::string::npos) << "call " << at << ": '" << sentence << "'";
      EXPECT_NE(sentence.find(folder_.path()), std::string::npos) << sentence;
      expect_sound();
      fs::remove_all(folder_.at("step-00000002"));
    }
    // The save that went well took away what the others left.
    EXPECT_EQ(names_in(folder_.path()), (std::vector<std::string>{"latest", "step-00000001", "step-00000002"}));
    fs::remove_all(folder_.at("step-00000002"));
  }
  EXPECT_GT(failures, 40);
}

TEST_F(SaveFaults, NoRoomIsSaidBeforeAnythingIsWritten) {
  struct Full : checkpoint::SystemCalls {
    std::int64_t free_bytes(const std::string&) override { return 5000; }
  } full;
  const std::string sentence = error_of([&] { job_.run({"dp=2"}, "", 2, with(full)); });
  EXPECT_NE(sentence.find("5000"), std::string::npos) << sentence;
  EXPECT_NE(sentence.find("step 2"), std::string::npos) << sentence;
  EXPECT_EQ(names_in(folder_.path()), (std::vector<std::string>{"latest", "step-00000001"}));
  expect_sound();
}

TEST_F(SaveFaults, AFolderThatCannotBeIsRefusedByName) {
  const std::string file = folder_.at("latest") + "/below";
  const std::string sentence = error_of([&] { job_.run({"dp=2"}, "", 2, SaveSettings{.folder = file}); });
  EXPECT_NE(sentence.find(file), std::string::npos) << sentence;
  EXPECT_EQ(error_of([&] { job_.run({"dp=2"}, "", 2, SaveSettings{.folder = "/proc/checkpoints"}); }).find("/proc"),
            0U);
}

TEST_F(SaveFaults, OldOnesGoAsAsked) {
  SmallJob job;
  for (int step = 2; step <= 7; ++step)
    job.run({"dp=2"}, folder_.at(step == 2 ? "step-00000001" : "step-0000000" + std::to_string(step - 1)), step,
            SaveSettings{.folder = folder_.path(), .keep_last = 2, .keep_every = 4});
  EXPECT_EQ(names_in(folder_.path()),
            (std::vector<std::string>{"latest", "step-00000004", "step-00000006", "step-00000007"}));
}

}  // namespace
}  // namespace regatta::testing
