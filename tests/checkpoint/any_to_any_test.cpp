// A checkpoint knows nothing of the layout it is read on: saved on four ranks, it gives every other layout the same
// state, and a job that goes on from it ends with the same bits.

#include <gtest/gtest.h>

#include "tests/checkpoint/small_job.h"

namespace regatta::testing {
namespace {

using sharding::Cut;

std::string name_of(const Layout& layout) {
  return layout.mesh + " mode " + std::to_string(static_cast<int>(layout.mode)) + " cut " +
         std::to_string(static_cast<int>(layout.cut)) + " bucket " + std::to_string(layout.bucket_bytes) + " place '" +
         layout.place + "'";
}

const std::vector<Layout> others{{"dp=1"},
                                 {"dp=2"},
                                 {"dp=3"},
                                 {"dp=4", Mode::zero1, Cut::element, 64},
                                 {"dp=2", Mode::zero1, Cut::matrix},
                                 {"dp=3", Mode::zero2, Cut::element},
                                 {"dp=2,tp=2", Mode::zero1, Cut::row, 25 << 20, "tp:0"},
                                 {"dp=2,tp=2", Mode::zero2, Cut::element, 100, "tp:1"},
                                 {"tp=3", Mode::zero1, Cut::row, 25 << 20, "tp:1"},
                                 {"dp=3", Mode::sharded, Cut::row, 25 << 20, "dp:0"},
                                 {"dp=4", Mode::sharded, Cut::row, 25 << 20, "dp:flat"},
                                 {"dp=2,tp=2", Mode::sharded, Cut::row, 25 << 20, "tp:1,dp:0"}};

TEST(AnyToAny, EveryLayoutLoadsWhatFourRanksSaved) {
  for (const DType momentum : {DType::f32, DType::bf16}) {
    const TestFolder folder;
    SmallJob job(momentum);
    const SmallJob::Whole saved = job.run({"dp=4"}, "", 3, checkpoint::SaveSettings{.folder = folder.path()});
    // 6 weights; reg keeps a momentum per block (wide, 3 of fused, half, column), adamw two moments (embed, gain); half
    // has master weights.
    EXPECT_EQ(saved.size(), 6U + 6U + 4U + 1U);
    for (const Layout& layout : others)
      EXPECT_EQ(job.run(layout, folder.at("step-00000003"), 3), saved) << name_of(layout);
  }
}

TEST(AnyToAny, GoingOnEndsWithTheBitsOfTheUninterruptedRun) {
  const TestFolder folder;
  SmallJob job;
  const SmallJob::Whole straight = job.run({"dp=4"}, "", 6);
  const SmallJob::Whole half_way = job.run({"dp=4"}, "", 3, checkpoint::SaveSettings{.folder = folder.path()});
  EXPECT_NE(straight, half_way);
  // Eight micro-batches make the same tree on 1, 2 and 4 ranks, and on other layouts of them.
  for (const Layout& layout : std::vector<Layout>{{"dp=1"},
                                                  {"dp=2"},
                                                  {"dp=4"},
                                                  {"dp=2", Mode::zero1, Cut::element, 64},
                                                  {"dp=2,tp=2", Mode::zero1, Cut::row, 25 << 20, "tp:1"}})
    EXPECT_EQ(job.run(layout, folder.at("step-00000003"), 6), straight) << name_of(layout);
}

TEST(AnyToAny, SavedAgainElsewhereAndLoadedBackNothingIsLost) {
  const TestFolder first, second;
  SmallJob job;
  const SmallJob::Whole saved = job.run({"dp=4"}, "", 2, checkpoint::SaveSettings{.folder = first.path()});
  job.run({"dp=3", Mode::zero1, Cut::element, 64}, first.at("step-00000002"), 2,
          checkpoint::SaveSettings{.folder = second.path()});
  EXPECT_EQ(job.run({"dp=2"}, second.at("step-00000002"), 2), saved);
}

}  // namespace
}  // namespace regatta::testing
