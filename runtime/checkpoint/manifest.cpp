#include "runtime/checkpoint/manifest.h"

#include <charconv>
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

/// What follows the last byte that is summed.
std::string ending(std::uint64_t sum) { return ",\n \"checksum\": \"" + hex(sum) + "\"\n}\n"; }

[[noreturn]] void refuse(const std::string& path, const std::string& what) {
  throw Error(Code::invalid_argument, path + " " + what);
}

std::uint64_t sum_of_hex(const Json& text, const std::string& path) {
  const auto& digits = text.get_ref<const std::string&>();
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
  if (error != std::errc() || end != digits.data() + digits.size()) refuse(path, "has a malformed checksum");
  return value;
}

}  // namespace

std::string text_of(const Manifest& manifest) {
  Json document;
  document["format"] = format_version;
  document["step"] = manifest.step;
  document["version"] = manifest.version;
  document["job"] = Json::parse(manifest.job);
  document["piece_bytes"] = summed_piece_bytes;
  document["files"] = Json::array();
  for (const FileSums& file : manifest.files) {
    Json sums = Json::array();
    for (const std::uint64_t sum : file.sums) sums.push_back(hex(sum));
    document["files"].push_back({{"name", file.name}, {"bytes", file.bytes}, {"xxh3_64", std::move(sums)}});
  }
  std::string text = document.dump(1);
  text.resize(text.size() - 2);  // "\n}"
  return text + ending(sum_of(std::as_bytes(std::span(text))));
}

Manifest parse_manifest(const std::string& text, const std::string& path) {
  const std::size_t tail = ending(0).size();
  // The format is read before the checksum is believed: another format may be summed in another way.
  const Json document = Json::parse(text, nullptr, false);
  if (document.is_object() && document.contains("format") && document["format"].is_number_integer() &&
      document["format"].get<int>() > format_version)
    refuse(path, "is of format " + std::to_string(document["format"].get<int>()) +
                     "; this program knows formats up to " + std::to_string(format_version) +
                     ": read it with a newer one");
  if (text.size() < tail) refuse(path, "is damaged: it is cut short");
  const std::string body = text.substr(0, text.size() - tail);
  if (text.substr(body.size()) != ending(sum_of(std::as_bytes(std::span(body)))) || document.is_discarded())
    refuse(path, "is damaged: its checksum does not fit its text");
  try {
    Manifest manifest;
    if (document.at("format").get<int>() != format_version || document.at("piece_bytes") != summed_piece_bytes)
      refuse(path, "is not of format " + std::to_string(format_version));
    manifest.step = document.at("step").get<std::int64_t>();
    manifest.version = document.at("version").get<std::string>();
    manifest.job = document.at("job").dump();
    for (const Json& file : document.at("files")) {
      FileSums sums{file.at("name").get<std::string>(), file.at("bytes").get<std::int64_t>(), {}};
      if (sums.name.empty() || sums.name.find('/') != std::string::npos || sums.name.front() == '.')
        refuse(path, "names the file '" + sums.name + "', which is no plain file name");
      for (const Json& sum : file.at("xxh3_64")) sums.sums.push_back(sum_of_hex(sum, path));
      const std::int64_t pieces = (sums.bytes + summed_piece_bytes - 1) / summed_piece_bytes;
      if (sums.bytes < 0 || pieces != static_cast<std::int64_t>(sums.sums.size()))
        refuse(path, "has " + std::to_string(sums.sums.size()) + " checksums for " + sums.name + " of " +
                         std::to_string(sums.bytes) + " bytes");
      manifest.files.push_back(std::move(sums));
    }
    return manifest;
  } catch (const nlohmann::json::exception& error) {
    refuse(path, std::string("lacks what a manifest has: ") + error.what());
  }
}

}  // namespace regatta::checkpoint
