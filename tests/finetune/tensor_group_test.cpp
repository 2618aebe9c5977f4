// Sums, maxima and gathers over tensor-parallel peers against plain loops, of every size around the lines that they are
// cut at, one after another on the same groups.

#include "cli/finetune/tensor_group.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/spmd.h"

namespace regatta::finetune {
namespace {

/// What rank `r` brings in call `call`.
at::Tensor brought(std::vector<std::int64_t> shape, int r, int call, at::ScalarType type = at::kFloat) {
  at::Tensor x = at::empty(shape, at::kFloat);
  for (std::int64_t i = 0; i < x.numel(); ++i)
    x.data_ptr<float>()[i] = static_cast<float>(std::sin(0.7 * static_cast<double>(i + 1) * (r + 2) + call));
  return x.to(type);
}

/// A balanced tree in rank order: pairs of neighbours, then pairs of pairs.
float tree(std::vector<float> values) {
  while (values.size() > 1) {
    std::vector<float> next;
    for (std::size_t i = 0; i < values.size(); i += 2)
      next.push_back(i + 1 < values.size() ? values[i] + values[i + 1] : values[i]);
    values = next;
  }
  return values[0];
}

const std::vector<std::vector<std::int64_t>> shapes{{1},    {15}, {16}, {17},   {3, 5}, {31},  {32},     {33},
                                                    {7, 9}, {64}, {65}, {1000}, {2},    {129}, {4, 100}, {5}};

TEST(TensorGroup, SumsAreTreesInRankOrderOfAnySize) {
  for (const int ranks : {2, 3, 4, 5}) {
    testing::run_ranks(ranks, [&](Transport& transport) {
      const auto group = TensorGroup::make(transport, sharding::Mesh({{"tp", ranks}}));
      EXPECT_EQ(group->size(), ranks);
      EXPECT_EQ(group->rank(), transport.rank());
      std::vector<std::pair<at::Tensor, at::Tensor>> earlier;  // results and copies of them
      int call = 0;
      for (const auto& shape : shapes) {
        ++call;
        const at::Tensor mine = brought(shape, transport.rank(), call);
        const at::Tensor kept = mine.clone();
        const at::Tensor sum = group->reduce(mine, "a test");
        EXPECT_TRUE(mine.equal(kept));
        ASSERT_EQ(sum.sizes().vec(), shape);
        std::vector<at::Tensor> all;
        for (int r = 0; r < ranks; ++r) all.push_back(brought(shape, r, call));
        for (std::int64_t i = 0; i < sum.numel(); ++i) {
          std::vector<float> values;
          for (const at::Tensor& each : all) values.push_back(each.data_ptr<float>()[i]);
          ASSERT_EQ(sum.data_ptr<float>()[i], tree(values)) << ranks << " ranks, " << sum.numel() << " elements, " << i;
        }
        const at::Tensor largest = group->largest(mine);
        for (std::int64_t i = 0; i < sum.numel(); ++i) {
          float expected = -2;
          for (const at::Tensor& each : all) expected = std::max(expected, each.data_ptr<float>()[i]);
          ASSERT_EQ(largest.data_ptr<float>()[i], expected);
        }
        earlier.emplace_back(sum, sum.clone());
        earlier.emplace_back(largest, largest.clone());
      }
      // What was handed out is not written again.
      for (const auto& [result, copy] : earlier) EXPECT_TRUE(result.equal(copy));
    });
  }
}

TEST(TensorGroup, NarrowTensorsAreSummedInFp32) {
  testing::run_ranks(3, [](Transport& transport) {
    const auto group = TensorGroup::make(transport, sharding::Mesh({{"tp", 3}}));
    const at::Tensor sum = group->reduce(brought({50}, transport.rank(), 1, at::kBFloat16), "a test");
    EXPECT_EQ(sum.scalar_type(), at::kBFloat16);
    at::Tensor wide =
        brought({50}, 0, 1, at::kBFloat16).to(at::kFloat) + brought({50}, 1, 1, at::kBFloat16).to(at::kFloat);
    wide = wide + brought({50}, 2, 1, at::kBFloat16).to(at::kFloat);
    EXPECT_TRUE(sum.equal(wide.to(at::kBFloat16)));
  });
}

TEST(TensorGroup, NanWinsWhoeverHasIt) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  for (int who = 0; who < 3; ++who)
    testing::run_ranks(3, [&](Transport& transport) {
      const auto group = TensorGroup::make(transport, sharding::Mesh({{"tp", 3}}));
      at::Tensor x = at::full({40}, transport.rank() == who ? 1.0 : -1.0);
      if (transport.rank() == who) {
        x[3] = nan;
        x[39] = -inf;
      }
      const at::Tensor largest = group->largest(x);
      for (std::int64_t i = 0; i < 40; ++i) {
        const float value = largest.data_ptr<float>()[i];
        if (i == 3) {
          EXPECT_TRUE(std::isnan(value)) << "rank " << who;
        } else {
          EXPECT_EQ(value, i == 39 ? -1.0F : 1.0F);
        }
      }
    });
}

/// Only along tp, each row for itself.
TEST(TensorGroup, PeersAreThoseOfTheOwnRow) {
  testing::run_ranks(6, [](Transport& transport) {
    const sharding::Mesh mesh({{"dp", 3}, {"tp", 2}});
    const auto group = TensorGroup::make(transport, mesh);
    EXPECT_EQ(group->size(), 2);
    EXPECT_EQ(group->rank(), transport.rank() % 2);
    const int row = transport.rank() / 2;
    const at::Tensor sum = group->reduce(at::full({5}, std::pow(10.0, transport.rank())), "a test");
    EXPECT_EQ(sum[4].item<float>(), static_cast<float>(std::pow(10.0, 2 * row) + std::pow(10.0, 2 * row + 1)));
    const auto alone = TensorGroup::make(transport, sharding::Mesh({{"dp", 6}}));
    EXPECT_EQ(alone->size(), 1);
    EXPECT_EQ(alone->reduce(at::full({5}, transport.rank()), "a test")[0].item<int>(), transport.rank());
  });
}

TEST(TensorGroup, SpreadAndSumAreEachOthersBackward) {
  testing::run_ranks(3, [](Transport& transport) {
    const auto group = TensorGroup::make(transport, sharding::Mesh({{"tp", 3}}));
    const int r = transport.rank();
    at::Tensor x = brought({20}, 0, 7).set_requires_grad(true);
    const at::Tensor spread = group->spread(x);
    EXPECT_TRUE(spread.equal(x));
    (spread * (r + 1)).sum().backward();
    EXPECT_TRUE(x.grad().equal(at::full({20}, 6.0)));  // 1 + 2 + 3
    at::Tensor y = brought({20}, r, 8).set_requires_grad(true);
    const at::Tensor sum = group->sum(y);
    EXPECT_TRUE(sum.equal(group->reduce(y.detach(), "a test")));
    (sum * 5).sum().backward();
    EXPECT_TRUE(y.grad().equal(at::full({20}, 5.0)));
    EXPECT_FALSE(group->largest(y).requires_grad());
  });
  const auto alone = TensorGroup::alone();
  const at::Tensor x = at::ones({3});
  EXPECT_TRUE(alone->sum(x).equal(x) && alone->spread(x).equal(x) && alone->largest(x).equal(x));
}

TEST(TensorGroup, GatherBringsEverybodysOwnSizeToTheFirst) {
  testing::run_ranks(4, [](Transport& transport) {
    const auto group = TensorGroup::make(transport, sharding::Mesh({{"tp", 4}}));
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16})
      for (const std::vector<std::int64_t>& rows :
           {std::vector<std::int64_t>{3, 3, 3, 3}, {1, 7, 2, 1}, {5, 1, 0, 4}}) {
        std::vector<std::vector<std::int64_t>> sizes;
        for (const std::int64_t count : rows) sizes.push_back({count, 3});
        const auto mine = static_cast<std::size_t>(transport.rank());
        // A view that is not contiguous.
        const at::Tensor part = brought({3, rows[mine]}, transport.rank(), 9, type).t();
        const std::vector<at::Tensor> all = group->gather(part, sizes, "a test");
        ASSERT_EQ(all.size(), transport.rank() == 0 ? 4U : 0U);
        for (std::size_t r = 0; r < all.size(); ++r)
          EXPECT_TRUE(all[r].equal(brought({3, rows[r]}, static_cast<int>(r), 9, type).t())) << "rank " << r;
      }
  });
  const std::vector<at::Tensor> alone = TensorGroup::alone()->gather(at::ones({2}), {{2}}, "a test");
  ASSERT_EQ(alone.size(), 1U);
  EXPECT_TRUE(alone[0].equal(at::ones({2})));
}

}  // namespace
}  // namespace regatta::finetune
