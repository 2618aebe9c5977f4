#include "cli/finetune/token_data.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "runtime/error.h"

namespace regatta::finetune {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "token files are little-endian");

struct TokenData::File {
  std::string path;
  const unsigned char* bytes = nullptr;
  std::int64_t byte_count = 0;
  int width = 1;
  std::int64_t begin = 0;  ///< of its first token in the whole
  std::int64_t count() const { return byte_count / width; }

  explicit File(const std::string& file);
  ~File() {
    if (bytes != nullptr) ::munmap(const_cast<unsigned char*>(bytes), static_cast<std::size_t>(byte_count));
  }
  std::int64_t token(std::int64_t i) const {
    if (width == 1) return bytes[i];
    if (width == 2) return at<std::uint16_t>(i);
    return at<std::uint32_t>(i);
  }
  template <typename Id>
  Id at(std::int64_t i) const {
    Id id;
    std::memcpy(&id, bytes + i * width, sizeof id);
    return id;
  }
};

TokenData::File::File(const std::string& file) : path(file) {
  const auto refuse = [&](const std::string& what) { throw Error(Code::invalid_argument, file + ": " + what); };
  width = file.ends_with(".u16") ? 2 : file.ends_with(".u32") ? 4 : 1;
  const int descriptor = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) refuse(std::string("cannot be opened: ") + std::strerror(errno));
  struct stat status {};
  const bool known = ::fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
  byte_count = known ? status.st_size : 0;
  void* mapped = byte_count > 0
                     ? ::mmap(nullptr, static_cast<std::size_t>(byte_count), PROT_READ, MAP_PRIVATE, descriptor, 0)
                     : nullptr;
  ::close(descriptor);
  if (!known) refuse("is not a regular file");
  if (byte_count == 0) refuse("is empty");
  if (mapped == MAP_FAILED) refuse(std::string("cannot be mapped: ") + std::strerror(errno));
  bytes = static_cast<const unsigned char*>(mapped);
  if (byte_count % width != 0) {
    refuse("is " + std::to_string(byte_count) + " bytes long, which is no whole number of " + std::to_string(width) +
           "-byte tokens");
  }
}

TokenData::TokenData(const std::vector<std::string>& paths, std::int64_t vocab) {
  if (paths.empty()) throw Error(Code::invalid_argument, "no data file was given");
  for (const std::string& path : paths) {
    files_.push_back(std::make_unique<File>(path));
    File& file = *files_.back();
    file.begin = size_;
    size_ += file.count();
    has_text_ = has_text_ || file.width == 1;
    for (std::int64_t i = 0; i < file.count(); ++i) {
      if (file.token(i) >= vocab) {
        throw Error(Code::invalid_argument, path + ": token " + std::to_string(i) + " is " +
                                                std::to_string(file.token(i)) + ", but the model's vocabulary has " +
                                                std::to_string(vocab) + " entries");
      }
    }
  }
}

TokenData::~TokenData() = default;
TokenData::TokenData(TokenData&&) noexcept = default;

void TokenData::read(std::int64_t begin, std::span<std::int64_t> out) const {
  auto file = std::upper_bound(files_.begin(), files_.end(), begin,
                               [](std::int64_t token, const std::unique_ptr<File>& f) { return token < f->begin; }) -
              1;
  std::int64_t at = begin - (*file)->begin;
  for (std::int64_t& token : out) {
    while (at == (*file)->count()) {
      ++file;
      at = 0;
    }
    token = (*file)->token(at++);
  }
}

std::uint64_t mix(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15U;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9U;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebU;
  return value ^ (value >> 31);
}

WindowSampler::WindowSampler(std::int64_t tokens, std::int64_t seq, std::uint64_t seed, const std::string& what)
    : seq_(seq), windows_(seq > 0 ? (tokens - 1) / seq : 0), seed_(seed), half_bits_(1) {
  if (windows_ < 1) {
    throw Error(Code::invalid_argument, "a sequence of " + std::to_string(seq) +
                                            " tokens and the one after them do not fit " + what + ", which has " +
                                            std::to_string(tokens) + " tokens");
  }
  while ((std::int64_t{1} << (2 * half_bits_)) < windows_) ++half_bits_;
}

std::int64_t WindowSampler::begin(std::int64_t index) const {
  // A Feistel network permutes [0, 4^half_bits); walking its cycle until a value falls below `windows_` permutes [0,
  // windows_).
  const std::uint64_t key = mix(seed_ ^ mix(static_cast<std::uint64_t>(index / windows_)));
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  std::uint64_t value = static_cast<std::uint64_t>(index % windows_);
  do {
    std::uint64_t left = value >> half_bits_;
    std::uint64_t right = value & mask;
    for (std::uint64_t round = 0; round < 6; ++round) {
      const std::uint64_t next = left ^ (mix(key + round * 0x632be59bd9b4e019U + right) & mask);
      left = right;
      right = next;
    }
    value = left << half_bits_ | right;
  } while (value >= static_cast<std::uint64_t>(windows_));
  return static_cast<std::int64_t>(value) * seq_;
}

}  // namespace regatta::finetune
