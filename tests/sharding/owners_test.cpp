// Whole matrices dealt out to owners, and the bytes between them and the holders.

#include "sharding/owners.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "sharding/plan.h"

namespace regatta::sharding {
namespace {

TEST(Owners, MostWorkFirstToTheLeastBusyHolder) {
  const std::vector<MatrixTask> tasks{{3, {0, 1}, 0}, {5, {0, 1}, 0}, {4, {0, 1}, 0}, {1, {1, 2}, 1}};
  EXPECT_EQ(assign_owners(tasks, 3), (std::vector<int>{1, 0, 1, 2}));
}

TEST(Owners, AreAlwaysHolders) {
  std::mt19937 random(5);
  std::vector<MatrixTask> tasks;
  for (int i = 0; i < 200; ++i) {
    std::vector<int> holders;
    for (int rank = 0; rank < 7; ++rank)
      if (random() % 2) holders.push_back(rank);
    if (holders.empty()) holders.push_back(static_cast<int>(random() % 7));
    tasks.push_back({1.0 + random() % 9, holders, i / 20});
  }
  const std::vector<int> owners = assign_owners(tasks, 7);
  for (std::size_t i = 0; i < tasks.size(); ++i)
    EXPECT_TRUE(std::binary_search(tasks[i].holders.begin(), tasks[i].holders.end(), owners[i]));
}

ParamSpec whole(const std::string& name, std::int64_t rows, std::int64_t cols, const std::string& place = "") {
  ParamSpec spec{name, {rows, cols}, DType::bf16, DType::bf16, Placement::parse(place), {{rows, cols}}, {}, {}};
  spec.views.push_back(View::matrix({.element_bytes = 2}));
  return spec;
}

struct Decoder {
  const char* name;
  int layers;
  std::int64_t hidden, key_value, intermediate;
};

std::vector<ParamSpec> matrices_of(const Decoder& decoder, bool over_tp) {
  std::vector<ParamSpec> params;
  const auto add = [&](int layer, const char* name, std::int64_t rows, std::int64_t cols, const char* place) {
    params.push_back(whole(std::to_string(layer) + name, rows, cols, over_tp ? place : ""));
  };
  for (int layer = 0; layer < decoder.layers; ++layer) {
    add(layer, ".q", decoder.hidden, decoder.hidden, "tp:0");
    add(layer, ".k", decoder.key_value, decoder.hidden, "tp:0");
    add(layer, ".v", decoder.key_value, decoder.hidden, "tp:0");
    add(layer, ".o", decoder.hidden, decoder.hidden, "tp:1");
    add(layer, ".gate", decoder.intermediate, decoder.hidden, "tp:0");
    add(layer, ".up", decoder.intermediate, decoder.hidden, "tp:0");
    add(layer, ".down", decoder.hidden, decoder.intermediate, "tp:1");
  }
  return params;
}

TEST(Owners, TheBusiestOfEightIsNearTheMean) {  // within 15 %, in every layout of 8 ranks
  for (const Decoder& decoder : {Decoder{"1B", 22, 2048, 256, 5632}, Decoder{"1.5B", 28, 1536, 256, 8960},
                                 Decoder{"7B", 32, 4096, 4096, 11008}, Decoder{"8B", 32, 4096, 1024, 14336}}) {
    for (const char* mesh : {"dp=8", "dp=4,tp=2", "dp=2,tp=4", "tp=8"}) {
      for (const Cut cut : {Cut::row, Cut::element}) {
        PlanOptions options;
        options.cut = cut;
        const Plan plan(Mesh::parse(mesh), matrices_of(decoder, Mesh::parse(mesh).size("tp") > 1), options);
        std::vector<double> work(8);
        for (const MatrixShare& share : plan.matrices())
          work[share.owner] += newton_schulz_work(plan.params()[share.param].blocks[share.block]);
        const double mean = std::accumulate(work.begin(), work.end(), 0.0) / 8;
        const double busiest = *std::max_element(work.begin(), work.end()) / mean;
        EXPECT_LT(busiest, 1.15) << decoder.name << " on " << mesh;
        RecordProperty(std::string(decoder.name) + " " + mesh, std::to_string(busiest));
      }
    }
  }
}

TEST(Owners, ABytesOfAPartAreElementsLinesAndNumbers) {
  const View view = View::matrix({.element_bytes = 2,
                                  .row_bytes = 24,
                                  .column_bytes = 48,
                                  .block_bytes = 64,
                                  .row_answer_bytes = 4,
                                  .column_answer_bytes = 8,
                                  .block_answer_bytes = 16});
  const BlockPart part{{10, 20}, {4, 9}, {3, 14}};  // 11 elements, rows 10 to 12 of 5 columns
  EXPECT_EQ(message_rows(part), (Range{10, 13}));
  EXPECT_EQ(element_section(view, part), 24);  // 22, rounded up
  EXPECT_EQ(bytes_to_owner(view, part), 24 + 3 * 24 + 5 * 48 + 64);
  EXPECT_EQ(bytes_from_owner(view, part), 24 + 3 * 4 + 5 * 8 + 16);
}

TEST(Owners, CutAtMatricesNothingTravels) {
  PlanOptions options;
  options.cut = Cut::matrix;
  const Plan plan(Mesh::parse("dp=2"), {whole("a", 10, 4), whole("b", 4, 10), whole("c", 6, 6)}, options);
  ASSERT_EQ(plan.matrices().size(), 3U);
  for (const MatrixShare& share : plan.matrices()) EXPECT_FALSE(share.open());
  for (int rank = 0; rank < 2; ++rank) EXPECT_EQ(plan.wire_bytes(rank).exchange, 0);
}

TEST(Owners, OneMatrixOverFourRanksTravelsThereAndBack) {
  const Plan plan(Mesh::parse("dp=4"), {whole("a", 16, 8)}, {});
  ASSERT_EQ(plan.matrices().size(), 1U);
  const int owner = plan.matrices()[0].owner;
  for (int rank = 0; rank < 4; ++rank)
    EXPECT_EQ(plan.wire_bytes(rank).exchange, rank == owner ? 3 * 32 * 2 : 32 * 2) << rank;
}

TEST(Owners, ReplicasOverTpEachHaveTheirOwn) {
  const Plan plan(Mesh::parse("dp=2,tp=2"), {whole("a", 16, 8)}, {});
  ASSERT_EQ(plan.matrices().size(), 2U);
  for (const MatrixShare& share : plan.matrices()) EXPECT_EQ(share.holders.size(), 2U);
}

TEST(Owners, AWaveHasAMatrixForEveryRank) {
  std::vector<ParamSpec> params;
  for (int i = 0; i < 10; ++i) params.push_back(whole("w" + std::to_string(i), 64, 64));
  PlanOptions options;
  options.bucket_bytes = 1;  // a bucket each
  const Plan plan(Mesh::parse("dp=4"), params, options);
  EXPECT_EQ(plan.wave_count(), 3);  // 4, 4, 2
  for (const MatrixShare& share : plan.matrices()) EXPECT_LE(share.wave, 2);
  std::vector<int> owned(4);
  for (const MatrixShare& share : plan.matrices())
    if (share.wave == 0) ++owned[share.owner];
  EXPECT_EQ(owned, (std::vector<int>{1, 1, 1, 1}));
}

TEST(Owners, TheFingerprintKnowsTheMessages) {
  const std::vector<ParamSpec> one{whole("a", 16, 8)};
  std::vector<ParamSpec> other = one;
  other[0].views[0] = View::matrix({.element_bytes = 4});
  EXPECT_NE(Plan(Mesh::parse("dp=2"), one, {}).fingerprint(), Plan(Mesh::parse("dp=2"), other, {}).fingerprint());
}

}  // namespace
}  // namespace regatta::sharding
