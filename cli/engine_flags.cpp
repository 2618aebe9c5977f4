#include "cli/engine_flags.h"

#include <CLI/CLI.hpp>
#include <charconv>
#include <map>
#include <optional>

#include "runtime/error.h"
#include "runtime/rules/assignment.h"

namespace regatta::cli {
namespace {

// A GLOB=VALUE flag; the last match wins.
struct ByName {
  std::string glob, value;
  bool used = false;
};

std::vector<ByName> parse_by_name(const std::vector<std::string>& texts, const std::string& flag,
                                  const std::string& expected) {
  std::vector<ByName> parsed;
  for (const std::string& text : texts) {
    const std::size_t equals = text.find('=');
    if (equals == 0 || equals == std::string::npos)
      throw Error(Code::invalid_argument, flag + " got '" + text + "'; expected " + expected);
    parsed.push_back({text.substr(0, equals), text.substr(equals + 1)});
  }
  return parsed;
}

std::optional<std::string> value_for(std::vector<ByName>& entries, const std::string& name) {
  std::optional<std::string> value;
  for (ByName& entry : entries)
    if (matches_glob(entry.glob, name)) {
      value = entry.value;
      entry.used = true;
    }
  return value;
}

void check_used(const std::vector<ByName>& entries, const std::string& flag) {
  for (const ByName& entry : entries)
    if (!entry.used)
      throw Error(Code::invalid_argument,
                  flag + " " + entry.glob + "=" + entry.value + ": no parameter has a name like that");
}

std::vector<std::int64_t> parse_rows(const std::string& text, const std::string& name) {
  std::vector<std::int64_t> rows;
  for (const std::string& part : CLI::detail::split(text, ',')) {
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), value);
    if (error != std::errc{} || end != part.data() + part.size() || value < 1)
      throw Error(Code::invalid_argument,
                  "--blocks " + name + ": '" + text + "' is not a list of row counts such as 64,16,16");
    rows.push_back(value);
  }
  return rows;
}

}  // namespace

void add_engine_flags(CLI::App& app, EngineFlags& flags) {
  app.add_option("--mesh", flags.mesh, "Ranks by axis, for example dp=3,tp=2")->capture_default_str();
  app.add_option("--mode", flags.mode, "zero1, zero2, or sharded (the trainer shards over dp itself)")
      ->capture_default_str()
      ->check(CLI::IsMember({"zero1", "zero2", "sharded"}));
  app.add_option(
         "--place", flags.places,
         "GLOB=AXIS:DIM[,AXIS:DIM]: how parameters lie on the mesh; DIM is 0 or 1 of each of --blocks, rows (of all "
         "blocks stacked, as FSDP2 cuts), or flat")
      ->take_all();
  app.add_option("--blocks", flags.blocks, "GLOB=ROWS,ROWS,...: logical matrices stacked in a parameter")->take_all();
  app.add_option("--cut", flags.cut, "Where a rank's chunk of a bucket may end: element, row or matrix")
      ->capture_default_str()
      ->check(CLI::IsMember({"element", "row", "matrix"}));
  app.add_option("--bucket-bytes", flags.bucket_bytes, "Least bytes of a bucket")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--momentum-dtype", flags.momentum_dtype, "fp32 or bf16")
      ->capture_default_str()
      ->check(CLI::IsMember({"fp32", "bf16"}));
  app.add_option("--threads", flags.threads, "Threads of a rank")->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--clip", flags.clip, "Global gradient norm to clip at; 0 is off")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
}

sharding::Mesh parse_mesh(const std::string& text) {
  try {
    return sharding::Mesh::parse(text);
  } catch (const std::invalid_argument& error) {
    throw Error(Code::invalid_argument, error.what());
  }
}

EngineOptions engine_options(const EngineFlags& flags) {
  static const std::map<std::string, Mode> modes{
      {"zero1", Mode::zero1}, {"zero2", Mode::zero2}, {"sharded", Mode::sharded}};
  static const std::map<std::string, sharding::Cut> cuts{
      {"element", sharding::Cut::element}, {"row", sharding::Cut::row}, {"matrix", sharding::Cut::matrix}};
  EngineOptions options;
  options.mode = modes.at(flags.mode);
  options.cut = cuts.at(flags.cut);
  options.bucket_bytes = flags.bucket_bytes;
  options.threads = flags.threads;
  options.clip = flags.clip;
  options.proof_every = flags.proof_every;
  options.proof_stops = flags.proof_stops;
  options.momentum_dtype = *dtype_of(flags.momentum_dtype);
  return options;
}

std::vector<sharding::Placement> placements_for(const EngineFlags& flags, const std::vector<std::string>& names,
                                                const sharding::Mesh& mesh,
                                                const std::function<sharding::Placement(const std::string&)>& usual) {
  std::vector<ByName> places =
      parse_by_name(flags.places, "--place", "GLOB=AXIS:DIM, for example W=tp:1 or *=tp:0,dp:0");
  std::vector<sharding::Placement> placements;
  for (const std::string& name : names) {
    const std::optional<std::string> said = value_for(places, name);
    std::string place = said ? *said : usual ? usual(name).text() : "";
    if (flags.mode == "sharded" && place.find("dp:") == std::string::npos && mesh.size("dp") > 1)
      place += place.empty() ? "dp:0" : ",dp:0";
    try {
      placements.push_back(sharding::Placement::parse(place));
    } catch (const std::invalid_argument& error) {
      throw Error(Code::invalid_argument, error.what());
    }
  }
  check_used(places, "--place");
  return placements;
}

std::vector<std::vector<std::int64_t>> blocks_for(const EngineFlags& flags, const std::vector<std::string>& names) {
  std::vector<ByName> blocks = parse_by_name(flags.blocks, "--blocks", "GLOB=ROWS,ROWS,..., for example qkv=64,16,16");
  std::vector<std::vector<std::int64_t>> rows;
  for (const std::string& name : names) {
    const std::string text = value_for(blocks, name).value_or("");
    rows.push_back(text.empty() ? std::vector<std::int64_t>{} : parse_rows(text, name));
  }
  check_used(blocks, "--blocks");
  return rows;
}

}  // namespace regatta::cli
