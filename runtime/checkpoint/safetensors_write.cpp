#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "runtime/checkpoint/safetensors.h"
#include "runtime/error.h"

namespace regatta::safetensors {

namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const std::string& path, const char* what) {
  const int number = errno;
  throw Error(Code::checkpoint, path + ": cannot be " + what + ": " + std::strerror(number));
}

/// A file that appears under its name only when it is complete and on disk.
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path) : path_(path), aside_(path + ".partial") {
    descriptor_ = ::open(aside_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor_ < 0) fail(aside_, "created");
  }
  ~AtomicFile() {
    if (descriptor_ >= 0) {
      ::close(descriptor_);
      ::unlink(aside_.c_str());
    }
  }
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, std::size_t bytes) {
    const char* at = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t written = ::write(descriptor_, at, std::min(bytes, std::size_t{1} << 30));
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail(aside_, "written");
      at += written;
      bytes -= static_cast<std::size_t>(written);
    }
  }

  void publish() {
    if (::fsync(descriptor_) != 0) fail(aside_, "flushed to disk");
    if (::rename(aside_.c_str(), path_.c_str()) != 0) fail(path_, "put in place");
    ::close(descriptor_);
    descriptor_ = -1;
    const std::string folder = fs::path(path_).has_parent_path() ? fs::path(path_).parent_path().string() : ".";
    const int directory = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) fail(folder, "opened");
    const bool flushed = ::fsync(directory) == 0 || errno == EINVAL;  // some file systems have no directory flush
    ::close(directory);
    if (!flushed) fail(folder, "flushed to disk");
  }

 private:
  std::string path_;
  std::string aside_;
  int descriptor_ = -1;
};

std::string dump(const nlohmann::ordered_json& document, const std::string& path, int indent) {
  try {
    return document.dump(indent);
  } catch (const nlohmann::json::type_error&) {
    throw Error(Code::invalid_argument, path + ": a tensor's name or the metadata is not valid UTF-8");
  }
}

void write_text(const std::string& path, const std::string& text) {
  AtomicFile file(path);
  file.write(text.data(), text.size());
  file.publish();
}

}  // namespace

std::int64_t bytes_of(const Source& source) {
  std::int64_t bytes = size_of(source.dtype);
  for (const std::int64_t dim : source.shape) {
    if (dim < 0 || __builtin_mul_overflow(bytes, dim, &bytes)) {
      throw Error(Code::invalid_argument, "tensor '" + source.name + "' has the shape " + text_of(source.shape) +
                                              ", but dims from 0 up whose product fits 63 bits were expected");
    }
  }
  return bytes;
}

Layout lay_out(const std::string& path, std::span<const Source> tensors, const Metadata& metadata) {
  Layout layout;
  std::set<std::string_view> names;
  for (const Source& tensor : tensors) {
    if (tensor.name == "__metadata__" || !names.insert(tensor.name).second) {
      throw Error(Code::invalid_argument, path + ": the tensor name '" + tensor.name + "' is taken already");
    }
    layout.order.push_back(&tensor);
  }
  std::stable_sort(layout.order.begin(), layout.order.end(),
                   [](const Source* a, const Source* b) { return size_of(a->dtype) > size_of(b->dtype); });

  nlohmann::ordered_json document = nlohmann::ordered_json::object();
  if (!metadata.empty()) document["__metadata__"] = metadata;
  std::int64_t begin = 0;
  for (const Source* tensor : layout.order) {
    const std::int64_t end = begin + bytes_of(*tensor);
    document[tensor->name] = {
        {"dtype", file_name_of(tensor->dtype)}, {"shape", tensor->shape}, {"data_offsets", {begin, end}}};
    begin = end;
  }
  std::string text = dump(document, path, -1);
  text.append((8 - text.size() % 8) % 8, ' ');
  for (int i = 0; i < 8; ++i) layout.header += static_cast<char>(static_cast<std::uint64_t>(text.size()) >> (8 * i));
  layout.header += text;
  return layout;
}

void write(const std::string& path, std::span<const Source> tensors, const Metadata& metadata) {
  const Layout layout = lay_out(path, tensors, metadata);
  AtomicFile file(path);
  file.write(layout.header.data(), layout.header.size());
  for (const Source* tensor : layout.order) file.write(tensor->data, static_cast<std::size_t>(bytes_of(*tensor)));
  file.publish();
}

std::vector<std::string> write_model(const std::string& folder, const std::string& name,
                                     std::span<const Source> tensors, const Metadata& metadata,
                                     std::int64_t file_bytes) {
  // A tensor larger than file_bytes gets a file of its own.
  std::vector<std::vector<Source>> parts(1);
  std::int64_t part_bytes = 0;
  std::int64_t all_bytes = 0;
  for (const Source& tensor : tensors) {
    const std::int64_t bytes = bytes_of(tensor);
    if (!parts.back().empty() && part_bytes + bytes > file_bytes) {
      parts.emplace_back();
      part_bytes = 0;
    }
    parts.back().push_back(tensor);
    part_bytes += bytes;
    all_bytes += bytes;
  }

  const fs::path base = fs::path(folder) / name;
  const std::string index_path = base.string() + ".safetensors.index.json";
  std::vector<std::string> written;
  if (parts.size() == 1) {
    written.push_back(base.string() + ".safetensors");
    write(written.back(), parts[0], metadata);
  } else {
    nlohmann::ordered_json index;
    index["metadata"] = {{"total_size", all_bytes}};
    for (std::size_t i = 0; i < parts.size(); ++i) {
      char suffix[64];
      std::snprintf(suffix, sizeof suffix, "-%05zu-of-%05zu.safetensors", i + 1, parts.size());
      written.push_back(base.string() + suffix);
      write(written.back(), parts[i], metadata);
      for (const Source& tensor : parts[i]) index["weight_map"][tensor.name] = name + suffix;
    }
    write_text(index_path, dump(index, index_path, 2) + "\n");
    written.push_back(index_path);
  }
  // The new set is complete; what an earlier set left would be read in its stead or beside it.
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string file = entry.path().filename().string();
    const bool ours =
        file == name + ".safetensors" || file == name + ".safetensors.index.json" ||
        (file.starts_with(name + "-") && file.ends_with(".safetensors") && file.find("-of-") != std::string::npos);
    const bool kept = std::any_of(written.begin(), written.end(),
                                  [&](const std::string& path) { return fs::path(path).filename() == file; });
    if (ours && !kept) fs::remove(entry.path(), ignored);
  }
  return written;
}

}  // namespace regatta::safetensors
