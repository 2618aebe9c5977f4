// Times the reduce-scatter (with the balanced tree sum of fp32) and the all-gather of one buffer, beside MPI's own
// collectives on the same data when mpirun started us. Prints one JSON object on rank 0, times in ms, medians over
// rounds of the slowest rank.
//   transport_bench [--bytes N] [--rounds N] [--local RANKS] [--messages]

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "kernels/kernels.h"
#include "runtime/transport/local/local_transport.h"
#include "runtime/transport/mpi/mpi_transport.h"

namespace {

using namespace regatta;

struct Settings {
  std::int64_t bytes = 100'000'000;
  int rounds = 15;
};

/// Milliseconds of the slowest rank, median over the rounds; two rounds warm up.
double median_ms(Transport& t, int rounds, const std::function<void()>& body) {
  std::vector<double> times;
  const std::vector<std::int64_t> eight(static_cast<std::size_t>(t.world_size()), 8);
  for (int round = 0; round < rounds + 2; ++round) {
    t.barrier("round");
    const auto start = std::chrono::steady_clock::now();
    body();
    const double mine = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    std::vector<double> all(static_cast<std::size_t>(t.world_size()));
    t.all_gather_small(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)), eight, "times")
        .wait();
    if (round >= 2) times.push_back(*std::max_element(all.begin(), all.end()));
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

nlohmann::ordered_json time_transport(Transport& t, const Settings& settings, bool beside_mpi) {
  const int ranks = t.world_size();
  const std::int64_t chunk = settings.bytes / ranks / 64 * 64;
  std::vector<std::int64_t> bounds{0};
  for (int r = 0; r < ranks; ++r) bounds.push_back(bounds.back() + chunk);
  const SymmetricBuffer gradients = t.allocate(bounds.back());
  const SymmetricBuffer params = t.allocate(bounds.back());
  auto* values = reinterpret_cast<float*>(gradients.data());
  for (std::int64_t i = 0; i < bounds.back() / 4; ++i) values[i] = static_cast<float>(i % 1000);
  std::vector<float> sum(static_cast<std::size_t>(chunk / 4));
  const std::int64_t own = bounds[t.rank()];
  const auto reduce = [&](std::span<const std::byte* const> pieces, std::int64_t begin, std::int64_t end) {
    kernels::ReduceTreeArgs args;
    args.pieces = reinterpret_cast<const void* const*>(pieces.data());
    args.piece_count = static_cast<int>(pieces.size());
    args.count = (end - begin) / 4;
    args.out = sum.data() + (begin - own) / 4;
    kernels::cpu_kernels().reduce_tree(args);
  };
  nlohmann::ordered_json result;
  result["transport"] = t.name();
  result["data_path"] = t.data_path();
  result["ranks"] = ranks;
  result["bytes"] = bounds.back();
  result["reduce_scatter_ms"] =
      median_ms(t, settings.rounds, [&] { t.reduce_scatter(gradients, 0, bounds, std::ref(reduce), "bench").wait(); });
  for (std::size_t i = 0; i < sum.size(); ++i) {
    const float expected = static_cast<float>(ranks * ((own / 4 + static_cast<std::int64_t>(i)) % 1000));
    if (sum[i] != expected) throw Error(Code::transport, "the sum is wrong");
  }
  result["all_gather_ms"] = median_ms(t, settings.rounds, [&] { t.all_gather(params, 0, bounds, "bench").wait(); });
  result["barrier_us"] = 1000 * median_ms(t, 201, [&] { t.barrier("bench"); });
  if (!beside_mpi) return result;
  const int count = static_cast<int>(chunk / 4);
  result["MPI_Reduce_scatter_block_ms"] = median_ms(t, settings.rounds, [&] {
    MPI_Reduce_scatter_block(gradients.data(), sum.data(), count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
  });
  result["MPI_Allgather_in_place_ms"] = median_ms(t, settings.rounds, [&] {
    MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, params.data(), count, MPI_FLOAT, MPI_COMM_WORLD);
  });
  result["MPI_Barrier_us"] = 1000 * median_ms(t, 201, [] { MPI_Barrier(MPI_COMM_WORLD); });
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  int local_ranks = 0;
  TransportOptions options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const auto value = [&] { return i + 1 < argc ? std::atoll(argv[++i]) : 0; };
    if (flag == "--bytes") settings.bytes = value();
    if (flag == "--rounds") settings.rounds = static_cast<int>(value());
    if (flag == "--local") local_ranks = static_cast<int>(value());
    if (flag == "--messages") options.shared_memory = false;
  }
  if (local_ranks == 0) {
    const std::unique_ptr<Transport> transport = make_mpi_transport(options);
    const auto result = time_transport(*transport, settings, true);
    if (transport->rank() == 0) std::printf("%s\n", result.dump().c_str());
    return 0;
  }
  auto transports = make_local_transports(local_ranks, options);
  std::vector<std::thread> threads;
  for (int r = 0; r < local_ranks; ++r) {
    threads.emplace_back([&, r] {
      const auto result = time_transport(*transports[r], settings, false);
      if (r == 0) std::printf("%s\n", result.dump().c_str());
    });
  }
  for (std::thread& thread : threads) thread.join();
  return 0;
}
