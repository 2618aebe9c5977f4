// The manifest's text: everything in it comes back, everything wrong in it is refused with its name, also when its
// checksum was made to fit.

#include "runtime/checkpoint/manifest.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "runtime/error.h"

namespace regatta::checkpoint {
namespace {

using Json = nlohmann::ordered_json;

std::string hex(std::uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

/// As docs/checkpoint_format.md has it: the document, then its own checksum.
std::string with_checksum(const Json& document) {
  std::string text = document.dump(1);
  text.resize(text.size() - 2);
  return text + ",\n \"checksum\": \"" + hex(sum_of(std::as_bytes(std::span(text)))) + "\"\n}\n";
}

std::string refusal(const std::string& text) {
  try {
    parse_manifest(text, "/a/manifest.json");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::invalid_argument) << error.what();
    EXPECT_NE(std::string(error.what()).find("/a/manifest.json"), std::string::npos) << error.what();
    return error.what();
  }
  return "(was read)";
}

Json sound() {
  return Json::parse(R"({"format": 1, "step": 12, "version": "0.1", "job": {"a": [1, 2.5], "b": "c"},
                         "piece_bytes": 1048576,
                         "files": [{"name": "one", "bytes": 5, "xxh3_64": ["00000000000000a1"]},
                                   {"name": "two", "bytes": 1048577, "xxh3_64": ["fedcba9876543210", "0000000000000001"]},
                                   {"name": "three", "bytes": 0, "xxh3_64": []}]})");
}

TEST(Manifest, EverythingComesBack) {
  const Manifest written{12,
                         "0.1",
                         R"({"a":[1,2.5],"b":"c"})",
                         {{"one", 5, {0xa1}}, {"two", (1 << 20) + 1, {0xfedcba9876543210U, 1}}, {"three", 0, {}}}};
  const std::string text = text_of(written);
  const Manifest read = parse_manifest(text, "a");
  EXPECT_EQ(read.step, written.step);
  EXPECT_EQ(read.version, written.version);
  EXPECT_EQ(read.job, written.job);
  EXPECT_EQ(read.files, written.files);
  EXPECT_EQ(text, with_checksum(sound()));  // a stranger's writer makes the same text
}

TEST(Manifest, EveryFieldIsNeededAndOfItsKind) {
  EXPECT_EQ(refusal(with_checksum(sound())), "(was read)");
  for (const char* field : {"format", "step", "version", "job", "piece_bytes", "files"}) {
    Json document = sound();
    document.erase(field);
    if (std::string(field) != "version") document["version"] = "0.1";
    EXPECT_NE(refusal(with_checksum(document)), "(was read)") << field;
  }
  for (const char* field : {"name", "bytes", "xxh3_64"}) {
    for (std::size_t file = 0; file < 3; ++file) {
      Json document = sound();
      document["files"][file].erase(field);
      EXPECT_NE(refusal(with_checksum(document)), "(was read)") << field;
    }
  }
  for (const char* change :
       {R"({"format": 0})", R"({"format": -1})", R"({"format": "1"})", R"({"format": null})", R"({"step": "12"})",
        R"({"version": 1})", R"({"piece_bytes": 1048575})", R"({"piece_bytes": 2097152})",
        R"({"piece_bytes": "1048576"})", R"({"files": 3})", R"({"files": [5]})"}) {
    Json document = sound();
    document.update(Json::parse(change));
    EXPECT_NE(refusal(with_checksum(document)), "(was read)") << change;
  }
  EXPECT_NE(refusal(with_checksum(Json::array({1, 2}))), "(was read)");
}

TEST(Manifest, FilesAreBesideItWithASumForEachPiece) {
  for (const char* name : {"", ".", "..", "../one", "a/one", "/one", ".hidden"}) {
    Json document = sound();
    document["files"][1]["name"] = name;
    EXPECT_NE(refusal(with_checksum(document)).find("file name"), std::string::npos) << name;
  }
  struct Case {
    std::int64_t bytes;
    std::size_t sums;
    bool fits;
  };
  constexpr std::int64_t piece = summed_piece_bytes;
  for (const Case& each :
       {Case{0, 0, true}, Case{0, 1, false}, Case{1, 1, true}, Case{1, 0, false}, Case{piece, 1, true},
        Case{piece, 2, false}, Case{piece + 1, 2, true}, Case{piece + 1, 1, false}, Case{3 * piece, 3, true},
        Case{3 * piece, 4, false}, Case{-1, 0, false}, Case{-piece, 0, false}}) {
    Json document = sound();
    document["files"][1]["bytes"] = each.bytes;
    document["files"][1]["xxh3_64"] = std::vector<std::string>(each.sums, "00000000000000ff");
    const std::string said = refusal(with_checksum(document));
    EXPECT_EQ(said == "(was read)", each.fits) << each.bytes << " bytes, " << each.sums << " sums: " << said;
    if (!each.fits) {
      EXPECT_NE(said.find("two"), std::string::npos) << said;
    }
  }
  for (const char* sum : {"", "0x12", "12g4", "zz", "12 ", "-1", "11112222333344445"}) {
    Json document = sound();
    document["files"][0]["xxh3_64"][0] = sum;
    EXPECT_NE(refusal(with_checksum(document)), "(was read)") << sum;
  }
  Json document = sound();
  document["files"][0]["xxh3_64"][0] = 12;
  EXPECT_NE(refusal(with_checksum(document)), "(was read)");
}

TEST(Manifest, OneFromTheFutureIsCalledThatBeforeItsSumIsLookedAt) {
  for (const int format : {2, 3, 1000}) {
    Json document = sound();
    document["format"] = format;
    for (const std::string& text : {with_checksum(document), document.dump()}) {
      const std::string said = refusal(text);
      EXPECT_NE(said.find("format " + std::to_string(format)), std::string::npos) << said;
      EXPECT_NE(said.find("newer"), std::string::npos) << said;
    }
  }
}

TEST(Manifest, AnyByteChangedMissingOrTooManyIsNoticed) {
  const std::string text = with_checksum(sound());
  for (std::size_t i = 0; i < text.size(); ++i) {
    for (const int flip : {1, 32, 128}) {
      std::string damaged = text;
      damaged[i] = static_cast<char>(damaged[i] ^ flip);
      EXPECT_NE(refusal(damaged), "(was read)") << "byte " << i << " xor " << flip;
    }
    EXPECT_NE(refusal(text.substr(0, i)), "(was read)") << "cut to " << i;
  }
  for (const char* more : {" ", "\n", "x", "\0"})
    EXPECT_NE(refusal(text + more + (*more == 0 ? std::string(1, 0) : "")), "(was read)");
}

}  // namespace
}  // namespace regatta::checkpoint
