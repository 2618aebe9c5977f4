// The bits of summed gradients: the order of additions that the engine promises, computed apart, over several steps in
// which gradients come and stay away. A rule without momentum keeps the sum as its state.

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kernels/kernels.h"
#include "runtime/engine/engine.h"
#include "runtime/transport/transport.h"
#include "tests/support/spmd.h"

namespace regatta {
namespace {

using Values = std::vector<float>;
using Settings = std::vector<std::pair<std::string, std::string>>;

// Neighbours first, an odd one out moves up as it is.
Values tree_of(std::vector<Values> level, std::size_t numel) {
  if (level.empty()) return Values(numel);
  while (level.size() > 1) {
    std::vector<Values> next;
    for (std::size_t i = 0; i < level.size(); i += 2) {
      next.push_back(level[i]);
      for (std::size_t e = 0; i + 1 < level.size() && e < numel; ++e) next.back()[e] += level[i + 1][e];
    }
    level = std::move(next);
  }
  return level[0];
}

Values sum_of(const std::vector<Values>& given, std::size_t numel) {
  Values sum = given.empty() ? Values(numel) : given[0];
  for (std::size_t i = 1; i < given.size(); ++i)
    for (std::size_t e = 0; e < numel; ++e) sum[e] += given[i][e];
  return sum;
}

struct Shared {
  Mode mode;
  Accumulation accumulation;
  int dp, micro_batches;
  std::int64_t bucket_bytes;
};

constexpr std::int64_t shapes[][2] = {{6, 5}, {3, 17}, {1, 40}};
constexpr int count = 3;

// Of global micro-batch `index`; the first parameter always has one. Scales differ, so that order shows.
std::vector<float> gradient(int step, int index, int p) {
  std::mt19937_64 random(static_cast<std::uint64_t>(step * 1000 + index * 10 + p));
  std::normal_distribution<float> normal;
  if (p > 0 && random() % 3 == 0) return {};
  Values values(static_cast<std::size_t>(shapes[p][0] * shapes[p][1]));
  for (float& x : values) x = normal(random) * static_cast<float>(1 + random() % 1000);
  return values;
}

Values expected_sum(const Shared& shared, int step, int p) {
  const auto numel = static_cast<std::size_t>(shapes[p][0] * shapes[p][1]);
  const bool tree = shared.accumulation == Accumulation::tree, zero2 = shared.mode == Mode::zero2;
  std::vector<Values> parts;  // of ranks, or in zero2 of micro-batches over all ranks
  for (int outer = 0; outer < (zero2 ? shared.micro_batches : shared.dp); ++outer) {
    std::vector<Values> given;
    for (int inner = 0; inner < (zero2 ? shared.dp : shared.micro_batches); ++inner) {
      const int index = zero2 ? outer * shared.dp + inner : outer * shared.micro_batches + inner;
      Values values = gradient(step, index, p);
      if (zero2 && values.empty()) values.resize(numel);
      if (!values.empty()) given.push_back(std::move(values));
    }
    parts.push_back(tree || zero2 ? tree_of(given, numel) : sum_of(given, numel));
  }
  return zero2 && !tree ? sum_of(parts, numel) : tree_of(parts, numel);
}

TEST(GradientSum, IsMadeInTheOrderThatIsPromised) {
  std::vector<Shared> all;
  for (const std::int64_t bucket_bytes : {std::int64_t{1}, std::int64_t{1} << 20}) {
    for (int micro_batches = 1; micro_batches <= 9; ++micro_batches)
      for (const Mode mode : {Mode::zero1, Mode::zero2})
        for (const Accumulation accumulation : {Accumulation::sum, Accumulation::tree})
          all.push_back({mode, accumulation, 1, micro_batches, bucket_bytes});
    for (const int dp : {2, 3, 4})
      for (const int micro_batches : {1, 2, 3, 4})
        for (const Mode mode : {Mode::zero1, Mode::zero2}) {
          all.push_back({mode, Accumulation::sum, dp, micro_batches, bucket_bytes});
          if ((mode == Mode::zero1 ? micro_batches : dp) != 3)
            all.push_back({mode, Accumulation::tree, dp, micro_batches, bucket_bytes});
        }
  }
  for (const Shared& shared : all) {
    SCOPED_TRACE("mode " + std::to_string(static_cast<int>(shared.mode)) + ", accumulation " +
                 std::to_string(static_cast<int>(shared.accumulation)) + ", " + std::to_string(shared.dp) + " ranks, " +
                 std::to_string(shared.micro_batches) + " micro-batches, buckets of " +
                 std::to_string(shared.bucket_bytes));
    testing::run_ranks(shared.dp, [&](Transport& transport) {
      EngineOptions options;
      options.mode = shared.mode;
      options.accumulation = shared.accumulation;
      options.micro_batches = shared.micro_batches;
      options.bucket_bytes = shared.bucket_bytes;
      options.cut = sharding::Cut::element;
      std::vector<Param> params;
      for (int p = 0; p < count; ++p) params.push_back({"p" + std::to_string(p), {shapes[p][0], shapes[p][1]}});
      Engine engine(params, {{"all", make_rule("reg", Settings{{"momentum", "0"}}), 1}},
                    sharding::Mesh({{"dp", shared.dp}}), transport, options);
      engine.publish_params();
      for (int step = 0; step < 3; ++step) {
        for (int k = 0; k < shared.micro_batches; ++k)
          for (int p = 0; p < count; ++p) {
            const Values values = gradient(step, static_cast<int>(engine.micro_batch_index(k)), p);
            if (!values.empty()) engine.add_grad(p, values.data(), DType::f32);
          }
        engine.step(0.1);
        for (const StatePart& part : engine.state_parts()) {
          const Values sum = expected_sum(shared, step, part.param);
          const auto* got = static_cast<const float*>(part.data);
          for (std::int64_t i = 0; i < part.part.run.size(); ++i)
            ASSERT_EQ(got[i], sum[part.part.rows.begin * part.shape.cols + part.part.run.begin + i])
                << "parameter " << part.param << ", step " << step << ", element " << part.part.run.begin + i;
        }
      }
    });
  }
}

// Chunks of several tiles of a reduction, with parameters that end inside of them: whole numbers, so that any order is
// right.
TEST(GradientSum, OfMoreThanOneTile) {
  const std::vector<std::vector<std::int64_t>> large{{300, 501}, {7}, {500, 201}};
  const auto value = [](int step, int index, int p, std::int64_t i) {
    return static_cast<float>((i * 7 + step * 3 + index * 5 + p) % 61 - 30);
  };
  for (const Mode mode : {Mode::zero1, Mode::zero2})
    for (const int micro_batches : {1, 2})
      for (const DType dtype : {DType::f32, DType::bf16}) {
        SCOPED_TRACE("mode " + std::to_string(static_cast<int>(mode)) + ", " + std::to_string(micro_batches));
        testing::run_ranks(2, [&](Transport& transport) {
          EngineOptions options;
          options.mode = mode;
          options.micro_batches = micro_batches;
          options.cut = sharding::Cut::element;
          std::vector<Param> params;
          for (const auto& shape : large) {
            params.push_back({"p" + std::to_string(params.size()), shape});
            params.back().grad_dtype = dtype;
          }
          Engine engine(params, {{"all", make_rule("reg", Settings{{"momentum", "0"}}), 1}},
                        sharding::Mesh({{"dp", 2}}), transport, options);
          engine.publish_params();
          for (int step = 0; step < 2; ++step) {
            for (int k = 0; k < micro_batches; ++k)
              for (int p = 2; p >= 0; --p) {
                Values values(static_cast<std::size_t>(engine.param(p).numel));
                const int index = static_cast<int>(engine.micro_batch_index(k));
                for (std::int64_t i = 0; i < std::ssize(values); ++i) values[i] = value(step, index, p, i);
                std::vector<std::byte> bytes(values.size() * static_cast<std::size_t>(size_of(dtype)));
                kernels::cpu_kernels().from_f32(values.data(), bytes.data(), dtype, std::ssize(values));
                engine.add_grad(p, bytes.data(), dtype);
              }
            const StepReport report = engine.step(0.1);
            double squares = 0;
            for (int p = 0; p < 3; ++p)
              for (std::int64_t i = 0; i < engine.param(p).numel; ++i) {
                double sum = 0;
                for (int index = 0; index < 2 * micro_batches; ++index) sum += value(step, index, p, i);
                squares += sum * sum;
              }
            EXPECT_EQ(report.grad_norm, std::sqrt(squares));
            for (const StatePart& part : engine.state_parts()) {
              const std::int64_t begin = part.part.rows.begin * part.shape.cols + part.part.run.begin;
              bool equal = true;
              for (std::int64_t i = 0; i < part.part.run.size(); ++i) {
                float sum = 0;
                for (int index = 0; index < 2 * micro_batches; ++index)
                  sum += value(step, index, part.param, begin + i);
                equal &= static_cast<const float*>(part.data)[i] == sum;
              }
              EXPECT_TRUE(equal) << "parameter " << part.param << ", step " << step;
            }
          }
        });
      }
}

}  // namespace
}  // namespace regatta
