// `regatta bench`: how fast the optimizer's sweeps go, against the speed of memory in the same run.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/bench/sweeps.h"
#include "cli/commands.h"
#include "runtime/error.h"

namespace regatta::cli {
namespace {

struct Flags {
  std::int64_t elements = std::int64_t{64} << 20;
  std::vector<int> threads;
  int rounds = 11;
  bool json = false;
};

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

struct Row {
  std::string name;
  int threads = 0;
  double ns_per_element = 0;
  double gb_per_s = 0;
  double fraction = 0;
};

struct Result {
  std::map<int, double> ceiling;  // by threads
  std::vector<Row> rows;
  std::map<int, double> adamw_over_reg_wide;
};

Result measure(const Flags& flags, BenchSweeps& sweeps) {
  const std::vector<BenchSweeps::Variant>& variants = BenchSweeps::variants();
  std::vector<std::unique_ptr<ThreadPool>> pools;
  for (const int threads : flags.threads) pools.push_back(std::make_unique<ThreadPool>(threads));
  // seconds[pool][variant][round]; everything takes turns, so that a disturbance meets all alike. Round 0 warms up.
  std::vector<std::vector<std::vector<double>>> seconds(pools.size(),
                                                        std::vector<std::vector<double>>(variants.size()));
  for (int round = 0; round <= flags.rounds; ++round) {
    for (std::size_t p = 0; p < pools.size(); ++p)
      for (std::size_t v = 0; v < variants.size(); ++v) {
        const double time = sweeps.time(variants[v], *pools[p]);
        if (round > 0) seconds[p][v].push_back(time);
      }
    std::cerr << "\rround " << round << " of " << flags.rounds << std::flush;
  }
  std::cerr << "\r" << std::string(24, ' ') << "\r";
  if (!sweeps.sane())
    throw Error(Code::non_finite, "bench: the values are no longer finite, so the timings mean nothing");

  Result result;
  for (std::size_t p = 0; p < pools.size(); ++p) {
    const int threads = flags.threads[p];
    std::map<std::string_view, double> ns;
    for (std::size_t v = 0; v < variants.size(); ++v) {
      Row row;
      row.name = variants[v].name;
      row.threads = threads;
      row.ns_per_element = median(seconds[p][v]) * 1e9 / static_cast<double>(sweeps.elements());
      row.gb_per_s = variants[v].bytes_per_element / row.ns_per_element;
      ns[variants[v].name] = row.ns_per_element;
      if (v == 0) {
        result.ceiling[threads] = row.gb_per_s;
        continue;
      }
      row.fraction = row.gb_per_s / result.ceiling[threads];
      result.rows.push_back(row);
    }
    result.adamw_over_reg_wide[threads] = ns["adamw"] / ns["reg_wide"];
  }
  return result;
}

void print_json(const Result& result, std::int64_t elements) {
  nlohmann::ordered_json document;
  document["isa"] = kernels::cpu_kernels().isa;
  for (const auto& [threads, ceiling] : result.ceiling) document["ceiling_gb_per_s"][std::to_string(threads)] = ceiling;
  for (const auto& [threads, ratio] : result.adamw_over_reg_wide)
    document["adamw_over_reg_wide"][std::to_string(threads)] = ratio;
  for (const Row& row : result.rows)
    document["rows"].push_back({{"name", row.name},
                                {"threads", row.threads},
                                {"elements", elements},
                                {"ns_per_element", row.ns_per_element},
                                {"gb_per_s", row.gb_per_s},
                                {"fraction", row.fraction}});
  std::cout << document.dump(2) << '\n';
}

void print_table(const Result& result, const BenchSweeps& sweeps, int rounds) {
  fmt::print("{} fp32 elements ({} x {} and transposed), kernels for {}, medians of {} rounds\n", sweeps.elements(),
             sweeps.wide().rows, sweeps.wide().cols, kernels::cpu_kernels().isa, rounds);
  for (const auto& [threads, ceiling] : result.ceiling) {
    fmt::print("\n{} thread{}: ceiling {:.1f} GB/s (axpy, y = a y + x, 12 bytes per element)\n", threads,
               threads == 1 ? "" : "s", ceiling);
    fmt::print("  {:<10} {:>10} {:>8} {:>11}\n", "step", "ns/element", "GB/s", "of ceiling");
    for (const Row& row : result.rows)
      if (row.threads == threads)
        fmt::print("  {:<10} {:>10.3f} {:>8.1f} {:>11.3f}\n", row.name, row.ns_per_element, row.gb_per_s, row.fraction);
    fmt::print("  reg_wide is {:.2f} times as fast as adamw\n", result.adamw_over_reg_wide.at(threads));
  }
}

void run(Flags flags) {
  if (flags.elements < 1024)
    throw Error(Code::invalid_argument, "--elements is " + std::to_string(flags.elements) + "; expected at least 1024");
  if (flags.rounds < 1)
    throw Error(Code::invalid_argument, "--rounds is " + std::to_string(flags.rounds) + "; expected at least 1");
  if (flags.threads.empty()) {
    flags.threads = {1, static_cast<int>(std::max(1U, std::thread::hardware_concurrency()))};
  }
  for (const int threads : flags.threads)
    if (threads < 1 || threads > 4096)
      throw Error(Code::invalid_argument, "--threads has " + std::to_string(threads) + "; expected 1 to 4096");
  std::sort(flags.threads.begin(), flags.threads.end());
  flags.threads.erase(std::unique(flags.threads.begin(), flags.threads.end()), flags.threads.end());

  ThreadPool filling(flags.threads.back());
  BenchSweeps sweeps(flags.elements, filling);
  const Result result = measure(flags, sweeps);
  if (flags.json) {
    print_json(result, sweeps.elements());
  } else {
    print_table(result, sweeps, flags.rounds);
  }
}

}  // namespace

void add_bench(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("bench", "Times the optimizer's sweeps against the speed of memory");
  command->add_option("--elements", flags->elements, "Elements of the matrix")->capture_default_str();
  command->add_option("--threads", flags->threads, "Thread counts to try, as 1,2 (default: 1 and all)")->delimiter(',');
  command->add_option("--rounds", flags->rounds, "Timed rounds; medians are printed")->capture_default_str();
  command->add_flag("--json", flags->json, "One JSON object instead of a table");
  command->footer(
      "reg_wide   REG on whole rows, one sweep, 20 bytes per element\n"
      "reg_tall   REG on columns, two sweeps, 24 bytes\n"
      "reg_split  REG on rows that several ranks share, two sweeps, 24 bytes\n"
      "adamw      AdamW, 28 bytes\n"
      "Everything takes turns, so a busy machine disturbs all alike.\n\n"
      "Example: regatta bench --elements 16777216 --threads 1,2 --json");
  command->callback([flags] { run(*flags); });
}

}  // namespace regatta::cli
