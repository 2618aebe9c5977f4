#include "runtime/device/thread_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "runtime/error.h"

namespace regatta {
namespace {

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (const int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (int round = 0; round < 300; ++round) {
      const std::int64_t count = round % 17;
      std::vector<int> runs(static_cast<std::size_t>(count));
      std::atomic<bool> bad_thread = false;
      pool.run(count, [&](std::int64_t task, int thread) {
        ++runs[task];
        if (thread < 0 || thread >= threads) bad_thread = true;
      });
      EXPECT_EQ(runs, std::vector<int>(runs.size(), 1));
      EXPECT_FALSE(bad_thread);
    }
  }
}

TEST(ThreadPool, EveryThreadGetsTasksInAscendingOrder) {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 50; ++round) {
      std::vector<std::vector<std::int64_t>> got(static_cast<std::size_t>(threads));
      pool.run(200, [&](std::int64_t task, int thread) { got[thread].push_back(task); });
      std::size_t all = 0;
      for (const std::vector<std::int64_t>& tasks : got) {
        EXPECT_TRUE(std::is_sorted(tasks.begin(), tasks.end()));
        all += tasks.size();
      }
      EXPECT_EQ(all, 200U);
    }
  }
}

TEST(ThreadPool, WakesWorkersThatSleep) {
  ThreadPool pool(3);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::atomic<int> done = 0;
    pool.run(20, [&](std::int64_t, int) { ++done; });
    EXPECT_EQ(done, 20);
  }
}

TEST(ThreadPool, EndsWithoutAnyRun) { ThreadPool pool(4); }

TEST(ThreadPool, ScratchIsAlignedGrowsAndStays) {
  ThreadPool pool(2);
  for (int thread = 0; thread < 2; ++thread) {
    const auto small = pool.scratch(thread, 100);
    EXPECT_EQ(small.size(), 100U);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(small.data()) % 64, 0U);
    std::memset(small.data(), 7, small.size());
    EXPECT_EQ(pool.scratch(thread, 60).data(), small.data());
    EXPECT_EQ(pool.scratch(thread, 60).size(), 60U);
    EXPECT_EQ(pool.scratch(thread, 100)[99], std::byte{7});  // what is large enough keeps what is in it
    const auto large = pool.scratch(thread, 1 << 20);
    std::memset(large.data(), 7, large.size());
  }
  EXPECT_NE(pool.scratch(0, 10).data(), pool.scratch(1, 10).data());
}

TEST(ThreadPool, RefusesNoThreads) { EXPECT_THROW(ThreadPool(0), Error); }

}  // namespace
}  // namespace regatta
