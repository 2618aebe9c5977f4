#include "runtime/checkpoint/checkpoint.h"

#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "runtime/error.h"
#include "sharding/reshard.h"

namespace regatta::checkpoint {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void refuse(const std::string& sentence) { throw Error(Code::invalid_argument, sentence); }

std::string read_manifest(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) refuse(path.string() + " cannot be opened; a checkpoint is a folder step-N with a manifest");
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

Checkpoint::Checkpoint(const std::string& folder) : path_(folder) {
  const std::string name = (fs::path(folder) / manifest_name).string();
  manifest_ = parse_manifest(read_manifest(name), name);
  for (const FileSums& sums : manifest_.files) {
    const std::string path = (fs::path(folder) / sums.name).string();
    if (!files_.emplace(sums.name, std::make_unique<CheckedFile>(path, sums)).second)
      refuse(name + " names " + sums.name + " twice");
    // Small texts that others read without asking us.
    if (!sums.name.ends_with(".safetensors")) files_[sums.name]->verify();
  }
  for (const FileSums& sums : manifest_.files) {
    if (!sums.name.starts_with("state-")) continue;
    CheckedFile& checked = file(sums.name);
    const safetensors::File tensors(checked.path(), [&](std::int64_t offset, std::span<std::byte> destination) {
      checked.read(offset, destination);
    });
    for (const StoredPart& part : stored_parts(tensors)) {
      Tensor& tensor = state_.try_emplace(part.key, Tensor{part.block, part.dtype, 0}).first->second;
      if (tensor.block != part.block || tensor.dtype != part.dtype)
        refuse(checked.path() + ": " + part.key.text() + " has another shape or dtype than in another file");
      tensor.stored += part.part.run.size();
      parts_[part.key].push_back({part.part, &checked, part.offset});
    }
  }
}

CheckedFile& Checkpoint::file(const std::string& name) { return *files_.at(name); }

void Checkpoint::verify(int share, int of, const std::function<void(const FileSums&)>& told) {
  for (std::size_t i = static_cast<std::size_t>(share); i < manifest_.files.size(); i += static_cast<std::size_t>(of)) {
    file(manifest_.files[i].name).verify();
    if (told) told(manifest_.files[i]);
  }
}

void Checkpoint::read(const StateKey& key, MatrixShape block, const sharding::BlockPart& part, void* data) {
  const auto tensor = state_.find(key);
  if (tensor == state_.end()) refuse(path_ + " has no state " + key.text());
  if (tensor->second.block != block)
    refuse(path_ + ": the state " + key.text() + " is of a " + std::to_string(tensor->second.block.rows) + " x " +
           std::to_string(tensor->second.block.cols) + " block, not " + std::to_string(block.rows) + " x " +
           std::to_string(block.cols));
  const std::vector<Part>& sources = parts_.at(key);
  std::vector<sharding::BlockPart> offered;
  for (const Part& source : sources) offered.push_back(source.part);
  const std::int64_t size = size_of(tensor->second.dtype);
  std::int64_t filled = 0;
  for (const sharding::Copy& copy : sharding::reshard(offered, part, block.cols)) {
    const Part& source = sources[static_cast<std::size_t>(copy.source)];
    source.file->read(source.offset + copy.from * size,
                      {static_cast<std::byte*>(data) + copy.to * size, static_cast<std::size_t>(copy.count * size)});
    filled += copy.count;
  }
  if (filled != part.run.size())
    refuse(path_ + " has only " + std::to_string(filled) + " of " + std::to_string(part.run.size()) +
           " elements of the state " + key.text());
}

safetensors::Model Checkpoint::weights() {
  return safetensors::Model(path_, [this](const std::string& path) -> safetensors::ReadBytes {
    const std::string name = fs::path(path).filename().string();
    if (files_.count(name) == 0) refuse(path + " is not among the files of the manifest");
    return [checked = files_[name].get()](std::int64_t offset, std::span<std::byte> destination) {
      checked->read(offset, destination);
    };
  });
}

}  // namespace regatta::checkpoint
