// `regatta consolidate`: a checkpoint's files as one: the weights for whoever reads a single safetensors file, or the
// optimizer state by whole tensors.

#include <CLI/CLI.hpp>
#include <filesystem>
#include <map>
#include <memory>
#include <vector>

#include <fmt/format.h>

#include "cli/commands.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/error.h"

namespace regatta::cli {
namespace {

struct Flags {
  std::string path, out;
  bool state = false;
};

/// Tensors in memory, ready to be written.
struct Tensors {
  std::vector<std::vector<std::byte>> values;
  std::vector<safetensors::Source> sources;

  std::byte* add(const std::string& name, DType dtype, std::vector<std::int64_t> shape) {
    safetensors::Source source{name, dtype, std::move(shape), nullptr};
    values.emplace_back(static_cast<std::size_t>(safetensors::bytes_of(source)));
    source.data = values.back().data();
    sources.push_back(std::move(source));
    return values.back().data();
  }
};

Tensors weights_of(checkpoint::Checkpoint& from) {
  Tensors tensors;
  const safetensors::Model model = from.weights();
  for (const auto& entry : model.entries()) {
    const auto dtype = entry.tensor->element_type();
    if (!dtype)
      throw Error(Code::invalid_argument,
                  entry.file->path() + ": " + entry.tensor->name + " is " + entry.tensor->dtype);
    std::byte* data = tensors.add(entry.tensor->name, *dtype, entry.tensor->shape);
    entry.read({data, static_cast<std::size_t>(entry.tensor->bytes())});
  }
  return tensors;
}

/// As `regatta replay` takes them: state.STATE.PARAM, blocks stacked, in the parameter's shape.
Tensors state_of(checkpoint::Checkpoint& from) {
  std::map<std::pair<std::string, std::string>, std::vector<checkpoint::StateKey>> blocks;  // ascending
  for (const auto& [key, tensor] : from.state()) blocks[{key.state, key.param}].push_back(key);
  const safetensors::Model model = from.weights();
  Tensors tensors;
  for (const auto& [name, keys] : blocks) {
    std::int64_t numel = 0;
    const DType dtype = from.state().at(keys[0]).dtype;
    for (const checkpoint::StateKey& key : keys) {
      numel += from.state().at(key).block.numel();
      if (from.state().at(key).dtype != dtype)
        throw Error(Code::invalid_argument, from.path() + ": " + key.text() + " has another dtype than block 0");
    }
    const auto weight = model.find(name.second);
    std::vector<std::int64_t> shape{numel};
    if (weight && weight->tensor->numel == numel) shape = weight->tensor->shape;
    std::byte* data = tensors.add("state." + name.first + "." + name.second, dtype, std::move(shape));
    for (const checkpoint::StateKey& key : keys) {
      const MatrixShape block = from.state().at(key).block;
      from.read(key, block, {{0, block.rows}, {0, block.cols}, {0, block.numel()}}, data);
      data += block.numel() * size_of(dtype);
    }
  }
  return tensors;
}

void consolidate(const Flags& flags) {
  checkpoint::Checkpoint from(flags.path);
  Tensors tensors = flags.state ? state_of(from) : weights_of(from);
  safetensors::Metadata metadata{{"format", "pt"}};
  if (flags.state) metadata = {{"step", std::to_string(from.manifest().step)}};
  safetensors::write(flags.out, tensors.sources, metadata);
  fmt::print("{}: {} tensors of step {}\n", flags.out, tensors.sources.size(), from.manifest().step);
}

}  // namespace

void add_consolidate(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command =
      app.add_subcommand("consolidate", "One weights file, or one optimizer-state file, from a checkpoint");
  command->footer(
      "Examples:\n"
      "  regatta consolidate out/checkpoints/step-00000100 --out model.safetensors\n"
      "  regatta consolidate out/checkpoints/step-00000100 --state --out state.safetensors\n"
      "State tensors are named state.STATE.PARAM, as regatta replay takes them. Checksums are checked on the way; "
      "everything is in\n"
      "memory once.");
  command->add_option("CHECKPOINT", flags->path, "A checkpoint's folder")->required();
  command->add_option("--out", flags->out, "The file to write")->required();
  command->add_flag("--state", flags->state, "The optimizer state in place of the weights");
  command->callback([flags] { consolidate(*flags); });
}

}  // namespace regatta::cli
