// The NCCL transport's own code over a stand-in for the library (tests/support/fake_nccl): the contract of all
// transports, failures, both ways to add up, and the engine on an emulated device with the bits of `local`. What only
// GPUs and the real library can show is in bench/gpu.

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <thread>

#include "cli/replay/run.h"
#include "runtime/transport/nccl/meeting.h"
#include "runtime/transport/nccl/nccl_transport.h"
#include "tests/transport/transport_contract.h"
#include "tests/transport/transport_failures.h"
#include "tests/support/emulated_device.h"
#include "tests/support/job_run.h"
#include "tests/support/late_device.h"
#include "tests/support/recorded_case.h"
#include "tests/support/scalar_kernels.h"
#include "tests/support/spmd.h"
#include "tests/support/usual_job.h"

namespace regatta {

// In place of launcher.cpp: ranks are threads, whose environment is one.
thread_local JobPlace place_of_this_rank;
JobPlace job_place() { return place_of_this_rank; }

namespace testing {
namespace {

std::string meeting_file() {
  static int count = 0;
  return ::testing::TempDir() + "regatta_meeting_" + std::to_string(getpid()) + "_" + std::to_string(++count);
}

TransportOptions nccl_options() {
  TransportOptions options = test_transport_options();
  options.device = emulated_device(true);
  return options;
}

/// As run_ranks; the sentence of every rank's error. Without a device in the options, each rank makes one. `left` is
/// called once a rank's transport is gone.
std::vector<std::string> run_nccl_ranks(int ranks, const TransportOptions& options,
                                        const std::function<void(Transport&)>& body,
                                        const std::function<std::shared_ptr<Device>()>& make_device = {},
                                        const std::function<void(int)>& left = {}) {
  const std::string file = meeting_file();
  std::vector<std::string> sentences(static_cast<std::size_t>(ranks));
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r)
    threads.emplace_back([&, r] {
      place_of_this_rank = {r, ranks, r, "", 0, file};
      try {
        TransportOptions own = options;
        if (!own.device) own.device = make_device();
        const std::unique_ptr<Transport> transport = make_nccl_transport(own);
        try {
          body(*transport);
        } catch (const Error& error) {
          transport->abort(error.what(), error.code(), error.code() == Code::aborted);
          throw;
        } catch (const std::exception& error) {
          transport->abort(error.what(), Code::transport);
          throw;
        }
      } catch (const std::exception& error) {
        sentences[static_cast<std::size_t>(r)] = error.what();
      }
      if (left) left(r);
    });
  for (std::thread& thread : threads) thread.join();
  return sentences;
}

void expect_good(const std::vector<std::string>& sentences) {
  for (std::size_t r = 0; r < sentences.size(); ++r) EXPECT_EQ(sentences[r], "") << "rank " << r;
}

class NcclTransport : public ::testing::TestWithParam<ContractCase> {};
TEST_P(NcclTransport, Keeps) {
  for (const int ranks : {1, 2, 3, 4}) expect_good(run_nccl_ranks(ranks, nccl_options(), GetParam().body));
}
INSTANTIATE_TEST_SUITE_P(Contract, NcclTransport, ::testing::ValuesIn(contract_cases),
                         [](const auto& info) { return std::string(info.param.name); });

class NcclFailure : public ::testing::TestWithParam<FailureCase> {};
TEST_P(NcclFailure, IsTold) {
  TransportOptions options = nccl_options();
  options.deadline = GetParam().deadline;
  for (const int ranks : {2, 3}) {
    ThreadsMeet meeting(ranks);
    expect_good(run_nccl_ranks(ranks, options, [&](Transport& t) { meeting.run(t, GetParam().body); }));
  }
}
INSTANTIATE_TEST_SUITE_P(Every, NcclFailure, ::testing::ValuesIn(failure_cases),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(NcclFailures, ARankThatDoesNotComeIsTold) {
  TransportOptions options = nccl_options();
  options.deadline = short_deadline;
  const auto sentences = run_nccl_ranks(2, options, [](Transport& t) {
    const SymmetricBuffer buffer = t.allocate(128);
    const std::vector<std::int64_t> bounds{0, 64, 128};
    if (t.rank() == 1) return await_failures(t, {0});
    t.all_gather(buffer, 0, bounds, "parameters of bucket 7").wait();
  });
  EXPECT_EQ(sentences[0],
            "all_gather 'parameters of bucket 7' did not complete within the deadline of 3 s: rank 1 did not arrive");
  EXPECT_EQ(sentences[1], "");
}

TEST(NcclFailures, AnAbortReachesTheOthers) {
  const auto sentences = run_nccl_ranks(3, nccl_options(), [](Transport& t) {
    if (t.rank() == 1) throw Error(Code::device, "the disk of rank 1 is full");
    t.barrier("before the step");
  });
  EXPECT_EQ(sentences[1], "the disk of rank 1 is full");
  for (const int r : {0, 2})
    EXPECT_NE(sentences[r].find("rank 1 stopped: the disk of rank 1 is full"), std::string::npos) << sentences[r];
}

// A rank may be done, and gone, while others of the same collective still wait for one another.
TEST(NcclFailures, ARankThatLeftAfterItsPartIsNotMissed) {
  std::atomic<bool> first_has_left = false;
  const auto exchange = [](Transport& t) {  // rank 2 hears from both others, who hear from nobody
    std::vector<std::byte> send(t.rank() == 2 ? 0 : 8), receive(t.rank() == 2 ? 16 : 0);
    const std::vector<std::int64_t> out{0, 0, t.rank() == 2 ? 0 : 8};
    const std::int64_t in = t.rank() == 2 ? 8 : 0;
    t.exchange(send, out, receive, std::vector<std::int64_t>{in, in, 0}, "lines").wait();
  };
  expect_good(run_nccl_ranks(
      3, nccl_options(),
      [&](Transport& t) {
        if (t.rank() == 1) {
          while (!first_has_left) std::this_thread::yield();
          std::this_thread::sleep_for(std::chrono::milliseconds(60));  // time for rank 2 to notice
        }
        exchange(t);
      },
      {}, [&](int rank) { first_has_left = first_has_left || rank == 0; }));
}

TEST(NcclFailures, ARankThatLeftBeforeItsPartIsNamed) {
  const auto sentences = run_nccl_ranks(2, nccl_options(), [](Transport& t) {
    t.barrier("both are here");
    if (t.rank() == 0) t.barrier("before the step");
  });
  EXPECT_EQ(sentences[0], "rank 1 has left the job: barrier 'before the step' cannot complete");
}

TEST(NcclFailures, RanksThatDisagreeGetAnErrorOfTheLibrary) {
  const auto sentences = run_nccl_ranks(2, nccl_options(), [](Transport& t) {
    std::vector<std::byte> send(8), receive(16);
    const std::vector<std::int64_t> eight(2, t.rank() == 0 ? 8 : 4);
    std::vector<std::int64_t> counts{0, 0};
    counts[1 - t.rank()] = t.rank() == 0 ? 8 : 4;
    t.exchange(std::span(send).first(static_cast<std::size_t>(counts[1 - t.rank()])), counts,
               std::span(receive).first(static_cast<std::size_t>(counts[1 - t.rank()])), counts, "lines")
        .wait();
  });
  EXPECT_NE(sentences[0] + sentences[1], "");
  EXPECT_NE((sentences[0] + sentences[1]).find("exchange 'lines'"), std::string::npos)
      << sentences[0] << " / " << sentences[1];
}

TEST(NcclReduction, SumIsTheLibrarysAndTreeIsOurs) {
  for (const auto reduction : {TransportOptions::Reduction::tree, TransportOptions::Reduction::sum}) {
    TransportOptions options = nccl_options();
    options.reduction = reduction;
    expect_good(run_nccl_ranks(4, options, [&](Transport& t) {
      const SymmetricBuffer buffer = t.allocate(64);
      // (a + b) + (c + d) differs from the fold ((d + c) + b) + a for these.
      const float of_rank[] = {1e8F, 1, -1e8F, 3};
      auto* values = reinterpret_cast<float*>(buffer.data());
      for (int i = 0; i < 16; ++i) values[i] = of_rank[t.rank()];
      std::size_t pieces_seen = 0;
      float first = 0;
      const std::vector<std::int64_t> bounds{0, 16, 16, 40, 64};
      t.reduce_scatter(
           buffer, 0, bounds,
           [&](std::span<const std::byte* const> pieces, std::int64_t, std::int64_t) {
             pieces_seen = pieces.size();
             const auto at = [&](std::size_t p) { return *reinterpret_cast<const float*>(pieces[p]); };
             first = pieces.size() == 1 ? at(0) : (at(0) + at(1)) + (at(2) + at(3));
           },
           "sums", DType::f32)
          .wait();
      if (t.rank() == 1) {
        require(pieces_seen == 0, "an empty chunk is not reduced");
        return;
      }
      const bool tree = reduction == TransportOptions::Reduction::tree;
      require(pieces_seen == (tree ? 4 : 1), "pieces: " + std::to_string(pieces_seen));
      const float expected = tree ? (1e8F + 1.0F) + (-1e8F + 3.0F) : ((3.0F + -1e8F) + 1.0F) + 1e8F;
      require(first == expected, "sum " + std::to_string(first));
    }));
  }
}

// Whole numbers, whose sums are exact in every type; chunks of different lengths, one of them empty.
TEST(NcclReduction, SumsElementsOfEveryType) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    TransportOptions options = nccl_options();
    options.reduction = TransportOptions::Reduction::sum;
    expect_good(run_nccl_ranks(4, options, [&](Transport& t) {
      const std::int64_t size = size_of(dtype);
      const std::vector<std::int64_t> bounds{2 * size, 10 * size, 10 * size, 31 * size, 40 * size};
      const SymmetricBuffer buffer = t.allocate(64 + 40 * size);
      for (int i = 0; i < 40; ++i)
        write(dtype, buffer.data() + 64, i, static_cast<float>((t.rank() + 1) * (i % 7 + 1)));
      std::int64_t seen = 0;
      const auto check = [&](std::span<const std::byte* const> pieces, std::int64_t begin, std::int64_t end) {
        require(pieces.size() == 1 && begin == bounds[t.rank()] && end == bounds[t.rank() + 1], "one sum of the chunk");
        for (std::int64_t i = begin / size; i < end / size; ++i, ++seen)
          require(read(dtype, pieces[0], i - begin / size) == static_cast<float>(10 * (i % 7 + 1)),
                  std::string(name_of(dtype)) + " element " + std::to_string(i));
      };
      t.reduce_scatter(buffer, 64, bounds, check, "sums", dtype).wait();
      require(seen == (bounds[t.rank() + 1] - bounds[t.rank()]) / size, "all elements are summed");
    }));
  }
}

// Three chunks that are equal on the average only.
TEST(NcclGather, UnequalChunksAreGatheredAsTheyAre) {
  expect_good(run_nccl_ranks(3, nccl_options(), [](Transport& t) {
    const std::vector<std::int64_t> bounds{0, 64, 96, 192};
    const SymmetricBuffer buffer = t.allocate(192);
    for (std::int64_t i = bounds[t.rank()]; i < bounds[t.rank() + 1]; ++i)
      buffer.data()[i] = static_cast<std::byte>(i + 1);
    t.all_gather(buffer, 0, bounds, "chunks").wait();
    for (std::int64_t i = 0; i < 192; ++i)
      require(buffer.data()[i] == static_cast<std::byte>(i + 1), "byte " + std::to_string(i) + " was not gathered");
  }));
}

TEST(NcclEngine, GivesTheBitsOfLocal) {
  testing::CaseBuilder builder(8, 4);
  cli::ReplayCase recorded = builder.add({"wide", {7, 19}}).add({"tall", {23, 6}}).add({"long_row", {2, 300}}).take();
  const float infinity = std::numeric_limits<float>::infinity();  // a step that all skip
  std::memcpy(recorded.gradients[2].at("tall").values.data() + 20, &infinity, 4);
  for (const char* mesh : {"dp=2", "dp=4", "dp=2,tp=2"}) {
    cli::ReplayOptions options;
    options.mesh = sharding::Mesh::parse(mesh);
    options.engine.bucket_bytes = 700;
    options.engine.cut = sharding::Cut::element;
    options.lr = 0.02;
    options.steps = 4;
    options.engine.clip = 0.5;
    options.groups = {{"reg", make_rule("reg", {}), 1}};
    const bool tp = options.mesh.size("tp") > 1;
    options.group_of.assign(recorded.names.size(), 0);
    options.placement_of.assign(recorded.names.size(), sharding::Placement::parse(tp ? "tp:1" : ""));
    options.blocks_of.resize(recorded.names.size());
    cli::ReplayResult local, nccl;
    run_ranks(options.mesh.world_size(), [&](Transport& t) {
      cli::ReplayResult mine = cli::replay(recorded, options, t);
      if (t.rank() == 0) local = std::move(mine);
    });
    for (const std::string streams : {"at once", "late", "only its own late"}) {
      const bool at_once = streams == "at once";
      const TransportOptions transport = at_once ? nccl_options() : test_transport_options();
      const auto replay = [&](Transport& t) {
        cli::ReplayOptions own = options;
        own.engine.device = t.options().device;
        cli::ReplayResult mine = cli::replay(recorded, own, t);
        if (t.rank() == 0) nccl = std::move(mine);
      };
      expect_good(
          run_nccl_ranks(options.mesh.world_size(), transport, replay, [&] { return late_device(streams != "late"); }));
      EXPECT_EQ(local.last.grad_norm, nccl.last.grad_norm) << mesh;
      EXPECT_EQ(local.last.clip_factor, nccl.last.clip_factor) << mesh;
      EXPECT_EQ(nccl.last.skipped_steps, 1) << mesh;
      ASSERT_EQ(local.tensors.size(), nccl.tensors.size()) << mesh;
      for (const auto& [name, tensor] : local.tensors)
        EXPECT_EQ(tensor.values, nccl.tensors.at(name).values) << name << ", streams " << streams;
    }
  }
}

// Where the device decides whether a step happens: what every step tells, with commands, skipped steps and a new engine
// on the way.
TEST(NcclEngine, TellsAndLeavesWhatIsComputedApart) {
  const WholeJob job = eventful_job(51);
  const JobBits one = JobRun(job, {}).run();
  for (const JobLayout& layout :
       {JobLayout{.mesh = "dp=1", .bucket_bytes = 300},
        JobLayout{.mesh = "dp=2", .bucket_bytes = 300, .move_before = 3},
        JobLayout{.mesh = "dp=2,tp=2", .cut = sharding::Cut::element, .bucket_bytes = 500, .place = "tp:1"},
        JobLayout{.mesh = "dp=2", .mode = Mode::zero2, .bucket_bytes = 200},
        JobLayout{.mesh = "dp=2", .mode = Mode::sharded, .place = "dp:flat"}})
    for (const bool late : {false, true}) {
      if (!late && layout.move_before < 0) continue;
      JobRun run(job, layout);
      expect_good(run_nccl_ranks(
          sharding::Mesh::parse(layout.mesh).world_size(), late ? test_transport_options() : nccl_options(),
          [&](Transport& t) { run.rank(t, &one); }, [] { return late_device(); }));
    }
}

TEST(NcclEngine, NeedsItsDevice) {
  expect_good(run_nccl_ranks(1, nccl_options(), [](Transport& t) {
    require_error(Code::invalid_argument, "the engine's device is the CPU", [&] {
      Engine engine({Param{"a", {2, 2}}}, {{"all", make_rule("reg", {}), 1}}, sharding::Mesh(), t, {});
    });
  }));
}

}  // namespace
}  // namespace testing
}  // namespace regatta
