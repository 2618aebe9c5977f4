#include "runtime/checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>
#include <utility>

#include "runtime/error.h"

namespace regatta::safetensors {

namespace {

constexpr std::int64_t largest_header = 100'000'000;  // the format's own limit
// A header has three levels; printing a value recurses into it, so a deep one must not get that far.
constexpr int deepest_header = 16;

struct FileType {
  std::string_view name;
  int bits;
};
constexpr FileType file_types[] = {
    {"F32", 32}, {"BF16", 16}, {"F16", 16},    {"F64", 64},    {"I64", 64},    {"I32", 32},    {"I16", 16},
    {"I8", 8},   {"U64", 64},  {"U32", 32},    {"U16", 16},    {"U8", 8},      {"BOOL", 8},    {"F8_E4M3", 8},
    {"C64", 64}, {"F4", 4},    {"F8_E8M0", 8}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F8_E5M2", 8},
};

int bits_of(std::string_view name) {
  for (const FileType& type : file_types) {
    if (type.name == name) return type.bits;
  }
  return 0;
}

[[noreturn]] void refuse(const std::string& path, const std::string& what) {
  throw Error(Code::invalid_argument, path + ": " + what);
}

[[noreturn]] void refuse(const std::string& path, const std::string& tensor, const std::string& what) {
  refuse(path, "tensor '" + tensor + "' " + what);
}

/// A JSON document whose objects name nothing twice; later duplicates would otherwise win silently.
nlohmann::json parse_strictly(const std::string& path, const std::string& text, const char* what) {
  std::vector<std::set<std::string>> keys;
  std::string duplicate;
  const auto watch = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    using Event = nlohmann::json::parse_event_t;
    if (depth > deepest_header)
      refuse(path, std::string(what) + " is nested more than " + std::to_string(deepest_header) + " levels deep");
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(parsed.get<std::string>()).second && duplicate.empty()) {
      duplicate = parsed.get<std::string>();
    }
    return true;
  };
  nlohmann::json document;
  try {
    document = nlohmann::json::parse(text, watch);
  } catch (const nlohmann::json::parse_error& error) {
    refuse(path, std::string(what) + " is not valid UTF-8 JSON at byte " + std::to_string(error.byte));
  } catch (const nlohmann::json::out_of_range&) {
    refuse(path, std::string(what) + " has a number that no double can hold");
  }
  if (!duplicate.empty()) refuse(path, std::string(what) + " names '" + duplicate + "' twice");
  if (!document.is_object()) refuse(path, std::string(what) + " is not a JSON object");
  return document;
}

void read_fully(int descriptor, const std::string& path, std::int64_t offset, std::span<std::byte> destination) {
  while (!destination.empty()) {
    const std::size_t wanted = std::min<std::size_t>(destination.size(), std::size_t{1} << 30);
    const ssize_t got = ::pread(descriptor, destination.data(), wanted, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) refuse(path, std::string("cannot be read: ") + std::strerror(errno));
    if (got == 0) refuse(path, "ends at byte " + std::to_string(offset) + " while it is being read");
    destination = destination.subspan(static_cast<std::size_t>(got));
    offset += got;
  }
}

std::int64_t dim_of(const std::string& path, const std::string& tensor, const nlohmann::json& dim) {
  // Larger than any real file, and small enough that products can be checked.
  constexpr std::uint64_t largest = std::uint64_t{1} << 62;
  if (!dim.is_number_unsigned() || dim.get<std::uint64_t>() > largest) {
    refuse(path, tensor, "has the dim or offset " + dim.dump() + " where a whole number was expected");
  }
  return dim.get<std::int64_t>();
}

Tensor tensor_of(const std::string& path, const std::string& name, const nlohmann::json& entry) {
  if (!entry.is_object() || !entry.contains("dtype") || !entry["dtype"].is_string() || !entry.contains("shape") ||
      !entry["shape"].is_array() || !entry.contains("data_offsets") || !entry["data_offsets"].is_array() ||
      entry["data_offsets"].size() != 2) {
    refuse(path, name, "has no well-formed dtype, shape and data_offsets");
  }
  Tensor tensor;
  tensor.name = name;
  tensor.dtype = entry["dtype"].get<std::string>();
  const int bits = bits_of(tensor.dtype);
  if (bits == 0) refuse(path, name, "has the unknown dtype '" + tensor.dtype + "'");
  for (const nlohmann::json& dim : entry["shape"]) {
    tensor.shape.push_back(dim_of(path, name, dim));
    if (__builtin_mul_overflow(tensor.numel, tensor.shape.back(), &tensor.numel)) {
      refuse(path, name, "has the shape " + entry["shape"].dump() + ", which is too large");
    }
  }
  tensor.begin = dim_of(path, name, entry["data_offsets"][0]);
  tensor.end = dim_of(path, name, entry["data_offsets"][1]);
  std::int64_t all_bits = 0;
  if (__builtin_mul_overflow(tensor.numel, std::int64_t{bits}, &all_bits) || all_bits % 8 != 0) {
    refuse(path, name,
           "of shape " + text_of(tensor.shape) + " and dtype " + tensor.dtype + " is not a whole number of bytes");
  }
  if (tensor.end - tensor.begin != all_bits / 8) {
    refuse(path, name,
           "of shape " + text_of(tensor.shape) + " and dtype " + tensor.dtype + " takes " +
               std::to_string(all_bits / 8) + " bytes, but its offsets " + std::to_string(tensor.begin) + " to " +
               std::to_string(tensor.end) + " span " + std::to_string(tensor.end - tensor.begin));
  }
  return tensor;
}

}  // namespace

std::optional<DType> Tensor::element_type() const {
  if (dtype == "F32") return DType::f32;
  if (dtype == "BF16") return DType::bf16;
  if (dtype == "F16") return DType::f16;
  return std::nullopt;
}

std::string_view file_name_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return "F32";
    case DType::bf16: return "BF16";
    case DType::f16: return "F16";
  }
  return "?";
}

std::string text_of(std::span<const std::int64_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

File::File(const std::string& path, ReadBytes read) : path_(path), read_(std::move(read)) {
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor_ < 0) refuse(path, std::string("cannot be opened: ") + std::strerror(errno));
  try {
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0) refuse(path, std::string("cannot be read: ") + std::strerror(errno));
    if (!S_ISREG(status.st_mode)) refuse(path, "is not a regular file");
    const std::int64_t size = status.st_size;
    if (size < 8)
      refuse(path, "is " + std::to_string(size) +
                       " bytes long and no safetensors file, which starts with 8 bytes of header length");
    unsigned char prefix[8];
    read_bytes(0, std::as_writable_bytes(std::span(prefix)));
    std::uint64_t header_bytes = 0;
    for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | prefix[i];
    if (header_bytes > static_cast<std::uint64_t>(size - 8) ||
        header_bytes > static_cast<std::uint64_t>(largest_header)) {
      refuse(path, "claims a header of " + std::to_string(header_bytes) + " bytes, but is " + std::to_string(size) +
                       " bytes long (truncated, or no safetensors file)");
    }
    std::string header(header_bytes, '\0');
    read_bytes(8, std::as_writable_bytes(std::span(header)));
    data_begin_ = 8 + static_cast<std::int64_t>(header_bytes);
    parse(header, size - data_begin_);
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

void File::parse(const std::string& header, std::int64_t data_bytes) {
  if (header.empty() || header.front() != '{')
    refuse(path_, "has a header that does not start with '{' (no safetensors file)");
  const nlohmann::json document = parse_strictly(path_, header, "the header");
  for (const auto& [name, entry] : document.items()) {
    if (name != "__metadata__") {
      tensors_.push_back(tensor_of(path_, name, entry));
      continue;
    }
    if (!entry.is_object()) refuse(path_, "has __metadata__ that is not an object of strings");
    for (const auto& [key, value] : entry.items()) {
      if (!value.is_string()) refuse(path_, "has __metadata__ '" + key + "' that is not a string");
      metadata_[key] = value.get<std::string>();
    }
  }
  std::sort(tensors_.begin(), tensors_.end(), [](const Tensor& a, const Tensor& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  std::int64_t expected = 0;
  for (const Tensor& tensor : tensors_) {
    if (tensor.end > data_bytes) {
      refuse(path_, tensor.name,
             "ends at byte " + std::to_string(tensor.end) + " of the data, but only " + std::to_string(data_bytes) +
                 " are there (truncated)");
    }
    if (tensor.begin < expected)
      refuse(path_, tensor.name, "overlaps the tensor before it at byte " + std::to_string(tensor.begin));
    if (tensor.begin > expected) {
      refuse(path_, tensor.name,
             "starts at byte " + std::to_string(tensor.begin) + " of the data and leaves a hole from " +
                 std::to_string(expected));
    }
    expected = tensor.end;
  }
  if (expected != data_bytes) {
    refuse(path_, "has " + std::to_string(data_bytes - expected) + " bytes after the last tensor");
  }
  for (std::size_t i = 0; i < tensors_.size(); ++i) by_name_[tensors_[i].name] = i;
}

void File::read_bytes(std::int64_t offset, std::span<std::byte> destination) const {
  if (read_)
    read_(offset, destination);
  else
    read_fully(descriptor_, path_, offset, destination);
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

File::File(File&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      read_(std::move(other.read_)),
      data_begin_(other.data_begin_),
      tensors_(std::move(other.tensors_)),
      by_name_(std::move(other.by_name_)),
      metadata_(std::move(other.metadata_)) {}

File& File::operator=(File&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(read_, other.read_);
  std::swap(data_begin_, other.data_begin_);
  std::swap(tensors_, other.tensors_);
  std::swap(by_name_, other.by_name_);
  std::swap(metadata_, other.metadata_);
  return *this;
}

const Tensor* File::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

void File::read(const Tensor& tensor, std::span<std::byte> destination) const {
  if (static_cast<std::int64_t>(destination.size()) != tensor.bytes()) {
    refuse(path_, tensor.name,
           "takes " + std::to_string(tensor.bytes()) + " bytes, but room for " + std::to_string(destination.size()) +
               " was given");
  }
  read_part(tensor, 0, destination);
}

void File::read_part(const Tensor& tensor, std::int64_t offset, std::span<std::byte> destination) const {
  if (offset < 0 || offset > tensor.bytes() ||
      static_cast<std::int64_t>(destination.size()) > tensor.bytes() - offset) {
    refuse(path_, tensor.name,
           "has " + std::to_string(tensor.bytes()) + " bytes, but " + std::to_string(destination.size()) +
               " were wanted from byte " + std::to_string(offset));
  }
  read_bytes(data_begin_ + tensor.begin + offset, destination);
}

}  // namespace regatta::safetensors
