// The edges of the format: every field of a header, every dtype, sizes at the limits, parts of tensors.

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "runtime/checkpoint/safetensors.h"
#include "runtime/error.h"
#include "tests/checkpoint/test_folder.h"
#include "tests/support/refusal.h"

namespace regatta::safetensors {
namespace {

namespace fs = std::filesystem;
using regatta::testing::bytes_in;
using regatta::testing::put;
using regatta::testing::refusal;

class SafetensorsEdges : public ::testing::Test {
 protected:
  std::string at(const std::string& name) const { return folder_.at(name); }
  static std::string length_of(std::uint64_t bytes) {
    std::string text(8, '\0');
    for (int i = 0; i < 8; ++i) text[static_cast<std::size_t>(i)] = static_cast<char>(bytes >> (8 * i));
    return text;
  }
  std::string with_header(const std::string& header, std::size_t data_bytes) const {
    put(at("case.safetensors"), length_of(header.size()) + header + std::string(data_bytes, '\1'));
    return at("case.safetensors");
  }
  std::string refusal_of(const std::string& header, std::size_t data_bytes) const {
    const std::string path = with_header(header, data_bytes);
    const std::string said = refusal([&] { File file(path); });
    if (said != "") {
      EXPECT_EQ(said.find(path), 0U) << said;
    }
    return said;
  }
  static std::vector<std::byte> read(const File& file, const std::string& name) {
    std::vector<std::byte> values(static_cast<std::size_t>(file.find(name)->bytes()));
    file.read(*file.find(name), values);
    return values;
  }
  regatta::testing::TestFolder folder_;
};

TEST_F(SafetensorsEdges, EveryDtypeHasItsSize) {
  const std::map<std::string, int> bits{{"F64", 64},    {"I64", 64},    {"U64", 64},    {"C64", 64},    {"F32", 32},
                                        {"I32", 32},    {"U32", 32},    {"F16", 16},    {"BF16", 16},   {"I16", 16},
                                        {"U16", 16},    {"I8", 8},      {"U8", 8},      {"BOOL", 8},    {"F4", 4},
                                        {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F6_E2M3", 6}, {"F6_E3M2", 6}};
  for (const auto& [dtype, size] : bits) {
    const auto header = [&, &type = dtype](int numel, int bytes) {
      return R"({"a":{"dtype":")" + type + R"(","shape":[)" + std::to_string(numel) + R"(],"data_offsets":[0,)" +
             std::to_string(bytes) + "]}}";
    };
    EXPECT_EQ(refusal_of(header(12, 12 * size / 8), static_cast<std::size_t>(12 * size / 8)), "") << dtype;
    for (const int off : {-1, 1})
      EXPECT_NE(refusal_of(header(12, 12 * size / 8 + off), static_cast<std::size_t>(12 * size / 8 + off)), "")
          << dtype;
    if (size % 8 != 0) {
      EXPECT_NE(refusal_of(header(1, 1), 1).find("whole number of bytes"), std::string::npos);
    }
    const auto ours = Tensor{"a", dtype, {}, 1, 0, 0}.element_type();
    EXPECT_EQ(ours.has_value(), dtype == "F32" || dtype == "BF16" || dtype == "F16");
    if (ours) {
      EXPECT_EQ(file_name_of(*ours), dtype);
      EXPECT_EQ(size_of(*ours) * 8, size);
    }
  }
}

TEST_F(SafetensorsEdges, EveryFieldOfEveryFormIsNeeded) {
  const auto entry = nlohmann::json::parse(R"({"dtype":"F32","shape":[2,3],"data_offsets":[0,24]})");
  const auto header = [](const nlohmann::json& of) { return nlohmann::json{{"a", of}}.dump(); };
  EXPECT_EQ(refusal_of(header(entry), 24), "");
  const std::map<std::string, std::vector<const char*>> wrong{
      {"dtype", {"32", "null", "[\"F32\"]", "\"f32\"", "\"\""}},
      {"shape",
       {"6", "\"6\"", "null", "[2,-3]", "[2,\"3\"]", "[2.0,3]", "[2,4]", "[]", "[2,null]", "[9223372036854775808]",
        "[4611686018427387905]"}},
      {"data_offsets",
       {"24", "[0]", "[0,24,24]", "[]", "{}", "[24,0]", "[-24,0]", "[0,\"24\"]", "[0,24.0]", "[0,23]", "[0,25]",
        "[1,25]", "[4611686018427387905,4611686018427387929]"}}};
  for (const auto& [field, values] : wrong) {
    nlohmann::json without = entry;
    without.erase(field);
    EXPECT_NE(refusal_of(header(without), 24), "") << field;
    for (const char* value : values) {
      nlohmann::json changed = entry;
      changed[field] = nlohmann::json::parse(value);
      EXPECT_NE(refusal_of(header(changed), 24).find("tensor 'a'"), std::string::npos) << field << " " << value;
    }
  }
  for (const char* other : {"[]", "\"x\"", "3", "null"})
    EXPECT_NE(refusal_of(header(nlohmann::json::parse(other)), 0), "") << other;
  for (const char* metadata :
       {"[]", "\"x\"", "null", R"({"k":1})", R"({"k":{}})", R"({"k":null})", R"({"k":"v","l":2})"})
    EXPECT_NE(refusal_of(std::string(R"({"__metadata__":)") + metadata + "}", 0), "") << metadata;
  for (const char* text : {"{", "{}}", "{} x", R"({"a")", " {}", "{\"a\":1e999}",
                           R"({"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
                           R"({"__metadata__":{"k":"a","k":"b"}})", "\xEF\xBB\xBF{}"})
    EXPECT_NE(refusal_of(text, 0), "") << text;
  EXPECT_EQ(refusal_of("{}   \n", 0), "");  // padding
  std::string deep = "1";
  for (int i = 0; i < 100'000; ++i) deep = "[" + deep;
  EXPECT_NE(refusal_of("{\"a\":" + deep, 0).find("levels deep"), std::string::npos);
}

TEST_F(SafetensorsEdges, LengthsThatAreNone) {
  for (std::size_t bytes = 0; bytes < 8; ++bytes) {
    put(at("short"), length_of(0).substr(0, bytes));
    EXPECT_NE(refusal([&] { File file(at("short")); }).find(std::to_string(bytes) + " bytes long"), std::string::npos);
  }
  for (const std::uint64_t claimed : {std::uint64_t{3}, std::uint64_t{1} << 32, std::uint64_t{1} << 56,
                                      std::uint64_t{1} << 63, ~std::uint64_t{0}, ~std::uint64_t{0} - 7}) {
    put(at("long"), length_of(claimed) + "{}");
    EXPECT_NE(refusal([&] { File file(at("long")); }).find("claims a header of " + std::to_string(claimed)),
              std::string::npos);
  }
  // Beyond the format's own limit, in a file that is long enough.
  put(at("huge"), length_of(100'000'001) + "{}");
  fs::resize_file(at("huge"), 8 + 100'000'001);
  EXPECT_NE(refusal([&] { File file(at("huge")); }).find("claims a header"), std::string::npos);
  EXPECT_NE(refusal([&] { File file(folder_.path()); }).find("not a regular file"), std::string::npos);
}

TEST_F(SafetensorsEdges, TensorsWithoutElementsMayLieAnywhere) {
  const std::string header =
      R"({"z":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
      R"("e":{"dtype":"F32","shape":[2,0],"data_offsets":[3,3]},"a":{"dtype":"U8","shape":[1],"data_offsets":[3,4]},)"
      R"("last":{"dtype":"F64","shape":[0],"data_offsets":[4,4]}})";
  const File file(with_header(header, 4));
  std::vector<std::string> order;
  for (const Tensor& tensor : file.tensors()) order.push_back(tensor.name);
  EXPECT_EQ(order, (std::vector<std::string>{"z", "b", "e", "a", "last"}));
  EXPECT_EQ(file.find("e")->numel, 0);
  EXPECT_EQ(file.data_begin(), static_cast<std::int64_t>(8 + header.size()));
  // A scalar has one element and no dims.
  EXPECT_EQ(refusal_of(R"({"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", 4), "");
  EXPECT_EQ(File(at("case.safetensors")).find("s")->numel, 1);
}

TEST_F(SafetensorsEdges, PartsStayInTheirTensor) {
  const std::vector<std::uint16_t> values{1, 2, 3, 4, 5};
  const std::vector<std::uint16_t> more{6, 7};
  write(at("a"), std::vector<Source>{{"w", DType::bf16, {5}, values.data()}, {"next", DType::bf16, {2}, more.data()}});
  File file(at("a"));
  const auto part = [&](std::int64_t offset, std::size_t bytes) {
    std::vector<std::byte> got(bytes);
    return refusal([&] {
      file.read_part(*file.find("w"), offset, got);
      EXPECT_EQ(std::memcmp(got.data(), reinterpret_cast<const char*>(values.data()) + offset, bytes), 0);
    });
  };
  for (std::int64_t offset = -2; offset <= 12; ++offset)
    for (std::size_t bytes = 1; bytes <= 12; ++bytes)
      EXPECT_EQ(part(offset, bytes) == "", offset >= 0 && offset + static_cast<std::int64_t>(bytes) <= 10)
          << offset << " " << bytes;
  for (const std::size_t room : {0, 9, 11, 14}) {
    std::vector<std::byte> got(room);
    EXPECT_NE(refusal([&] { file.read(*file.find("w"), got); }).find("'w'"), std::string::npos);
  }
  // A file that was moved reads on.
  File moved(std::move(file));
  EXPECT_EQ(std::memcmp(read(moved, "next").data(), more.data(), 4), 0);
  File other(at("a"));
  other = std::move(moved);
  EXPECT_EQ(std::memcmp(read(other, "w").data(), values.data(), 10), 0);
  fs::resize_file(at("a"), fs::file_size(at("a")) - 1);
  EXPECT_NE(refusal([&] { read(other, "next"); }).find("while it is being read"), std::string::npos);
}

TEST_F(SafetensorsEdges, AReaderInPlaceOfTheFileGivesEveryByte) {
  const std::vector<float> values{1, 2, 3};
  write(at("a.safetensors"), std::vector<Source>{{"w", DType::f32, {3}, values.data()}});
  std::string whole = bytes_in(at("a.safetensors"));
  std::int64_t given = 0;
  const Model model(at("a.safetensors"), [&](const std::string& path) -> ReadBytes {
    EXPECT_EQ(path, at("a.safetensors"));
    return [&](std::int64_t offset, std::span<std::byte> to) {
      given += static_cast<std::int64_t>(to.size());
      std::memcpy(to.data(), whole.data() + offset, to.size());
    };
  });
  put(at("a.safetensors"), std::string(whole.size(), 'x'));
  std::vector<float> back(3);
  model.find("w")->read(std::as_writable_bytes(std::span(back)));
  EXPECT_EQ(back, values);
  EXPECT_EQ(given, static_cast<std::int64_t>(whole.size()));
}

}  // namespace
}  // namespace regatta::safetensors
