// Part of mpi_contract_test: failures of ranks as processes, what a dead transport leaves behind, islands of shared
// memory within one job, files and memory that are given back, messages longer than MPI's.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>

#include "runtime/transport/factory.h"
#include "runtime/transport/mpi/mapped_memory.h"
#include "runtime/transport/mpi/message_transport.h"
#include "tests/multiprocess/mpi_contract.h"
#include "tests/support/mpi_program.h"
#include "tests/transport/transport_contract.h"
#include "tests/transport/transport_failures.h"

namespace regatta::testing {
namespace {

int job_size() {
  int size = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

/// Runs the body on a transport that is dead afterwards; nobody goes on before all are done with it.
void run_to_the_end(TransportOptions options, const FailureCase& failure) {
  options.deadline = failure.deadline;
  const std::unique_ptr<Transport> t = make_transport("mpi", options);
  try {
    failure.body(*t, [] { MPI_Barrier(MPI_COMM_WORLD); });
  } catch (const std::exception& error) {
    // The others may wait for this rank anywhere.
    std::fprintf(stderr, "%s, rank %d: %s\n", failure.name, t->rank(), error.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  t->leave();
  MPI_Barrier(MPI_COMM_WORLD);
}

TEST(MpiFailures, AreTold) {
  if (job_size() < 2) GTEST_SKIP() << "one rank has nobody to tell; the launches with 2 to 4 ranks run it";
  for (const FailureCase& failure : failure_cases) run_to_the_end(mpi_options, failure);
  for (const FailureCase& failure : host_failure_cases)
    if (failure.deadline != short_deadline || job_size() == 3) run_to_the_end(mpi_options, failure);
}

// A message that nobody took is not taken for one of a later transport, whose calls have the same numbers; not even
// when there have been many.
TEST(MpiFailures, WhatADeadTransportSentIsNotDelivered) {
  if (job_size() < 2) GTEST_SKIP() << "one rank has nobody to send to; the launches with 2 to 4 ranks run it";
  for (int life = 1; life <= 70; ++life) {
    const std::unique_ptr<Transport> t = make_transport("mpi", mpi_options);
    std::vector<std::int64_t> give(static_cast<std::size_t>(job_size()), 0), take = give;
    if (t->rank() == 0) give[1] = 8;
    if (t->rank() == 1) take[0] = 8;
    std::vector<std::byte> send(t->rank() == 0 ? 8 : 0, static_cast<std::byte>(life)), receive(t->rank() == 1 ? 8 : 0);
    // Rank 1 seldom asks for it.
    const bool asks = life == 2 || life >= 66;
    if (t->rank() == 0 || asks) {
      EXPECT_NO_THROW(t->exchange(send, give, receive, take, "a few bytes").wait());
    }
    if (asks) {
      for (const std::byte b : receive) EXPECT_EQ(static_cast<int>(b), life);
    }
    MPI_Barrier(MPI_COMM_WORLD);
    t->abort("the end of a life");
    t->leave();
    MPI_Barrier(MPI_COMM_WORLD);
  }
}

TEST(MpiIslands, OfEverySizeWorkTogether) {
  if (job_size() < 2 || !mpi_options.shared_memory || mpi_options.shared_memory_ranks != 0)
    GTEST_SKIP() << "the launches over shared memory with 2 to 4 ranks run it, once each";
  for (int block = 1; block <= job_size(); ++block) {
    TransportOptions options = mpi_options;
    options.shared_memory_ranks = block;
    run_here(options, [&](Transport& t) {
      EXPECT_EQ(t.data_path(), block >= t.world_size() ? "shared memory" : "messages") << block;
      for (int first = 0; first < t.world_size(); ++first)
        for (int second = first + 1; second < t.world_size(); ++second) {
          std::vector<int> group{first, second};
          if (t.rank() != first && t.rank() != second) group = {t.rank()};
          const std::string path = t.split(group)->data_path();
          const bool together = group.front() / block == group.back() / block;
          EXPECT_EQ(path, together ? "shared memory" : "messages") << first << "," << second << " of " << block;
        }
      several_groups_work_in_flight(t);
      uneven_splits_are_followed_by_common_ones(t);
    });
    if (block > 1 && block < job_size())
      for (const FailureCase& failure : failure_cases) run_to_the_end(options, failure);
  }
}

std::int64_t open_files() {
  std::int64_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

TEST(MpiMemory, GroupsAndBuffersLeaveNoFilesOpen) {
  run_here(mpi_options, [](Transport& t) {
    std::vector<int> everyone = all_ranks(t);
    require_group_works(*t.split(everyone), 1);
    const std::int64_t before = open_files();
    for (int round = 0; round < 10; ++round) require_group_works(*t.split(everyone), round);
    const SymmetricBuffer held = t.allocate(1000);
    EXPECT_EQ(open_files(), before);
  });
}

// The sharing by itself; every process does this alone.
TEST(MappedSharing, IsSeenByWhoOpensItUntilItIsRetired) {
  const std::int64_t files = open_files();
  {
    MappedSharing sharing, other;
    MemorySharing::Piece piece = sharing.create(100'000);
    EXPECT_TRUE(std::all_of(piece.data, piece.data + 100'000, [](std::byte b) { return b == std::byte{0}; }));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(piece.data) % 64, 0u);
    EXPECT_EQ(open_files(), files + 1);
    MemorySharing::Piece opened = other.open(piece.handle, 100'000);
    EXPECT_NE(opened.data, piece.data);
    EXPECT_EQ(opened.handle, "");
    for (const std::int64_t at : {0, 4096, 99'999}) {
      piece.data[at] = std::byte{7};
      EXPECT_EQ(opened.data[at], std::byte{7}) << at;
      opened.data[at] = std::byte{9};
      EXPECT_EQ(piece.data[at], std::byte{9}) << at;
    }
    sharing.retire("no such handle");
    EXPECT_NO_THROW(other.open(piece.handle, 100'000));
    sharing.retire(piece.handle);
    EXPECT_EQ(open_files(), files);
    require_error(Code::transport, "cannot open the shared memory " + piece.handle,
                  [&] { other.open(piece.handle, 100'000); });
    piece = {};
    EXPECT_EQ(opened.data[99'999], std::byte{9}) << "it lives until the last lets go";
    require_error(Code::device, "cannot allocate 1152921504606846976 bytes of shared memory: ", [&] {
      sharing.create(std::int64_t{1} << 60);
    });
    EXPECT_EQ(open_files(), files) << "what could not be had leaves nothing behind";
    sharing.create(10);  // not retired
  }
  EXPECT_EQ(open_files(), files);
}

// Of long data, ranks 0 and 1 have each other's first tiles, and wait for more until rank 2 has sent something.
TEST(MpiMessages, ASilentRankIsNamedWithoutThoseThatWaitForIt) {
  if (mpi_options.shared_memory || job_size() != 3)
    GTEST_SKIP() << "two wait for a third, tile by tile; the launch messages_3_ranks runs it";
  const auto body = [](Transport& t, const Meet& meet) {
    constexpr std::int64_t chunk = 16 << 20;
    const std::vector<std::int64_t> bounds{0, chunk, 2 * chunk, 3 * chunk};
    const SymmetricBuffer buffer = t.allocate(3 * chunk);
    meet();
    if (t.rank() != 2) {
      std::string said;
      try {
        t.reduce_scatter(
             buffer, 0, bounds, [](auto, auto, auto) {}, "gradients")
            .wait();
      } catch (const Error& error) {
        said = error.what();
      }
      require(said.ends_with(": rank 2 did not arrive"), "expected rank 2 alone, got: " + said);
    }
    meet();
  };
  run_to_the_end(mpi_options, {"a silent rank", body, short_deadline});
}

TEST(MpiMessages, LongerThanMpiTakesGoInParts) {
  if (mpi_options.shared_memory || job_size() != 2)
    GTEST_SKIP() << "hundreds of MiB travel; the launch messages_2_ranks runs it";
  run_here(mpi_options, [](Transport& t) {
    for (const std::int64_t more : {0, 1, 70'001}) {
      const std::int64_t bytes = MessageTransport::longest_message + more;
      // From rank 0 to rank 1; a few bytes back.
      const std::int64_t counts[2][2] = {{0, bytes}, {3, 0}};
      std::vector<std::byte> send(static_cast<std::size_t>(t.rank() == 0 ? bytes : 3)),
          receive(static_cast<std::size_t>(t.rank() == 1 ? bytes : 3), std::byte{0xee});
      const auto value = [](std::int64_t i) { return static_cast<std::byte>((i >> 16) + i); };
      for (std::int64_t i = 0; i < std::ssize(send); i += i + 4096 < std::ssize(send) ? 4096 : 1)
        send[static_cast<std::size_t>(i)] = value(i);
      const std::vector<std::int64_t> received =
          t.rank() == 1 ? std::vector<std::int64_t>{bytes, 0} : std::vector<std::int64_t>{0, 3};
      t.exchange(send, counts[t.rank()], receive, received, "long").wait();
      for (std::int64_t i = 0; i < std::ssize(receive); i += i + 4096 < std::ssize(receive) ? 4096 : 1)
        ASSERT_EQ(receive[static_cast<std::size_t>(i)], value(i)) << i << " of " << receive.size();
    }
  });
}

}  // namespace
}  // namespace regatta::testing
