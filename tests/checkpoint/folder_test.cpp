// The folder of checkpoints: which names count, which stay, what is cleaned up; and the calls that put a file on disk.

#include "runtime/checkpoint/checkpoint_folder.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <set>

#include "runtime/error.h"
#include "tests/checkpoint/test_folder.h"
#include "tests/support/refusal.h"

namespace regatta::checkpoint {
namespace {

namespace fs = std::filesystem;
using regatta::testing::bytes_in;
using regatta::testing::names_in;
using regatta::testing::put;
using regatta::testing::TestFolder;

std::string error_of(const std::function<void()>& body) { return regatta::testing::refusal(body, Code::checkpoint); }

TEST(CheckpointFolder, NamesHaveEightDigitsOrMore) {
  EXPECT_EQ(folder_name(0), "step-00000000");
  EXPECT_EQ(folder_name(7), "step-00000007");
  EXPECT_EQ(folder_name(12345678), "step-12345678");
  EXPECT_EQ(folder_name(123456789012), "step-123456789012");
}

TEST(CheckpointFolder, ListsByNumberWhatHasSuchAName) {
  const TestFolder folder;
  const std::vector<std::int64_t> steps{99999999, 100000000, 3, 20, 100, 1234567890123};
  for (const std::int64_t step : steps) fs::create_directory(folder.at(folder_name(step)));
  for (const char* other : {"step-1", "step-000000001", "step-0000000x", "step-00000004.part", "step-00000005x",
                            "step--0000006", "step-+0000007", "step- 0000008", "Step-00000009", "step_00000010",
                            "xstep-00000011", "step-", "step-99999999999999999999", "other"})
    fs::create_directory(folder.at(other));
  put(folder.at("step-00000012"), "a file");
  put(folder.at("latest"), "step-00000003\n");
  fs::create_symlink(folder.at("step-00000013"), folder.at("step-00000013"));  // leads nowhere
  std::vector<std::int64_t> found;
  for (const Listed& each : list_checkpoints(folder.path())) {
    found.push_back(each.step);
    EXPECT_EQ(each.path, folder.at(folder_name(each.step)));
  }
  EXPECT_EQ(found, (std::vector<std::int64_t>{3, 20, 100, 99999999, 100000000, 1234567890123}));
  EXPECT_TRUE(list_checkpoints(folder.at("absent")).empty());
  EXPECT_TRUE(list_checkpoints(folder.at("latest")).empty());
}

TEST(CheckpointFolder, ThoseThatAreNotToBeKeptGo) {
  std::mt19937_64 random(11);
  for (int round = 0; round < 60; ++round) {
    const TestFolder folder;
    std::set<std::int64_t> steps;
    const int count = static_cast<int>(random() % 6) + 1;
    while (static_cast<int>(steps.size()) < count) steps.insert(static_cast<std::int64_t>(random() % 13));
    for (const std::int64_t step : steps) {
      fs::create_directory(folder.at(folder_name(step)));
      put(folder.at(folder_name(step)) + "/manifest.json", "");
    }
    const int keep_last = static_cast<int>(random() % 8);
    const auto keep_every = static_cast<std::int64_t>(random() % 5);
    const std::int64_t saved = *std::next(steps.begin(), static_cast<std::ptrdiff_t>(random() % steps.size()));
    prune(system_calls(), folder.path(), saved, keep_last, keep_every);
    std::vector<std::string> expected;
    for (const std::int64_t step : steps) {
      std::int64_t newer = 0;  // up to the one just saved; later ones are none of this job's
      for (const std::int64_t other : steps) newer += other > step && other <= saved ? 1 : 0;
      const bool stays =
          keep_last == 0 || step > saved || newer < keep_last || (keep_every > 0 && step % keep_every == 0);
      if (stays) expected.push_back(folder_name(step));
    }
    EXPECT_EQ(names_in(folder.path()), expected)
        << "saved " << saved << ", last " << keep_last << ", every " << keep_every;
  }
}

TEST(CheckpointFolder, LeftoversAreFoldersAndFilesThatEndInPart) {
  const TestFolder folder;
  for (const char* name :
       {"step-00000001.part/below", "step-00000002", "x.part", "apart/y.part", "part", "step-00000003.replaced.part"})
    fs::create_directories(folder.at(name));
  put(folder.at("latest.part"), "");
  put(folder.at("latest"), "step-00000002\n");
  put(folder.at("step-00000001.part/below/file"), "");
  remove_leftovers(folder.path());
  EXPECT_EQ(names_in(folder.path()), (std::vector<std::string>{"apart", "latest", "part", "step-00000002"}));
  EXPECT_EQ(names_in(folder.at("apart")), (std::vector<std::string>{"y.part"}));
  remove_leftovers(folder.at("absent"));
}

TEST(CheckpointFolder, LatestIsALineWithTheName) {
  const TestFolder folder;
  for (const std::int64_t step : {100000000, 7}) {  // a shorter text after a longer one
    point_at(system_calls(), folder.path(), step);
    EXPECT_EQ(bytes_in(folder.at("latest")), folder_name(step) + "\n");
    EXPECT_EQ(names_in(folder.path()), (std::vector<std::string>{"latest"}));
  }
}

TEST(CheckpointFolder, MadeWithAllAboveItAndOnDisk) {
  struct Recorded : SystemCalls {
    std::vector<std::string> flushed;
    int fsync(int descriptor) override {
      flushed.push_back(fs::read_symlink("/proc/self/fd/" + std::to_string(descriptor)).string());
      return 0;
    }
  } calls;
  const TestFolder folder;
  make_folder(calls, folder.at("a/b"));
  EXPECT_TRUE(fs::is_directory(folder.at("a/b")));
  EXPECT_EQ(std::set<std::string>(calls.flushed.begin(), calls.flushed.end()),
            (std::set<std::string>{fs::canonical(folder.path()).string(), fs::canonical(folder.at("a")).string()}));
  make_folder(calls, folder.at("a/b"));  // nothing new, nothing to do
  EXPECT_EQ(calls.flushed.size(), 2U);
  put(folder.at("file"), "");
  EXPECT_NE(error_of([&] { make_folder(calls, folder.at("file/below")); }).find(folder.at("file/below")),
            std::string::npos);
}

/// Writes as much as `most` at a time, and is interrupted before each.
struct Reluctant : SystemCalls {
  explicit Reluctant(std::size_t bytes) : most(bytes) {}
  ssize_t write(int descriptor, const void* data, std::size_t bytes) override {
    if (!std::exchange(interrupted, !interrupted)) {
      errno = EINTR;
      return -1;
    }
    return SystemCalls::write(descriptor, data, std::min(bytes, most));
  }
  std::size_t most;
  bool interrupted = false;
};

TEST(SystemCallsOfASave, EveryByteIsWrittenInHoweverManyCalls) {
  const TestFolder folder;
  const std::string path = folder.at("file");
  put(path, std::string(1000, 'x'));  // what was there is replaced
  const std::vector<std::string> texts{"a", "", "of some length", "end"};
  std::vector<std::span<const std::byte>> pieces;
  for (const std::string& text : texts) pieces.push_back(std::as_bytes(std::span(text)));
  for (const std::size_t most : {1, 2, 5, 100}) {
    Reluctant calls(most);
    write_file(calls, path, pieces);
    EXPECT_EQ(bytes_in(path), "aof some lengthend") << most;
  }
  write_file(system_calls(), path, "");
  EXPECT_EQ(bytes_in(path), "");
}

TEST(SystemCallsOfASave, FailuresAreSaidWithThePath) {
  const TestFolder folder;
  struct Nothing : SystemCalls {
    ssize_t write(int, const void*, std::size_t) override { return 0; }
  } nothing;
  std::string said = error_of([&] { write_file(nothing, folder.at("file"), "text"); });
  EXPECT_NE(said.find(folder.at("file")), std::string::npos) << said;
  EXPECT_NE(said.find(std::strerror(ENOSPC)), std::string::npos) << said;
  struct NoFlush : SystemCalls {
    int number = EINVAL;
    int fsync(int) override {
      errno = number;
      return -1;
    }
  } calls;
  flush_folder(calls, folder.path());  // a file system without this flush needs none
  for (const int number : {EIO, ENOSPC, EINTR}) {
    calls.number = number;
    said = error_of([&] { flush_folder(calls, folder.path()); });
    EXPECT_NE(said.find(folder.path()), std::string::npos) << said;
    EXPECT_NE(said.find(std::strerror(number)), std::string::npos) << said;
  }
  for (const int number : {EINVAL, EIO}) {  // a file has no such excuse
    calls.number = number;
    said = error_of([&] { write_file(calls, folder.at("file"), "text"); });
    EXPECT_NE(said.find(std::strerror(number)), std::string::npos) << said;
  }
  said = error_of([&] { write_file(system_calls(), folder.at("absent/file"), "text"); });
  EXPECT_NE(said.find(folder.at("absent/file")), std::string::npos) << said;
  said = error_of([&] { flush_folder(system_calls(), folder.at("absent")); });
  EXPECT_NE(said.find(folder.at("absent")), std::string::npos) << said;
  said = error_of([&] { rename(system_calls(), folder.at("absent"), folder.at("b")); });
  EXPECT_NE(said.find(folder.at("absent") + " cannot be renamed to " + folder.at("b")), std::string::npos) << said;
}

TEST(SystemCallsOfASave, RoomIsWhatAnOrdinaryUserHas) {
  // A disk often has some that is reserved for root, far more than others may write meanwhile.
  for (const std::string& place : {std::string("/"), fs::temp_directory_path().string()}) {
    struct statvfs facts {};
    ASSERT_EQ(::statvfs(place.c_str(), &facts), 0);
    const double expected = static_cast<double>(facts.f_bavail) * static_cast<double>(facts.f_frsize);
    const double reserved = static_cast<double>(facts.f_bfree - facts.f_bavail) * static_cast<double>(facts.f_frsize);
    EXPECT_NEAR(static_cast<double>(system_calls().free_bytes(place)), expected, std::max(reserved / 2, expected / 2));
  }
  EXPECT_EQ(system_calls().free_bytes("/absent/folder"), -1);
}

}  // namespace
}  // namespace regatta::checkpoint
