// A rank's state as a safetensors file: every part comes back with all that describes it, and what does not fit its
// tensor is refused with the file's name.

#include "runtime/checkpoint/state_file.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "runtime/error.h"
#include "tests/checkpoint/test_folder.h"

namespace regatta::checkpoint {
namespace {

using Json = nlohmann::ordered_json;
using regatta::testing::TestFolder;

GivenPart part(StateKey key, MatrixShape block, sharding::BlockPart part, DType dtype, const void* data) {
  GivenPart given;
  given.key = std::move(key);
  given.block = block;
  given.part = part;
  given.dtype = dtype;
  given.data = data;
  return given;
}

class StateFile : public ::testing::Test {
 protected:
  StateFile() {
    for (std::size_t i = 0; i < values_.size(); ++i) values_[i] = static_cast<float>(i) + 0.5F;
    // All numbers of a part differ.
    parts_ = {part({"a/b", "momentum", 0}, {19, 17}, {{3, 11}, {2, 15}, {5, 29}}, DType::f32, values_.data()),
              part({"a/b", "momentum", 2}, {23, 9}, {{4, 21}, {1, 8}, {6, 13}}, DType::bf16, values_.data() + 30),
              part({"a", "b", 1}, {5, 6}, {{1, 2}, {3, 6}, {0, 0}}, DType::f16, nullptr),
              part({"gain", "moment2", 0}, {1, 7}, {{0, 1}, {0, 7}, {0, 7}}, DType::f32, values_.data() + 40)};
    path_ = folder_.at("state-00000.safetensors");
  }
  std::vector<StoredPart> write_and_read(const safetensors::Metadata& metadata) {
    safetensors::write(path_, state_tensors(parts_), metadata);
    return stored_parts(safetensors::File(path_));
  }
  std::string refusal(const safetensors::Metadata& metadata) {
    try {
      write_and_read(metadata);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_argument) << error.what();
      EXPECT_NE(std::string(error.what()).find(path_), std::string::npos) << error.what();
      return error.what();
    }
    return "(was read)";
  }
  /// With one value of one part changed.
  std::string refusal(std::size_t at, const std::string& pointer, const Json& value) {
    safetensors::Metadata metadata = state_metadata(parts_, 7);
    Json list = Json::parse(metadata.at("parts"));
    list[at][Json::json_pointer(pointer)] = value;
    metadata["parts"] = list.dump();
    return refusal(metadata);
  }

  TestFolder folder_;
  std::string path_;
  std::vector<float> values_ = std::vector<float>(64);
  std::vector<GivenPart> parts_;
};

TEST_F(StateFile, EveryPartComesBack) {
  const safetensors::Metadata metadata = state_metadata(parts_, 7);
  EXPECT_EQ(metadata.at("format"), "regatta.state.1");
  EXPECT_EQ(metadata.at("step"), "7");
  const std::vector<StoredPart> read = write_and_read(metadata);
  ASSERT_EQ(read.size(), parts_.size());
  const std::string file = regatta::testing::bytes_in(path_);
  for (std::size_t i = 0; i < read.size(); ++i) {
    EXPECT_EQ(read[i].key, parts_[i].key);
    EXPECT_EQ(read[i].block, parts_[i].block);
    EXPECT_EQ(read[i].part, parts_[i].part);
    EXPECT_EQ(read[i].dtype, parts_[i].dtype);
    const auto bytes = static_cast<std::size_t>(parts_[i].part.run.size() * size_of(parts_[i].dtype));
    if (bytes > 0) {
      EXPECT_EQ(std::memcmp(file.data() + read[i].offset, parts_[i].data, bytes), 0) << i;
    }
  }
  const safetensors::File written(path_);
  EXPECT_NE(written.find("momentum/a/b/2"), nullptr);  // the name that the format's description gives
}

TEST_F(StateFile, WhatDoesNotFitIsRefused) {
  EXPECT_NE(refusal({{"format", "regatta.state.1"}}).find("parts"), std::string::npos);
  for (const char* text : {"", "[", "3", "[3]", "[{}]", "null3"})
    EXPECT_NE(refusal(safetensors::Metadata{{"parts", text}}), "(was read)") << text;
  for (const char* field : {"tensor", "param", "state", "block", "block_shape", "rows", "cols", "run"}) {
    safetensors::Metadata metadata = state_metadata(parts_, 7);
    Json list = Json::parse(metadata.at("parts"));
    list[1].erase(field);
    metadata["parts"] = list.dump();
    EXPECT_NE(refusal(metadata), "(was read)") << field;
    EXPECT_NE(refusal(1, std::string("/") + field, Json{{"x", 1}}), "(was read)") << field;
    EXPECT_NE(refusal(1, std::string("/") + field, nullptr), "(was read)") << field;
  }
  struct Case {
    const char* pointer;
    int value;
    bool fits;
  };
  // Of the part {3, 11} x {2, 15}, run {5, 29}, of a 19 x 17 block.
  for (const Case& each :
       {Case{"/block_shape/0", 11, true}, Case{"/block_shape/0", 10, false}, Case{"/block_shape/1", 15, true},
        Case{"/block_shape/1", 14, false}, Case{"/rows/1", 19, true}, Case{"/rows/1", 20, false},
        Case{"/rows/0", 0, true}, Case{"/rows/0", -1, false}, Case{"/rows/1", 2, false}, Case{"/cols/1", 17, true},
        Case{"/cols/1", 18, false}, Case{"/cols/0", 0, true}, Case{"/cols/0", -1, false}, Case{"/cols/1", 1, false},
        Case{"/run/0", 4, false}, Case{"/run/0", 6, false}, Case{"/run/1", 28, false}, Case{"/run/1", 30, false}}) {
    const std::string said = refusal(0, each.pointer, each.value);
    EXPECT_EQ(said == "(was read)", each.fits) << each.pointer << " " << each.value << ": " << said;
    if (!each.fits) {
      EXPECT_NE(said.find("a/b momentum"), std::string::npos) << said;
    }
  }
  // Runs of the right length that leave their rectangle of 104 elements.
  EXPECT_EQ(refusal(0, "/run", Json{80, 104}), "(was read)");
  EXPECT_NE(refusal(0, "/run", Json{81, 105}), "(was read)");
  EXPECT_NE(refusal(0, "/run", Json{-1, 23}), "(was read)");
  EXPECT_NE(refusal(0, "/tensor", "momentum/a/b/1").find("lacks"), std::string::npos);
  EXPECT_NE(refusal(0, "/tensor", "moment2/gain/0"), "(was read)");  // there, but of another length
}

TEST_F(StateFile, TensorsOfOtherElementsAreRefused) {
  write_and_read(state_metadata(parts_, 7));
  std::string file = regatta::testing::bytes_in(path_);
  file.replace(file.find("\"F32\""), 5, "\"I32\"");
  regatta::testing::put(path_, file);
  EXPECT_THROW(stored_parts(safetensors::File(path_)), Error);
}

}  // namespace
}  // namespace regatta::checkpoint
