// One matrix, the REG rule, ranks as threads of this process; then the same on one rank, and not one bit differs.

#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <thread>
#include <vector>

#include "runtime/engine/engine.h"
#include "runtime/transport/local/local_transport.h"

namespace {

constexpr int rows = 96, cols = 64, steps = 5;

/// The gradient of a step; each rank hands in its share, and the engine adds the shares up.
std::vector<float> grad_share(int step, int rank, int world_size) {
  std::vector<float> grad(rows * cols, 0.0F);
  for (int i = rank; i < rows * cols; i += world_size) grad[i] = std::sin(0.37F * static_cast<float>(i + 100 * step));
  return grad;
}

/// Trains on `world_size` ranks and returns rank 0's weights.
std::vector<float> train(int world_size) {
  auto transports = regatta::make_local_transports(world_size);
  std::vector<float> result(rows * cols);

  auto one_rank = [&](int rank) {
    regatta::Engine engine({{.name = "W", .shape = {rows, cols}}},
                           {{.name = "matrices", .rule = regatta::make_rule("reg", {})}},
                           regatta::sharding::Mesh({{"dp", world_size}}), *transports[rank], {});
    float* weights = static_cast<float*>(engine.param(0).data);
    for (int i = 0; i < rows * cols; ++i) weights[i] = std::cos(0.11F * static_cast<float>(i));
    engine.publish_params();

    for (int step = 0; step < steps; ++step) {
      engine.add_grad(0, grad_share(step, rank, world_size).data(), regatta::DType::f32);
      const regatta::StepReport report = engine.step(/*lr=*/0.02);
      if (rank == 0) std::printf("%d rank(s), step %d: gradient norm %.6f\n", world_size, step, report.grad_norm);
    }
    if (rank == 0) result.assign(weights, weights + rows * cols);
  };

  std::vector<std::jthread> ranks;
  for (int rank = 0; rank < world_size; ++rank) {
    ranks.emplace_back([&, rank] {
      try {
        one_rank(rank);
      } catch (const std::exception& error) {  // the others hear of it instead of waiting
        std::fprintf(stderr, "rank %d: %s\n", rank, error.what());
        transports[rank]->abort(error.what());
      }
    });
  }
  ranks.clear();  // joins
  return result;
}

}  // namespace

int main() {
  const std::vector<float> alone = train(1);
  const std::vector<float> together = train(2);
  const bool equal = std::memcmp(alone.data(), together.data(), alone.size() * sizeof(float)) == 0;
  std::printf("weights after %d steps: %s on 1 and 2 ranks\n", steps, equal ? "equal" : "DIFFERENT");
  return equal ? 0 : 1;
}
