// Times REG's and AdamW's sweeps on a CUDA device over the matrices of a decoder, all in a few launches, in turns with
// a copy on the device, and whole engine steps over the same shapes. Prints one JSON object; bench/gpu puts it beside
// torch's optimizers.
//
//   gpu_step --model 1b | 7b | wide | tall | ROWSxCOLS [--layers N] [--rounds 11] [--no-engine 1]
//   gpu_step --model exchange [--rounds 11]      what split columns cost two ranks, by their number

#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <future>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/cuda/tiles.h"
#include "runtime/device/arena.h"
#include "runtime/device/device.h"
#include "runtime/engine/engine.h"
#include "runtime/transport/factory.h"
#include "runtime/transport/local/local_transport.h"

namespace {

using namespace regatta;
namespace cuda = kernels::cuda;

struct Matrix {
  std::int64_t rows, cols;
  std::int64_t numel() const { return rows * cols; }
};

// The matrices of decoder layers: q, k, v, o, gate, up, down.
std::vector<Matrix> layers_of(std::int64_t hidden, std::int64_t kv, std::int64_t inner, int layers) {
  std::vector<Matrix> all;
  for (int l = 0; l < layers; ++l)
    for (const Matrix& m : {Matrix{hidden, hidden}, Matrix{kv, hidden}, Matrix{kv, hidden}, Matrix{hidden, hidden},
                            Matrix{inner, hidden}, Matrix{inner, hidden}, Matrix{hidden, inner}})
      all.push_back(m);
  return all;
}

std::vector<Matrix> model_of(const std::string& name, int layers) {
  if (name == "1b") return layers_of(2048, 512, 8192, layers > 0 ? layers : 16);
  // Four of 32 layers: all would not leave room for gradients and state on one device.
  if (name == "7b") return layers_of(4096, 4096, 11008, layers > 0 ? layers : 4);
  if (name == "wide") return {{4096, 16384}};
  if (name == "tall") return {{16384, 4096}};
  Matrix one{0, 0};
  if (std::sscanf(name.c_str(), "%" SCNd64 "x%" SCNd64, &one.rows, &one.cols) == 2 && one.rows > 0 && one.cols > 0)
    return {one};
  std::fprintf(stderr, "gpu_step: --model is '%s'; expected 1b, 7b, wide, tall, exchange or ROWSxCOLS\n", name.c_str());
  std::exit(2);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// Times what is put on the default stream, by the device's own clock.
class DeviceClock {
 public:
  DeviceClock() {
    check(cudaEventCreate(&start_));
    check(cudaEventCreate(&stop_));
  }
  ~DeviceClock() {
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
  }
  DeviceClock(const DeviceClock&) = delete;
  DeviceClock& operator=(const DeviceClock&) = delete;
  double seconds(const std::function<void()>& body) {
    check(cudaEventRecord(start_, nullptr));
    body();
    check(cudaEventRecord(stop_, nullptr));
    check(cudaEventSynchronize(stop_));
    float ms = 0;
    check(cudaEventElapsedTime(&ms, start_, stop_));
    return ms * 1e-3;
  }

 private:
  static void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("an event: ") + cudaGetErrorString(error));
  }
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
};

class Bench {
 public:
  Bench(Device& device, std::vector<Matrix> matrices, int rounds)
      : device_(device), arena_(device), matrices_(std::move(matrices)), rounds_(rounds), limits_(device.limits()) {
    for (const Matrix& m : matrices_) {
      begins_.push_back(numel_);
      numel_ += (m.numel() + 63) / 64 * 64;
      elements_ += m.numel();
    }
    for (Buffer* buffer : {&grad_, &momentum_, &moment2_, &weight_}) *buffer = Buffer(numel_ * 4, &device);
    scratch_ = Buffer(copy_bytes(), &device);
    fill();
  }

  std::int64_t elements() const { return elements_; }

  /// Seconds of each, one per round.
  struct Times {
    std::vector<double> copy, reg, adamw;
  };
  /// All three in turns, so that whatever the device does in the meantime falls on all of them alike. Each is the mean
  /// of some repetitions; two rounds warm up.
  Times measure() {
    constexpr int repetitions = 5;
    make_reg();
    make_adamw();
    DeviceClock clock;
    const auto time = [&](const std::function<void()>& body) {
      return clock.seconds([&] {
        for (int i = 0; i < repetitions; ++i) body();
      }) / repetitions;
    };
    Times times;
    for (int round = -2; round < rounds_; ++round) {
      const double copy = time([&] { device_.copy(scratch_.data(), grad_.data(), copy_bytes(), nullptr); });
      const double reg = time([&] { run(reg_); });
      const double adamw = time([&] { run(adamw_); });
      if (round < 0) continue;
      times.copy.push_back(copy);
      times.reg.push_back(reg);
      times.adamw.push_back(adamw);
    }
    return times;
  }
  std::int64_t copy_bytes() const { return std::min<std::int64_t>(numel_ * 4, std::int64_t{2} << 30); }
  double reg_bytes() const { return reg_bytes_; }
  double adamw_bytes() const { return 28.0 * static_cast<double>(elements_); }

 private:
  const cuda::LaunchTable& kernels() const { return device_.kernels(); }

  using Launches = std::vector<std::function<int()>>;

  // Numbers around zero, rows of different scale, as a long pattern.
  void fill() {
    constexpr std::int64_t pattern = 1 << 20;
    std::vector<float> values(pattern);
    for (std::int64_t i = 0; i < pattern; ++i)
      values[i] = static_cast<float>((i * 2654435761U >> 8) % 2001) * 1e-3F - 1.0F + 1e-4F;
    for (const Buffer* buffer : {&grad_, &momentum_, &weight_})
      for (std::int64_t at = 0; at < numel_; at += pattern)
        device_.copy(buffer->as<float>() + at, values.data(), 4 * std::min(pattern, numel_ - at), nullptr);
    device_.synchronize(nullptr);
  }

  void run(const Launches& launches) {
    for (const auto& launch : launches) device_.check_launch(launch(), "a sweep");
  }

  cuda::RegSegment segment(std::size_t i) {
    const Matrix& m = matrices_[i];
    cuda::RegSegment s;
    s.run = {m.rows, m.cols, 0, m.numel()};
    s.grad = grad_.as<float>() + begins_[i];
    s.momentum = momentum_.as<float>() + begins_[i];
    s.weight = weight_.as<float>() + begins_[i];
    s.root = std::sqrt(static_cast<double>(std::max(m.rows, m.cols)));
    return s;
  }

  template <class Tiles>
  regatta::kernels::SweepHealth* health(const Tiles& tiles, int cluster = 1) {
    return arena_.make<regatta::kernels::SweepHealth>(static_cast<std::int64_t>(tiles.size()) * cluster);
  }

  void make_reg() {
    if (!reg_.empty()) return;
    cuda::RegScalars numbers;
    numbers.lr_rho = 1e-6;
    const cuda::RegScalars* scalars = arena_.place(std::vector{numbers});
    std::vector<cuda::RegSegment> rows, columns, open;
    std::vector<MatrixRun> row_runs, column_runs, open_runs;
    for (std::size_t i = 0; i < matrices_.size(); ++i) {
      const cuda::RegSegment s = segment(i);
      const bool wide = matrices_[i].rows <= matrices_[i].cols;
      const bool strip = !wide && cuda::fits_update_columns(s.run, DType::f32, limits_);
      (wide ? rows : strip ? columns : open).push_back(s);
      (wide ? row_runs : strip ? column_runs : open_runs).push_back(s.run);
      reg_bytes_ += (wide || strip ? 20.0 : 24.0) * static_cast<double>(s.run.numel());
    }
    const auto* row_segments = arena_.place(rows);
    for (const cuda::RowTiles& tiles : cuda::update_rows_tiles(row_runs, limits_)) {
      const int cluster = tiles.cluster;
      const cuda::RegLaunch launch{row_segments,
                                   arena_.place(tiles.tiles),
                                   std::ssize(tiles.tiles),
                                   scalars,
                                   {},
                                   health(tiles.tiles, std::max(1, cluster))};
      reg_.push_back([this, launch, cluster] {
        return cluster == 0 ? kernels().update_long_rows(launch, nullptr)
                            : kernels().update_rows({launch, cluster}, nullptr);
      });
    }
    const auto* column_segments = arena_.place(columns);
    for (const cuda::ColumnTiles& tiles : cuda::update_columns_tiles(column_runs, DType::f32, limits_)) {
      const cuda::UpdateColumns launch{{column_segments,
                                        arena_.place(tiles.tiles),
                                        std::ssize(tiles.tiles),
                                        scalars,
                                        {},
                                        health(tiles.tiles, tiles.cluster)},
                                       tiles.cluster,
                                       tiles.strip,
                                       tiles.shared_bytes};
      reg_.push_back([this, launch] { return kernels().update_columns(launch, nullptr); });
    }
    if (!open.empty()) make_two_sweeps(open, open_runs, scalars);
  }

  // Columns too long for a cluster: statistics, steps, and the second sweep.
  void make_two_sweeps(std::vector<cuda::RegSegment>& open, const std::vector<MatrixRun>& runs,
                       const cuda::RegScalars* scalars) {
    const cuda::ObserveTiles tiles = cuda::observe_tiles(runs, Line::column);
    std::vector<cuda::FinishItem> finish;
    std::vector<cuda::StepItem> steps;
    std::vector<std::int64_t> lines, counts;
    for (std::size_t i = 0; i < open.size(); ++i) {
      open[i].lines = tiles.lines[i];
      open[i].parts = tiles.parts[i];
      open[i].partials = arena_.make<regatta::kernels::LineSum>(tiles.partials(i, 1));
      float* inverse = arena_.make<float>(tiles.lines[i]);
      open[i].passes = arena_.place(std::vector<regatta::kernels::LineFactors>{{Line::column, inverse}});
      open[i].pass_count = 1;
      cuda::FinishItem item;
      item.count = tiles.lines[i];
      item.sources = arena_.place(std::vector<cuda::LineSource>{
          {open[i].partials, tiles.parts[i], tiles.lines[i], tiles.lines[i] * tiles.parts[i]}});
      item.source_count = 1;
      item.inverse = inverse;
      item.count_lines = true;
      finish.push_back(item);
      steps.push_back({tiles.lines[i], inverse, inverse, nullptr, 0, open[i].root, 0});
      lines.push_back(tiles.lines[i]);
      counts.push_back(runs[i].numel());
    }
    const auto* segments = arena_.place(open);
    const cuda::Observe observe{
        {segments, arena_.place(tiles.tiles), std::ssize(tiles.tiles), scalars, {}, nullptr}, Line::column, 0, false};
    const std::vector<cuda::Tile> line_tiles = cuda::line_tiles(lines), flat = cuda::flat_tiles(counts);
    const auto* placed = arena_.place(line_tiles);
    const cuda::FinishLines finishing{arena_.place(finish), placed, std::ssize(line_tiles), scalars,
                                      health(line_tiles)};
    const cuda::MakeSteps stepping{arena_.place(steps), placed, std::ssize(line_tiles), scalars};
    const cuda::RegLaunch apply{segments, arena_.place(flat), std::ssize(flat), scalars, {}, health(flat)};
    reg_.push_back([this, observe] { return kernels().observe(observe, nullptr); });
    reg_.push_back([this, finishing] { return kernels().finish_lines(finishing, nullptr); });
    reg_.push_back([this, stepping] { return kernels().make_steps(stepping, nullptr); });
    reg_.push_back([this, apply] { return kernels().apply(apply, nullptr); });
  }

  void make_adamw() {
    if (!adamw_.empty()) return;
    cuda::AdamwScalars numbers;
    numbers.step = 1e-6F;
    std::vector<cuda::AdamwSegment> segments;
    std::vector<std::int64_t> counts;
    for (std::size_t i = 0; i < matrices_.size(); ++i) {
      const std::int64_t at = begins_[i];
      segments.push_back({matrices_[i].numel(), grad_.as<float>() + at, momentum_.as<float>() + at,
                          moment2_.as<float>() + at, weight_.as<float>() + at, nullptr, 0});
      counts.push_back(matrices_[i].numel());
    }
    const std::vector<cuda::Tile> tiles = cuda::flat_tiles(counts);
    const cuda::Adamw launch{
        arena_.place(segments), arena_.place(tiles), std::ssize(tiles), arena_.place(std::vector{numbers}), {},
        health(tiles)};
    adamw_.push_back([this, launch] { return kernels().adamw(launch, nullptr); });
  }

  Device& device_;
  DeviceArena arena_;
  std::vector<Matrix> matrices_;
  int rounds_;
  cuda::DeviceLimits limits_;
  std::vector<std::int64_t> begins_;
  std::int64_t numel_ = 0, elements_ = 0;
  Buffer grad_, momentum_, moment2_, weight_, scratch_;
  Launches reg_, adamw_;
  double reg_bytes_ = 0;
};

// Seconds of add_grad over all parameters and of step(), medians.
std::pair<double, double> engine_seconds(const std::shared_ptr<Device>& device, const std::vector<Matrix>& matrices,
                                         const std::string& rule, bool graph, int rounds) {
  const std::unique_ptr<Transport> transport = make_transport("local");
  std::vector<Param> params;
  std::int64_t largest = 0;
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    params.push_back({"m" + std::to_string(i), {matrices[i].rows, matrices[i].cols}});
    largest = std::max(largest, matrices[i].numel());
  }
  EngineOptions options;
  options.device = device;
  options.device_graph = graph;
  Engine engine(params, {{rule, make_rule(rule, {}), 1}}, sharding::Mesh(), *transport, options);
  engine.publish_params();
  Buffer grad(largest * 4, device.get());
  std::vector<float> ones(static_cast<std::size_t>(largest), 1e-3F);
  device->copy(grad.data(), ones.data(), largest * 4, nullptr);
  device->synchronize(nullptr);
  std::vector<double> adding, stepping;
  const auto since = [](auto start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  for (int round = -2; round < rounds; ++round) {
    auto start = std::chrono::steady_clock::now();
    for (std::size_t p = 0; p < params.size(); ++p) engine.add_grad(static_cast<int>(p), grad.data(), DType::f32);
    device->synchronize(nullptr);
    const double added = since(start);
    start = std::chrono::steady_clock::now();
    engine.step(1e-6);
    if (round < 0) continue;
    adding.push_back(added);
    stepping.push_back(since(start));
  }
  return {median(adding), median(stepping)};
}

// One matrix cut by rows over two ranks, threads that share the device and exchange through the host: half of it each.
nlohmann::json shared_step(const std::shared_ptr<Device>& device, const Matrix& matrix, int rounds) {
  TransportOptions limits;
  limits.deadline = std::chrono::seconds(30);
  auto transports = make_local_transports(2, limits);
  nlohmann::json entry;
  const auto rank = [&](int r) {
    const std::unique_ptr<Transport> transport = std::move(transports[r]);
    EngineOptions options;
    options.mode = Mode::sharded;
    options.device = device;
    Param param{"matrix", {matrix.rows, matrix.cols}};
    param.placement = sharding::Placement::parse("dp:0");
    Engine engine({param}, {{"reg", make_rule("reg", {}), 1}}, sharding::Mesh::parse("dp=2"), *transport, options);
    engine.publish_params();
    const std::int64_t bytes = engine.param(0).numel * 4;
    Buffer grad(bytes, device.get());
    const std::vector<float> ones(static_cast<std::size_t>(engine.param(0).numel), 1e-3F);
    device->copy(grad.data(), ones.data(), bytes, nullptr);
    device->synchronize(nullptr);
    std::vector<double> steps, waits;
    StepReport report;
    for (int round = -2; round < rounds; ++round) {
      engine.add_grad(0, grad.data(), DType::f32);
      device->synchronize(nullptr);
      transport->barrier("round");
      report = engine.step(1e-6);
      if (round < 0) continue;
      steps.push_back(report.times.step_seconds * 1e3);
      waits.push_back(report.times.wait_exchange_seconds * 1e3);
    }
    if (r == 0)
      entry = {{"rows", matrix.rows},
               {"cols", matrix.cols},
               {"exchange_bytes", report.bytes.exchange},
               {"step_ms", median(steps)},
               {"wait_exchange_ms", median(waits)}};
  };
  auto other = std::async(std::launch::async, rank, 1);
  rank(0);
  other.get();
  return entry;
}

// The same number of elements each time: rows that no rank shares, then more and more columns that both do.
nlohmann::json exchange(const std::shared_ptr<Device>& device, int rounds) {
  nlohmann::json steps = nlohmann::json::array();
  for (const Matrix& m : {Matrix{8192, 16384}, Matrix{524288, 256}, Matrix{131072, 1024}, Matrix{32768, 4096}})
    steps.push_back(shared_step(device, m, rounds));
  return steps;
}

}  // namespace

int main(int argc, char** argv) {
  const auto flag = [&](const char* name, const char* otherwise) {
    for (int i = 1; i + 1 < argc; ++i)
      if (std::strcmp(argv[i], name) == 0) return const_cast<const char*>(argv[i + 1]);
    return otherwise;
  };
  const std::string model = flag("--model", "1b");
  const int rounds = std::max(1, std::atoi(flag("--rounds", "11")));
  try {
    const std::shared_ptr<Device> device = open_device("cuda");
    if (model == "exchange") {
      std::printf("%s\n",
                  nlohmann::json{{"device", device->name()}, {"steps", exchange(device, rounds)}}.dump(2).c_str());
      return 0;
    }
    const std::vector<Matrix> matrices = model_of(model, std::atoi(flag("--layers", "0")));
    nlohmann::json out;
    {
      Bench bench(*device, matrices, rounds);
      const Bench::Times times = bench.measure();
      const double copy = 2.0 * static_cast<double>(bench.copy_bytes()) / median(times.copy);
      const auto entry = [&](const std::vector<double>& seconds, double bytes) {
        const double middle = median(seconds);
        const auto [least, most] = std::minmax_element(seconds.begin(), seconds.end());
        return nlohmann::json{{"ms", middle * 1e3},
                              {"least_ms", *least * 1e3},
                              {"most_ms", *most * 1e3},
                              {"gb_per_s", bytes / middle * 1e-9},
                              {"bytes_per_element", bytes / static_cast<double>(bench.elements())},
                              {"of_copy", bytes / middle / copy}};
      };
      out = {{"device", device->name()},
             {"model", model},
             {"matrices", matrices.size()},
             {"elements", bench.elements()},
             {"copy_gb_per_s", copy * 1e-9},
             {"reg", entry(times.reg, bench.reg_bytes())},
             {"adamw", entry(times.adamw, bench.adamw_bytes())}};
    }
    if (std::strcmp(flag("--no-engine", "0"), "0") == 0)
      for (const std::string rule : {"reg", "adamw"})
        for (const bool graph : {false, true}) {
          const auto [adding, stepping] = engine_seconds(device, matrices, rule, graph, rounds);
          out["engine"][rule + (graph ? ", graph" : "")] = {{"add_grad_ms", adding * 1e3}, {"step_ms", stepping * 1e3}};
        }
    std::printf("%s\n", out.dump(2).c_str());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpu_step: %s\n", error.what());
    return 1;
  }
  return 0;
}
