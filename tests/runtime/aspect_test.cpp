// A shard may have another aspect than its matrix: 8960 x 1536 is tall, an eighth of its rows, 1120 x 1536, is wide.
// The direction of a line is the whole matrix's, on the true shape, against the formula in double precision.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "runtime/engine/engine.h"
#include "runtime/transport/transport.h"
#include "sharding/reshard.h"
#include "tests/support/spmd.h"

namespace regatta {
namespace {

constexpr std::int64_t rows = 8960, cols = 1536;
constexpr double lr = 0.02, mu = 0.95, rho = 0.2, weight_decay = 0.01;

// Values in [-1, 1) from an element's index.
float noise(std::int64_t element, std::uint64_t seed) {
  std::uint64_t x = static_cast<std::uint64_t>(element) * 0x9e3779b97f4a7c15 + seed;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return static_cast<float>(static_cast<std::int32_t>(x >> 32)) * 0x1p-31F;
}

float weight(std::int64_t element) { return noise(element, 1); }

// Scales differ from row to row and from column to column, so that rows and columns give clearly different updates.
float gradient(std::int64_t element) {
  const std::int64_t row = element / cols, col = element % cols;
  return noise(element, 2) * static_cast<float>(1 + row % 7) * std::ldexp(1.0F, -static_cast<int>(col % 5));
}

std::vector<float> updated(const std::string& mesh_text, Mode mode, const std::string& place) {
  const sharding::Mesh mesh = sharding::Mesh::parse(mesh_text);
  std::vector<float> whole(rows * cols);
  testing::run_ranks(mesh.world_size(), [&](Transport& transport) {
    EngineOptions options;
    options.mode = mode;
    const std::vector<std::pair<std::string, std::string>> settings{
        {"momentum", "0.95"}, {"rho", "0.2"}, {"weight_decay", "0.01"}, {"p", "2"}, {"passes", "1"}};
    Engine engine({{"up", {rows, cols}, DType::f32, {}, sharding::Placement::parse(place), {}, 0}},
                  {{"reg", make_rule("reg", settings), 1}}, mesh, transport, options);
    const sharding::BlockPart part = engine.plan().local_parts(transport.rank(), 0).front();
    if (mesh.world_size() == 8) {
      EXPECT_EQ(part.rows.size(), 1120);
      EXPECT_EQ(part.cols.size(), cols);
    }
    auto* values = static_cast<float*>(engine.param(0).data);
    std::vector<float> grad(engine.param(0).numel);
    const std::vector<sharding::Stretch> held = sharding::stretches(part, cols);
    for (const sharding::Stretch& s : held)
      for (std::int64_t i = 0; i < s.count; ++i) {
        values[s.in_part + i] = weight(s.in_block + i);
        grad[s.in_part + i] = gradient(s.in_block + i);
      }
    engine.publish_params();
    engine.add_grad(0, grad.data(), DType::f32);
    engine.step(lr);
    for (const sharding::Stretch& s : held)  // disjoint on the ranks
      std::memcpy(whole.data() + s.in_block, values + s.in_part, s.count * sizeof(float));
  });
  return whole;
}

// One step from zero momentum, normalised along `line`.
std::vector<double> formula(Line line) {
  std::vector<double> squares(line == Line::row ? rows : cols);
  for (std::int64_t e = 0; e < rows * cols; ++e) {
    const double momentum = (1 - mu) * gradient(e);
    squares[line == Line::row ? e / cols : e % cols] += momentum * momentum;
  }
  const double scale = lr * rho * std::sqrt(static_cast<double>(std::max(rows, cols)));
  std::vector<double> result(rows * cols);
  for (std::int64_t e = 0; e < rows * cols; ++e) {
    const double norm = std::sqrt(squares[line == Line::row ? e / cols : e % cols]);
    result[e] = weight(e) * (1 - lr * weight_decay) - scale * (1 - mu) * gradient(e) / norm;
  }
  return result;
}

double worst_difference(const std::vector<float>& values, const std::vector<double>& expected) {
  double worst = 0;
  for (std::size_t i = 0; i < values.size(); ++i) worst = std::max(worst, std::fabs(values[i] - expected[i]));
  return worst;
}

TEST(Aspect, ShardsWiderThanTheirTallMatrixNormaliseItsColumns) {
  const std::vector<float> whole = updated("dp=1,tp=1", Mode::zero1, "");
  // Updates are near lr * rho = 0.004; weights, below 1, are rounded by up to 2^-24.
  EXPECT_LT(worst_difference(whole, formula(Line::column)), 2e-7);
  EXPECT_GT(worst_difference(whole, formula(Line::row)), 1e-3);  // what the shard's own aspect would give
  EXPECT_TRUE(whole == updated("dp=1,tp=8", Mode::zero1, "tp:0"));
  EXPECT_TRUE(whole == updated("dp=8", Mode::sharded, "dp:0"));
  EXPECT_TRUE(whole == updated("dp=2,tp=4", Mode::sharded, "tp:0,dp:0"));
}

}  // namespace
}  // namespace regatta
