// What a writer of safetensors lays out where, and sets of files with an index.

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "runtime/checkpoint/safetensors.h"
#include "runtime/error.h"
#include "tests/checkpoint/test_folder.h"
#include "tests/support/refusal.h"

namespace regatta::safetensors {
namespace {

namespace fs = std::filesystem;
using regatta::testing::bytes_in;
using regatta::testing::names_in;
using regatta::testing::put;
using regatta::testing::refusal;

class SafetensorsSets : public ::testing::Test {
 protected:
  std::string at(const std::string& name) const { return folder_.at(name); }
  static std::vector<std::byte> read(const File& file, const std::string& name) {
    std::vector<std::byte> values(static_cast<std::size_t>(file.find(name)->bytes()));
    file.read(*file.find(name), values);
    return values;
  }
  regatta::testing::TestFolder folder_;
};

TEST_F(SafetensorsSets, WriterLaysOutWhatAReaderFinds) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 40; ++round) {
    std::vector<std::vector<std::byte>> memory;
    std::vector<Source> tensors;
    for (std::size_t i = 0; i < random() % 7; ++i) {
      Source source{std::string(random() % 9 + 1, 'n') + std::to_string(i),
                    std::vector{DType::f32, DType::bf16, DType::f16}[random() % 3],
                    {},
                    nullptr};
      for (std::size_t d = 0; d < random() % 4; ++d) source.shape.push_back(static_cast<std::int64_t>(random() % 5));
      memory.emplace_back(static_cast<std::size_t>(bytes_of(source)));
      for (std::byte& value : memory.back()) value = static_cast<std::byte>(random());
      source.data = memory.back().data();
      tensors.push_back(std::move(source));
    }
    Metadata metadata;
    for (std::size_t i = 0; i < random() % 3; ++i)
      metadata["key" + std::to_string(i)] = std::string(random() % 20, 'v');
    write(at("a"), tensors, metadata);
    const File file(at("a"));
    EXPECT_EQ(file.metadata(), metadata);
    EXPECT_EQ(file.tensors().size(), tensors.size());
    EXPECT_EQ(file.data_begin() % 8, 0);
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const Tensor* tensor = file.find(tensors[i].name);
      ASSERT_NE(tensor, nullptr);
      EXPECT_EQ(tensor->shape, tensors[i].shape);
      EXPECT_EQ(tensor->element_type(), tensors[i].dtype);
      EXPECT_EQ((file.data_begin() + tensor->begin) % size_of(tensors[i].dtype), 0);
      EXPECT_EQ(read(file, tensors[i].name), memory[i]);
    }
  }
}

TEST_F(SafetensorsSets, SourcesThatCannotBe) {
  const float one = 1;
  constexpr std::int64_t huge = std::int64_t{1} << 61;
  for (const std::vector<std::int64_t>& shape :
       std::vector<std::vector<std::int64_t>>{{-1}, {2, -1}, {huge, 2}, {huge, 4}, {INT64_MAX}})
    EXPECT_NE(refusal([&] {
                write(at("a"), std::vector<Source>{{"odd", DType::f32, shape, &one}});
              }).find("'odd'"),
              std::string::npos);
  for (const char* name : {"__metadata__", "a"})
    EXPECT_NE(refusal([&] {
                write(at("x"), std::vector<Source>{{"a", DType::f32, {}, &one}, {name, DType::f32, {}, &one}});
              }).find(name),
              std::string::npos);
  EXPECT_NE(refusal([&] { write(at("x"), std::vector<Source>{}, {{"k", "\xff"}}); }).find(at("x")), std::string::npos);
  EXPECT_TRUE(names_in(folder_.path()).empty());
}

TEST_F(SafetensorsSets, SetsAreCutByTheirSizes) {
  const std::vector<float> values(40, 2.5F);
  const auto source = [&](const std::string& name, std::int64_t count) {
    return Source{name, DType::f32, {count}, values.data()};
  };
  const std::vector<Source> tensors{source("a", 10), source("b", 10), source("c", 30), source("d", 1), source("e", 9)};
  const auto files = [&](std::int64_t file_bytes) {
    const std::vector<std::string> written = write_model(folder_.path(), "m", tensors, {{"format", "pt"}}, file_bytes);
    std::vector<std::string> held;
    for (const std::string& path : written) {
      if (path.ends_with(".json")) continue;
      std::string names;
      const File file(path);
      EXPECT_EQ(file.metadata().at("format"), "pt");
      for (const Tensor& tensor : file.tensors()) names += tensor.name;
      held.push_back(names);
    }
    std::vector<std::string> expected;
    for (const std::string& path : written) expected.push_back(fs::path(path).filename().string());
    std::sort(expected.begin(), expected.end());
    EXPECT_EQ(names_in(folder_.path()), expected);  // nothing of the set before
    if (written.size() > 1) {
      EXPECT_EQ(written.back(), at("m.safetensors.index.json"));
      const auto index = nlohmann::json::parse(bytes_in(written.back()));
      EXPECT_EQ(index.at("metadata").at("total_size"), 240);
      EXPECT_EQ(index.at("weight_map").size(), 5U);
      EXPECT_EQ(Model(written.back()).entries().size(), 5U);
    }
    return held;
  };
  EXPECT_EQ(files(240), (std::vector<std::string>{"abcde"}));
  EXPECT_EQ(files(239), (std::vector<std::string>{"abcd", "e"}));
  EXPECT_EQ(files(200), (std::vector<std::string>{"abc", "de"}));
  EXPECT_EQ(files(199), (std::vector<std::string>{"ab", "cde"}));
  EXPECT_EQ(files(80), (std::vector<std::string>{"ab", "c", "de"}));
  EXPECT_EQ(files(79), (std::vector<std::string>{"a", "b", "c", "de"}));
  EXPECT_EQ(files(1), (std::vector<std::string>{"a", "b", "c", "d", "e"}));
  EXPECT_EQ(files(1000), (std::vector<std::string>{"abcde"}));
}

TEST_F(SafetensorsSets, ASetTakesAwayOnlyItsOwnFiles) {
  const float one = 1;
  const std::vector<Source> tensors{{"a", DType::f32, {}, &one}};
  const std::vector<std::string> others{"m-00001.safetensors", "m-00001-of-00002.bin", "mm-00001-of-00002.safetensors",
                                        "m.json", "n.safetensors"};
  for (const std::string& name : others) put(at(name), "other");
  for (const char* name : {"m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors", "m.safetensors.index.json"})
    put(at(name), "old");
  write_model(folder_.path(), "m", tensors, {}, 100);
  std::vector<std::string> expected = others;
  expected.push_back("m.safetensors");
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(names_in(folder_.path()), expected);
}

TEST_F(SafetensorsSets, IndexesThatAreNone) {
  const float one = 1, two = 2;
  write(at("p"), std::vector<Source>{{"a", DType::f32, {}, &one}}, {{"of", "p"}});
  write(at("q"), std::vector<Source>{{"b", DType::f32, {}, &two}}, {{"of", "q"}});
  const auto said = [&](const std::string& index) {
    put(at("model.safetensors.index.json"), index);
    return refusal([&] {
      const Model model(folder_.path());
      ASSERT_EQ(model.entries().size(), 2U);
      EXPECT_EQ(model.metadata().at("of"), "p");
      float value = 0;
      model.find("b")->read(std::as_writable_bytes(std::span(&value, 1)));
      EXPECT_EQ(value, 2);
      EXPECT_FALSE(model.find("c").has_value());
    });
  };
  EXPECT_EQ(said(R"({"weight_map":{"a":"p","b":"q"}})"), "");
  for (const char* index :
       {"", "[]", "3", "{}", R"({"weight_map":[]})", R"({"weight_map":{}})", R"({"weight_map":{"a":"p","b":"p"}})",
        R"({"weight_map":{"a":"q","b":"p"}})", R"({"weight_map":{"a":"p","b":"q","c":"q"}})",
        R"({"weight_map":{"a":"p","b":3}})", R"({"weight_map":{"a":"p","b":""}})",
        R"({"weight_map":{"a":"p","b":".."}})", R"({"weight_map":{"a":"p","b":"./q"}})",
        R"({"weight_map":{"a":"p","b":"/q"}})", R"({"weight_map":{"a":"p","b":"q/"}})"})
    EXPECT_NE(said(index).find(folder_.path()), std::string::npos) << index;
  put(at("model.safetensors.index.json"), R"({"weight_map":{"a":"p","b":"q"}})");
  fs::copy(at("p"), at("model.safetensors"));
  EXPECT_NE(refusal([&] { Model model(folder_.path()); }).find("holds both"), std::string::npos);
  // A tensor that two files of a set have.
  write(at("q"), std::vector<Source>{{"b", DType::f32, {}, &two}, {"a", DType::f32, {}, &two}});
  EXPECT_NE(refusal([&] { Model model(at("model.safetensors.index.json")); }).find("'a' is not in the index"),
            std::string::npos);
}

}  // namespace
}  // namespace regatta::safetensors
