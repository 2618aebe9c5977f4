#include "runtime/checkpoint/safetensors.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>

#include "runtime/error.h"

namespace regatta::safetensors {
namespace {

namespace fs = std::filesystem;

class Safetensors : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() / ("safetensors_test." + std::to_string(::getpid()) + "." + info->name());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string at(const std::string& name) const { return (folder_ / name).string(); }

  std::string put(const std::string& bytes, const std::string& name = "case.safetensors") const {
    std::ofstream(at(name), std::ios::binary) << bytes;
    return at(name);
  }
  /// A file of this header, said to be `claimed` bytes long (its true length if negative), and this many data bytes.
  std::string put_header(const std::string& header, std::size_t data_bytes, long claimed = -1) const {
    const std::uint64_t length = claimed < 0 ? header.size() : static_cast<std::uint64_t>(claimed);
    std::string bytes(8, '\0');
    for (int i = 0; i < 8; ++i) bytes[static_cast<std::size_t>(i)] = static_cast<char>(length >> (8 * i));
    return put(bytes + header + std::string(data_bytes, '\1'));
  }
  static std::string bytes_of(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }
  /// The sentence with which opening `path` fails; it must name the file.
  static std::string refusal(const std::string& path) {
    try {
      Model model(path);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_argument);
      const std::string text = error.what();
      EXPECT_NE(text.find(path.substr(0, path.rfind('/'))), std::string::npos) << text;
      return text;
    }
    return "(was read)";
  }
  fs::path folder_;
};

#define EXPECT_SAYS(sentence, words) \
  EXPECT_NE((sentence).find(words), std::string::npos) << "'" << (sentence) << "' lacks '" << (words) << "'"

TEST_F(Safetensors, RoundTripKeepsEveryByte) {
  std::vector<float> wide(6);
  std::iota(wide.begin(), wide.end(), -2.5F);
  const std::vector<std::uint16_t> narrow = {0x3f80, 0x7fc0, 0x0001};
  const float scalar = 7;
  const std::vector<Source> tensors = {{"narrow", DType::bf16, {3}, narrow.data()},
                                       {"wide \"quoted\"", DType::f32, {2, 3}, wide.data()},
                                       {"half", DType::f16, {1, 3, 1}, narrow.data()},
                                       {"empty", DType::f32, {0, 4}, nullptr},
                                       {"scalar", DType::f32, {}, &scalar}};
  write(at("a.safetensors"), tensors, {{"step", "12"}, {"format", "pt"}});

  const File file(at("a.safetensors"));
  EXPECT_EQ(file.tensors().size(), 5U);
  EXPECT_EQ(file.metadata().at("step"), "12");
  for (const Source& source : tensors) {
    const Tensor* tensor = file.find(source.name);
    ASSERT_NE(tensor, nullptr) << source.name;
    EXPECT_EQ(tensor->shape, source.shape);
    EXPECT_EQ(tensor->element_type(), source.dtype);
    std::vector<std::byte> bytes(static_cast<std::size_t>(tensor->bytes()));
    file.read(*tensor, bytes);
    if (!bytes.empty()) {
      EXPECT_EQ(std::memcmp(bytes.data(), source.data, bytes.size()), 0) << source.name;
    }
    EXPECT_EQ(tensor->begin % size_of(source.dtype), 0);
  }
  EXPECT_EQ(file.find("absent"), nullptr);
  EXPECT_FALSE(fs::exists(at("a.safetensors.partial")));
  // The header is padded so that the data starts at a multiple of 8 in the file.
  EXPECT_EQ((fs::file_size(at("a.safetensors")) - 6 * 4 - 4 - 12) % 8, 0U);
}

TEST_F(Safetensors, PartsOfATensorCanBeRead) {
  const std::vector<float> values = {0, 1, 2, 3, 4, 5};
  write(at("a.safetensors"), std::vector<Source>{{"w", DType::f32, {6}, values.data()}});
  const File file(at("a.safetensors"));
  float two[2];
  file.read_part(*file.find("w"), 8, std::as_writable_bytes(std::span(two)));
  EXPECT_EQ(two[0], 2);
  EXPECT_EQ(two[1], 3);
  EXPECT_THROW(file.read_part(*file.find("w"), 20, std::as_writable_bytes(std::span(two))), Error);
  EXPECT_THROW(file.read(*file.find("w"), std::as_writable_bytes(std::span(two))), Error);
}

TEST_F(Safetensors, OtherElementTypesAreRaw) {
  const std::string path = put_header(
      R"({"ids":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},"mask":{"dtype":"BOOL","shape":[3],"data_offsets":[16,19]}})",
      19);
  const File file(path);
  EXPECT_EQ(file.find("ids")->element_type(), std::nullopt);
  EXPECT_EQ(file.find("mask")->bytes(), 3);
}

TEST_F(Safetensors, DamageIsNamed) {
  EXPECT_SAYS(refusal(at("absent.safetensors")), "No such file");
  EXPECT_SAYS(refusal(put("")), "0 bytes long");
  EXPECT_SAYS(refusal(put("plain text, no tensors at all")), "claims a header");
  EXPECT_SAYS(refusal(put_header("{}", 0, 100)), "claims a header of 100 bytes");
  EXPECT_SAYS(refusal(put_header("[1]", 0)), "does not start with '{'");
  EXPECT_SAYS(refusal(put_header("{\"a\":", 0)), "not valid UTF-8 JSON at byte");
  EXPECT_SAYS(refusal(put_header("{\"a\xff\":1}", 0)), "not valid UTF-8 JSON at byte");
  EXPECT_SAYS(refusal(put_header(R"({"a":{"dtype":"F32"}})", 0)), "tensor 'a' has no well-formed");
  EXPECT_SAYS(refusal(put_header(R"({"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}})", 4)),
              "unknown dtype 'F33'");
  EXPECT_SAYS(refusal(put_header(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4)),
              "the dim or offset -1");
  EXPECT_SAYS(refusal(put_header(R"({"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}})", 4)), "1.5");
  EXPECT_SAYS(refusal(put_header(R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", 0)),
              "too large");
  EXPECT_SAYS(refusal(put_header(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4)),
              "takes 8 bytes, but its offsets 0 to 4 span 4");
  EXPECT_SAYS(refusal(put_header(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 7)),
              "tensor 'a' ends at byte 8");
  EXPECT_SAYS(refusal(put_header(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 9)),
              "1 bytes after the last tensor");
  EXPECT_SAYS(refusal(put_header(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8)), "leaves a hole");
  EXPECT_SAYS(
      refusal(put_header(
          R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
          8)),
      "tensor 'b' overlaps");
  EXPECT_SAYS(
      refusal(put_header(
          R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
          2)),
      "names 'a' twice");
  EXPECT_SAYS(refusal(put_header(R"({"__metadata__":{"step":1}})", 0)), "'step' that is not a string");
}

TEST_F(Safetensors, EveryTruncationOfAGoodFileIsRefused) {
  const std::vector<float> values(5, 1.5F);
  write(at("good.safetensors"), std::vector<Source>{{"w", DType::f32, {5}, values.data()}});
  const std::string good = bytes_of(at("good.safetensors"));
  for (std::size_t length = 0; length < good.size(); ++length) {
    EXPECT_NE(refusal(put(good.substr(0, length))), "(was read)") << length;
  }
}

TEST_F(Safetensors, ModelSplitsAndReadsBack) {
  std::vector<float> values(30);
  std::iota(values.begin(), values.end(), 0.0F);
  std::vector<Source> tensors;
  for (int i = 0; i < 3; ++i)
    tensors.push_back({"layer." + std::to_string(i), DType::f32, {10}, values.data() + 10 * i});

  EXPECT_EQ(write_model(folder_, "model", tensors, {}, 1 << 20).size(), 1U);
  EXPECT_EQ(Model(folder_).entries().size(), 3U);
  // The set replaces the single file, so a reader of the folder cannot meet an old one.
  EXPECT_EQ(write_model(folder_, "model", tensors, {}, 85).size(), 3U);
  EXPECT_FALSE(fs::exists(at("model.safetensors")));
  const Model model(folder_);
  for (const Source& source : tensors) {
    const auto entry = model.find(source.name);
    ASSERT_TRUE(entry.has_value());
    std::vector<float> back(10);
    entry->read(std::as_writable_bytes(std::span(back)));
    EXPECT_EQ(std::memcmp(back.data(), source.data, 40), 0);
  }
  EXPECT_EQ(model.find("layer.2")->file->path(), at("model-00002-of-00002.safetensors"));
  EXPECT_EQ(write_model(folder_, "model", tensors, {}, 1 << 20).size(), 1U);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);
}

TEST_F(Safetensors, IndexMustFitItsFiles) {
  const float one = 1;
  write(at("part.safetensors"), std::vector<Source>{{"a", DType::f32, {}, &one}, {"b", DType::f32, {}, &one}});
  EXPECT_SAYS(refusal(put("{}", "model.safetensors.index.json")), "weight_map");
  EXPECT_SAYS(refusal(put(R"({"weight_map":{"c":"part.safetensors"}})", "m.index.json")),
              "tensor 'c' is not in part.safetensors");
  EXPECT_SAYS(refusal(put(R"({"weight_map":{"a":"part.safetensors"}})", "m.index.json")),
              "tensor 'b' is not in the index");
  EXPECT_SAYS(refusal(put(R"({"weight_map":{"a":"../part.safetensors"}})", "m.index.json")), "beside the index");
  EXPECT_SAYS(refusal(put(R"({"weight_map":{"a":"gone.safetensors"}})", "m.index.json")), "gone.safetensors");
  fs::create_directories(at("hollow"));
  EXPECT_SAYS(refusal(at("hollow")), "neither model.safetensors nor");
}

TEST_F(Safetensors, WriterRefusesWhatItCannotWrite) {
  const float one = 1;
  const std::vector<Source> twice = {{"a", DType::f32, {}, &one}, {"a", DType::f32, {}, &one}};
  EXPECT_THROW(write(at("a.safetensors"), twice), Error);
  EXPECT_THROW(write(at("a.safetensors"), std::vector<Source>{{"\xff", DType::f32, {}, &one}}), Error);
  try {
    write(at("absent/a.safetensors"), std::vector<Source>{{"a", DType::f32, {}, &one}});
    ADD_FAILURE() << "wrote into a folder that is not there";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::checkpoint);
  }
  EXPECT_TRUE(fs::is_empty(folder_));
}

}  // namespace
}  // namespace regatta::safetensors
