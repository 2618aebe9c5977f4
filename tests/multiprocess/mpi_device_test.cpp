// Transport mpi and the memory of devices, under mpirun, on emulated devices: the contract with messages between the
// devices' memories, and the engine on late devices in both ways (MPI given that memory, or through the host) with the
// bits of ranks on the CPU. What an MPI library with CUDA does itself is not shown here.

#include <gtest/gtest.h>
#include <mpi.h>

#include <memory>
#include <string>

#include "cli/replay/run.h"
#include "runtime/device/buffer.h"
#include "runtime/transport/factory.h"
#include "tests/transport/transport_contract.h"
#include "tests/support/emulated_device.h"
#include "tests/support/late_device.h"
#include "tests/support/mpi_program.h"
#include "tests/support/recorded_case.h"
#include "tests/support/spmd.h"

namespace regatta::testing {
namespace {

using DeviceMessages = TransportOptions::DeviceMessages;

TransportOptions options_with_device(DeviceMessages messages, std::shared_ptr<Device> device = emulated_device(false)) {
  TransportOptions options = test_transport_options();
  options.device = std::move(device);
  options.device_messages = messages;
  return options;
}

class MpiBetweenDevices : public ::testing::TestWithParam<ContractCase> {};

TEST_P(MpiBetweenDevices, Keeps) { run_here(options_with_device(DeviceMessages::always), GetParam().body); }

INSTANTIATE_TEST_SUITE_P(Contract, MpiBetweenDevices, ::testing::ValuesIn(contract_cases),
                         [](const auto& info) { return std::string(info.param.name); });

// Debian's Open MPI says that it takes no CUDA memory. One that does would fail the first line here, as it should.
TEST(MpiDevices, TakeTheWayThatIsAskedForAndPossible) {
  run_here(options_with_device(DeviceMessages::automatic), [](Transport& t) {
    EXPECT_EQ(t.device(), nullptr);
    EXPECT_EQ(t.data_path(), "shared memory");
  });
  run_here(options_with_device(DeviceMessages::never), [](Transport& t) { EXPECT_EQ(t.device(), nullptr); });
  run_here(options_with_device(DeviceMessages::always), [](Transport& t) {
    EXPECT_NE(t.device(), nullptr);
    EXPECT_EQ(t.data_path(), "messages between devices");
    const int alone[] = {t.rank()};
    EXPECT_EQ(t.split(alone)->device(), nullptr);  // sends nothing
  });
}

TEST(MpiDevices, OneRankThatCannotKeepsAllFromIt) {
  const TransportOptions options =
      options_with_device(job_rank() == 1 ? DeviceMessages::never : DeviceMessages::always);
  run_here(options, [](Transport& t) { EXPECT_EQ(t.device(), nullptr); });
}

TEST(MpiDevices, ExchangeTakesBothKindsOfMemory) {
  const TransportOptions options = options_with_device(DeviceMessages::always);
  run_here(options, [&](Transport& t) {
    const auto ranks = static_cast<std::size_t>(t.world_size());
    const std::vector<std::int64_t> four(ranks, 4);
    for (const bool on_device : {false, true}) {
      Buffer send(4 * std::ssize(four), on_device ? options.device.get() : nullptr);
      Buffer receive(4 * std::ssize(four), on_device ? options.device.get() : nullptr);
      for (std::size_t p = 0; p < ranks; ++p) send.as<int>()[p] = 100 * t.rank() + static_cast<int>(p);
      t.exchange({send.data(), 4 * ranks}, four, {receive.data(), 4 * ranks}, four, "both kinds").wait();
      for (std::size_t p = 0; p < ranks; ++p) EXPECT_EQ(receive.as<int>()[p], 100 * static_cast<int>(p) + t.rank());
    }
  });
}

// A chunk of more tiles than are under way at a time: what the Reducer puts on the stream reads a tile's place before
// the next tile comes there.
TEST(MpiDevices, TilesAreReadBeforeTheirPlacesAreUsedAgain) {
  int ranks = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  if (ranks < 4) GTEST_SKIP() << "with fewer ranks a chunk has too few tiles; the launch with 4 ranks runs it";
  const TransportOptions options = options_with_device(DeviceMessages::always, late_device());
  run_here(options, [&](Transport& t) {
    constexpr std::int64_t bytes = (50 << 20) + 64;
    const int owner = 1, other = 2;
    std::vector<std::int64_t> bounds(static_cast<std::size_t>(ranks) + 1, bytes);
    bounds[0] = bounds[owner] = 0;
    const SymmetricBuffer buffer = t.allocate(bytes);
    auto* const numbers = reinterpret_cast<std::int64_t*>(buffer.data());
    for (std::int64_t i = 0; i < bytes / 8; ++i) numbers[i] = i * 10 + t.rank();
    Buffer seen(t.rank() == owner ? bytes : 64, options.device.get());
    int tiles = 0;
    const auto copy = [&](std::span<const std::byte* const> pieces, std::int64_t begin, std::int64_t end) {
      ++tiles;
      options.device->copy(seen.data() + begin, pieces[other], end - begin, t.stream());
    };
    t.reduce_scatter(buffer, 0, bounds, copy, "many tiles").wait();
    if (t.rank() != owner) return;
    EXPECT_GT(tiles, 4);
    std::int64_t wrong = 0;
    for (std::int64_t i = 0; i < bytes / 8; ++i) wrong += seen.as<std::int64_t>()[i] != i * 10 + other ? 1 : 0;
    EXPECT_EQ(wrong, 0);
  });
}

class MpiDeviceEngine : public ::testing::TestWithParam<DeviceMessages> {};

TEST_P(MpiDeviceEngine, GivesTheBitsOfTheCpu) {
  CaseBuilder builder(8, 2);
  const cli::ReplayCase recorded =
      builder.add({"wide", {7, 19}}).add({"tall", {23, 6}}).add({"long_row", {2, 300}}).take();
  int ranks = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  std::vector<std::string> meshes{"dp=" + std::to_string(ranks)};
  if (ranks == 4) meshes.push_back("dp=2,tp=2");
  for (const std::string& mesh : meshes) {
    for (const Mode mode : {Mode::zero1, Mode::zero2}) {
      cli::ReplayOptions options;
      options.mesh = sharding::Mesh::parse(mesh);
      options.engine.mode = mode;
      options.engine.bucket_bytes = 700;
      options.engine.cut = sharding::Cut::element;
      options.lr = 0.02;
      options.steps = 2;
      options.groups = {{"reg", make_rule("reg", {}), 1}};
      options.group_of.assign(recorded.names.size(), 0);
      options.placement_of.assign(recorded.names.size(),
                                  sharding::Placement::parse(options.mesh.size("tp") > 1 ? "tp:1" : ""));
      options.blocks_of.resize(recorded.names.size());
      cli::ReplayResult cpu;
      run_ranks(ranks, [&](Transport& t) {
        cli::ReplayResult mine = cli::replay(recorded, options, t);
        if (t.rank() == 0) cpu = std::move(mine);
      });
      const TransportOptions transport = options_with_device(GetParam(), late_device());
      options.engine.device = transport.device;
      run_here(transport, [&](Transport& t) {
        const cli::ReplayResult mine = cli::replay(recorded, options, t);
        EXPECT_TRUE(mine.bytes_as_planned) << mesh;
        if (t.rank() != 0) return;
        ASSERT_EQ(cpu.tensors.size(), mine.tensors.size()) << mesh;
        for (const auto& [name, tensor] : cpu.tensors) EXPECT_EQ(tensor.values, mine.tensors.at(name).values) << name;
      });
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ways, MpiDeviceEngine, ::testing::Values(DeviceMessages::always, DeviceMessages::never),
                         [](const auto& info) {
                           return info.param == DeviceMessages::always ? "BetweenDevices" : "ThroughTheHost";
                         });

}  // namespace
}  // namespace regatta::testing

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  int level = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &level);
  return regatta::testing::run_all_tests_on_ranks();
}
