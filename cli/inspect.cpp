// `regatta inspect`: what a checkpoint, a folder of them, or a safetensors file holds, and whether it is sound.

#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include <fmt/format.h>

#include "cli/commands.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/error.h"

namespace regatta::cli {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using checkpoint::Checkpoint;

struct Flags {
  std::string path;
  bool verify = false;
  bool json = false;
};

Json json_of(const safetensors::Tensor& tensor) {
  return {{"name", tensor.name}, {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"bytes", tensor.bytes()}};
}

void progress(const checkpoint::FileSums& file) {
  fmt::print(stderr, "{} is sound, {} bytes\n", file.name, file.bytes);
}

Json document_of(Checkpoint& found) {
  const checkpoint::Manifest& manifest = found.manifest();
  Json document{{"path", found.path()},        {"step", manifest.step},
                {"version", manifest.version}, {"job", Json::parse(manifest.job)},
                {"files", Json::array()},      {"weights", Json::array()},
                {"state", Json::array()}};
  for (const checkpoint::FileSums& file : manifest.files)
    document["files"].push_back({{"name", file.name}, {"bytes", file.bytes}});
  const safetensors::Model weights = found.weights();
  for (const auto& entry : weights.entries()) document["weights"].push_back(json_of(*entry.tensor));
  for (const auto& [key, tensor] : found.state()) {
    document["state"].push_back({{"param", key.param},
                                 {"state", key.state},
                                 {"block", key.block},
                                 {"shape", {tensor.block.rows, tensor.block.cols}},
                                 {"dtype", safetensors::file_name_of(tensor.dtype)},
                                 {"complete", tensor.stored == tensor.block.numel()}});
  }
  return document;
}

void print_checkpoint(const Json& document) {
  const Json& job = document["job"];
  fmt::print("{}: step {}, saved by regatta {}\n", document["path"].get<std::string>(),
             document["step"].get<std::int64_t>(), document["version"].get<std::string>());
  for (const char* fact : {"tokens", "rule", "mesh", "mode", "transport"})
    if (job.contains(fact))
      fmt::print("  {:<12}{}\n", fact, job[fact].is_string() ? job[fact].get<std::string>() : job[fact].dump());
  fmt::print("files\n");
  for (const Json& file : document["files"])
    fmt::print("  {:<44}{:>16}\n", file["name"].get<std::string>(), file["bytes"].get<std::int64_t>());
  fmt::print("weights\n");
  for (const Json& tensor : document["weights"])
    fmt::print("  {:<52}{:<6}{}\n", tensor["name"].get<std::string>(), tensor["dtype"].get<std::string>(),
               tensor["shape"].dump());
  fmt::print("optimizer state\n");
  for (const Json& tensor : document["state"]) {
    const auto block = tensor["block"].get<int>();
    fmt::print("  {:<52}{:<10}{:<6}{}{}\n",
               tensor["param"].get<std::string>() + (block > 0 ? fmt::format(" block {}", block) : ""),
               tensor["state"].get<std::string>(), tensor["dtype"].get<std::string>(), tensor["shape"].dump(),
               tensor["complete"].get<bool>() ? "" : "  INCOMPLETE");
  }
}

void inspect_checkpoint(const Flags& flags) {
  Checkpoint found(flags.path);
  const Json document = document_of(found);
  for (const Json& tensor : document["state"])
    if (flags.verify && !tensor["complete"].get<bool>())
      throw Error(Code::invalid_argument, flags.path + ": " + tensor["param"].get<std::string>() + " " +
                                              tensor["state"].get<std::string>() + " is incomplete");
  if (flags.verify) found.verify(0, 1, progress);
  if (flags.json)
    std::cout << document.dump(2) << "\n";
  else
    print_checkpoint(document);
  if (flags.verify) fmt::print(stderr, "{} is sound: every checksum fits\n", flags.path);
}

/// One line each; with --verify all must be sound.
void inspect_folder(const Flags& flags, const std::vector<checkpoint::Listed>& all) {
  Json list = Json::array();
  std::string first_problem;
  for (const checkpoint::Listed& each : all) {
    Json one{{"step", each.step}, {"path", each.path}, {"problem", ""}};
    try {
      Checkpoint found(each.path);
      if (flags.verify) found.verify();
    } catch (const Error& error) {
      one["problem"] = error.what();
      if (first_problem.empty()) first_problem = error.what();
    }
    if (!flags.json)
      fmt::print("step {:<10}{}\n", each.step,
                 first_problem.empty() || one["problem"] == "" ? (flags.verify ? "sound" : "opens")
                                                               : one["problem"].get<std::string>());
    list.push_back(std::move(one));
  }
  if (flags.json) std::cout << list.dump(2) << "\n";
  if (!first_problem.empty()) throw Error(Code::invalid_argument, first_problem);
}

void inspect_file(const Flags& flags) {
  const safetensors::File file(flags.path);
  Json list = Json::array();
  for (const safetensors::Tensor& tensor : file.tensors()) {
    list.push_back(json_of(tensor));
    if (!flags.json) fmt::print("{:<56}{:<6}{}\n", tensor.name, tensor.dtype, safetensors::text_of(tensor.shape));
  }
  if (flags.json)
    std::cout << Json{{"path", flags.path}, {"metadata", file.metadata()}, {"tensors", list}}.dump(2) << "\n";
}

void inspect(const Flags& flags) {
  if (fs::is_regular_file(flags.path)) {
    if (flags.verify)
      throw Error(Code::invalid_argument,
                  flags.path + " is a file without checksums; --verify takes a checkpoint's folder");
    return inspect_file(flags);
  }
  const std::vector<checkpoint::Listed> all = checkpoint::list_checkpoints(flags.path);
  if (all.empty()) return inspect_checkpoint(flags);
  inspect_folder(flags, all);
}

}  // namespace

void add_inspect(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("inspect", "What a checkpoint holds, and whether it is sound");
  command->footer(
      "Examples:\n"
      "  regatta inspect out/checkpoints                         all of them, a line each\n"
      "  regatta inspect out/checkpoints/step-00000100 --verify  one, every checksum\n"
      "  regatta inspect model.safetensors --json\n"
      "Exit code 2 when something is damaged or missing, naming the file.");
  command->add_option("PATH", flags->path, "A checkpoint's folder, a folder of checkpoints, or a safetensors file")
      ->required();
  command->add_flag("--verify", flags->verify, "Read every byte and check every checksum");
  command->add_flag("--json", flags->json, "One JSON document on stdout");
  command->callback([flags] { inspect(*flags); });
}

}  // namespace regatta::cli
