// Times whole optimizer steps of the engine on made-up gradients: from gradients on every rank to updated parameters on
// every rank. Prints one JSON object on rank 0; bench/against_torch.py puts it beside torch's optimizers.
//
//     step_bench [--rule NAME] [--precision bf16|fp32] [--layers N | --matrix ROWSxCOLS] [--rounds N] [--threads N]
//                [--transport NAME]

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "runtime/engine/engine.h"
#include "runtime/transport/factory.h"

namespace {

using namespace regatta;

// A decoder layer's seven matrices, repeated: hidden 1024, intermediate 2816.
std::vector<Param> decoder_matrices(int layers) {
  std::vector<Param> params;
  const auto add = [&](int layer, const char* name, std::int64_t rows, std::int64_t cols) {
    params.push_back({"layers." + std::to_string(layer) + "." + name, {rows, cols}, DType::f32, {}, {}, {}, 0});
  };
  for (int l = 0; l < layers; ++l) {
    for (const char* name : {"q", "k", "v", "o"}) add(l, name, 1024, 1024);
    add(l, "gate", 2816, 1024);
    add(l, "up", 2816, 1024);
    add(l, "down", 1024, 2816);
  }
  return params;
}

}  // namespace

int main(int argc, char** argv) {
  const auto flag = [&](const char* name, const char* otherwise) {
    for (int i = 1; i + 1 < argc; ++i)
      if (std::strcmp(argv[i], name) == 0) return argv[i + 1];
    return const_cast<char*>(otherwise);
  };
  const std::string rule = flag("--rule", "adamw"), transport_name = flag("--transport", "mpi");
  const int layers = std::atoi(flag("--layers", "5")), rounds = std::atoi(flag("--rounds", "11"));
  const int threads = std::atoi(flag("--threads", "1"));

  const std::unique_ptr<Transport> transport = make_transport(transport_name, {});
  EngineOptions options;
  options.threads = threads;
  const std::string matrix = flag("--matrix", ""), precision = flag("--precision", "");
  std::vector<Param> params = decoder_matrices(layers);
  if (!matrix.empty()) {
    const std::int64_t rows = std::stoll(matrix), cols = std::stoll(matrix.substr(matrix.find('x') + 1));
    params = {{"matrix", {rows, cols}, DType::f32, {}, {}, {}, 0}};
  }
  std::vector<std::pair<std::string, std::string>> settings;
  if (!precision.empty()) settings.emplace_back("precision", precision);
  Engine engine(params, {{rule, make_rule(rule, settings), 1}}, sharding::Mesh({{"dp", transport->world_size()}}),
                *transport, options);
  engine.publish_params();

  std::vector<std::vector<float>> grads;
  std::int64_t elements = 0;
  for (std::size_t p = 0; p < params.size(); ++p) {
    grads.emplace_back(engine.param(static_cast<int>(p)).numel);
    for (std::size_t i = 0; i < grads[p].size(); ++i)
      grads[p][i] = static_cast<float>((i * 7 + p) % 101) * 0.01F - 0.5F;
    elements += static_cast<std::int64_t>(grads[p].size());
  }
  std::vector<double> total, step_only;
  for (int round = 0; round < rounds + 2; ++round) {  // the first two warm up
    transport->barrier("start of a round");
    const auto start = std::chrono::steady_clock::now();
    for (int p = static_cast<int>(params.size()) - 1; p >= 0; --p) engine.add_grad(p, grads[p].data(), DType::f32);
    const StepReport report = engine.step(1e-4);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (round < 2) continue;
    total.push_back(seconds * 1e3);
    step_only.push_back(report.times.step_seconds * 1e3);
  }
  const auto median = [](std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
    return values[values.size() / 2];
  };
  if (transport->rank() == 0)
    std::printf("%s\n", nlohmann::json{{"rule", precision.empty() ? rule : rule + " " + precision},
                                       {"ranks", transport->world_size()},
                                       {"threads", threads},
                                       {"elements", elements},
                                       {"total_ms", median(total)},
                                       {"step_ms", median(step_only)}}
                            .dump()
                            .c_str());
  transport->barrier("end");
  return 0;
}
