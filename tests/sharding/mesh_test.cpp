#include "sharding/mesh.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace regatta::sharding {
namespace {

TEST(Mesh, LastAxisIsFastest) {
  const Mesh mesh({{"dp", 2}, {"tp", 3}});
  EXPECT_EQ(mesh.world_size(), 6);
  EXPECT_EQ(mesh.coordinate(4, "dp"), 1);
  EXPECT_EQ(mesh.coordinate(4, "tp"), 1);
  EXPECT_EQ(mesh.coordinate(5, "tp"), 2);
}

TEST(Mesh, GroupsVaryOnlyAlongTheNamedAxes) {
  const Mesh mesh({{"dp", 2}, {"tp", 3}});
  EXPECT_EQ(mesh.group(4, {"tp"}), (std::vector<int>{3, 4, 5}));
  EXPECT_EQ(mesh.group(4, {"dp"}), (std::vector<int>{1, 4}));
  EXPECT_EQ(mesh.group(4, {}), (std::vector<int>{4}));
  EXPECT_EQ(mesh.group(4, {"dp", "tp"}), (std::vector<int>{0, 1, 2, 3, 4, 5}));
}

TEST(Mesh, ThreeAxes) {
  const Mesh mesh = Mesh::parse("dp=2,ep=2,tp=2");
  EXPECT_EQ(mesh.group(5, {"dp", "tp"}), (std::vector<int>{0, 1, 4, 5}));
  EXPECT_EQ(mesh.group(5, {"ep"}), (std::vector<int>{5, 7}));
}

TEST(Mesh, UnknownAxisHasSizeOne) {
  const Mesh mesh({{"dp", 4}});
  EXPECT_EQ(mesh.size("tp"), 1);
  EXPECT_EQ(mesh.coordinate(3, "tp"), 0);
}

TEST(Mesh, EmptyIsOneRank) { EXPECT_EQ(Mesh().world_size(), 1); }

TEST(Mesh, ParseAndTextAgree) {
  EXPECT_EQ(Mesh::parse("dp=4,tp=2"), Mesh({{"dp", 4}, {"tp", 2}}));
  EXPECT_EQ(Mesh::parse("dp=4,tp=2").text(), "dp=4,tp=2");
}

TEST(Mesh, WrongTextIsRefusedWithASentence) {
  for (const char* text : {"dp", "dp=", "dp=x", "dp=2x", "=2", "dp=0", "dp=-1", "dp=2,dp=2", "dp=99999999,tp=99999999"})
    EXPECT_THROW(Mesh::parse(text), std::invalid_argument) << text;
  try {
    Mesh::parse("dp=2,tp:2");
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(), "mesh 'dp=2,tp:2': 'tp:2' is not NAME=SIZE; expected for example dp=2 or dp=2,tp=2");
  }
}

}  // namespace
}  // namespace regatta::sharding
