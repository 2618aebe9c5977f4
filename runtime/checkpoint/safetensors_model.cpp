#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "runtime/checkpoint/safetensors.h"
#include "runtime/error.h"

namespace regatta::safetensors {

namespace fs = std::filesystem;

std::unique_ptr<File> Model::open(const std::string& path) const {
  return std::make_unique<File>(path, reader_of_ ? reader_of_(path) : ReadBytes());
}

Model::Model(const std::string& path, std::function<ReadBytes(const std::string& file)> reader_of)
    : reader_of_(std::move(reader_of)) {
  fs::path file = path;
  std::error_code ignored;
  if (fs::is_directory(file, ignored)) {
    const fs::path single = file / "model.safetensors";
    const fs::path index = file / "model.safetensors.index.json";
    const bool has_single = fs::exists(single, ignored);
    const bool has_index = fs::exists(index, ignored);
    if (has_single && has_index) {
      throw Error(Code::invalid_argument,
                  path + " holds both model.safetensors and model.safetensors.index.json; name the one to read");
    }
    if (!has_single && !has_index) {
      throw Error(Code::invalid_argument, path + " holds neither model.safetensors nor model.safetensors.index.json");
    }
    file = has_single ? single : index;
  }
  if (file.extension() == ".json") {
    open_index(file.string());
  } else {
    files_.push_back(open(file.string()));
    for (const Tensor& tensor : files_.back()->tensors()) entries_.push_back({&tensor, files_.back().get()});
  }
  for (std::size_t i = 0; i < entries_.size(); ++i) by_name_[entries_[i].tensor->name] = i;
}

void Model::open_index(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw Error(Code::invalid_argument, path + ": cannot be opened");
  const std::string text{std::istreambuf_iterator<char>(stream), {}};
  const nlohmann::json index = nlohmann::json::parse(text, nullptr, false);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object() ||
      index["weight_map"].empty()) {
    throw Error(Code::invalid_argument,
                path + ": is no index: a JSON object with a 'weight_map' of tensor names to files was expected");
  }
  std::map<std::string, File*> by_file;
  const nlohmann::json& map = index["weight_map"];
  for (const auto& [tensor, file] : map.items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (name.empty() || fs::path(name).filename() != name || name == "..") {
      throw Error(Code::invalid_argument,
                  path + ": tensor '" + tensor + "' is mapped to " +
                      (file.is_string() ? file.dump() : std::string("a JSON ") + file.type_name()) +
                      ", but the name of a file beside the index was expected");
    }
    File*& opened = by_file[name];
    if (opened == nullptr) {
      files_.push_back(open((fs::path(path).parent_path() / name).string()));
      opened = files_.back().get();
    }
    if (opened->find(tensor) == nullptr) {
      throw Error(Code::invalid_argument,
                  path + ": tensor '" + tensor + "' is not in " + name + ", where the index puts it");
    }
  }
  for (const auto& file : files_) {
    for (const Tensor& tensor : file->tensors()) {
      const auto mapped = map.find(tensor.name);
      if (mapped == map.end() || *mapped != fs::path(file->path()).filename().string()) {
        throw Error(Code::invalid_argument,
                    file->path() + ": tensor '" + tensor.name + "' is not in the index " + path);
      }
      entries_.push_back({&tensor, file.get()});
    }
  }
}

std::optional<Model::Entry> Model::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  if (found == by_name_.end()) return std::nullopt;
  return entries_[found->second];
}

}  // namespace regatta::safetensors
