#include "runtime/checkpoint/file_sums.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "runtime/error.h"

namespace regatta::checkpoint {

std::uint64_t sum_of(std::span<const std::byte> data) { return XXH3_64bits(data.data(), data.size()); }

struct Summer::State {
  XXH3_state_t* hash = XXH3_createState();
  ~State() { XXH3_freeState(hash); }
};

Summer::Summer() : state_(std::make_unique<State>()) { XXH3_64bits_reset(state_->hash); }
Summer::~Summer() = default;

void Summer::add(std::span<const std::byte> data) {
  result_.bytes += static_cast<std::int64_t>(data.size());
  while (!data.empty()) {
    const auto part = static_cast<std::size_t>(
        std::min<std::int64_t>(static_cast<std::int64_t>(data.size()), summed_piece_bytes - in_piece_));
    XXH3_64bits_update(state_->hash, data.data(), part);
    data = data.subspan(part);
    in_piece_ += static_cast<std::int64_t>(part);
    if (in_piece_ < summed_piece_bytes) continue;
    result_.sums.push_back(XXH3_64bits_digest(state_->hash));
    XXH3_64bits_reset(state_->hash);
    in_piece_ = 0;
  }
}

FileSums Summer::finish(std::string name) {
  if (in_piece_ > 0) result_.sums.push_back(XXH3_64bits_digest(state_->hash));
  in_piece_ = 0;
  result_.name = std::move(name);
  return std::move(result_);
}

CheckedFile::CheckedFile(std::string path, FileSums sums) : path_(std::move(path)), sums_(std::move(sums)) {
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor_ < 0) throw Error(Code::invalid_argument, path_ + " cannot be opened: " + std::strerror(errno));
  struct stat facts = {};
  if (::fstat(descriptor_, &facts) != 0 || facts.st_size != sums_.bytes) {
    ::close(descriptor_);
    throw Error(Code::invalid_argument, path_ + " has " + std::to_string(facts.st_size) + " bytes; the manifest says " +
                                            std::to_string(sums_.bytes));
  }
}

CheckedFile::~CheckedFile() { ::close(descriptor_); }

std::span<const std::byte> CheckedFile::piece(std::int64_t index) {
  if (held_ == index) return piece_;
  held_ = -1;
  const std::int64_t begin = index * summed_piece_bytes;
  piece_.resize(static_cast<std::size_t>(std::min(summed_piece_bytes, sums_.bytes - begin)));
  for (std::size_t done = 0; done < piece_.size();) {
    const ssize_t got =
        ::pread(descriptor_, piece_.data() + done, piece_.size() - done, begin + static_cast<std::int64_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0)
      throw Error(Code::invalid_argument,
                  path_ + " cannot be read: " + (got < 0 ? std::strerror(errno) : "it became shorter"));
    done += static_cast<std::size_t>(got);
  }
  if (sum_of(piece_) != sums_.sums[static_cast<std::size_t>(index)])
    throw Error(Code::invalid_argument, path_ + " is damaged: the checksum of bytes " + std::to_string(begin) + " to " +
                                            std::to_string(begin + static_cast<std::int64_t>(piece_.size())) +
                                            " is not the manifest's");
  held_ = index;
  return piece_;
}

void CheckedFile::read(std::int64_t offset, std::span<std::byte> destination) {
  while (!destination.empty()) {
    const std::int64_t index = offset / summed_piece_bytes, within = offset % summed_piece_bytes;
    if (offset < 0 || offset >= sums_.bytes)
      throw Error(Code::invalid_argument,
                  path_ + " was asked for byte " + std::to_string(offset) + " of " + std::to_string(sums_.bytes));
    const std::span<const std::byte> from = piece(index).subspan(static_cast<std::size_t>(within));
    const std::size_t count = std::min(from.size(), destination.size());
    std::memcpy(destination.data(), from.data(), count);
    destination = destination.subspan(count);
    offset += static_cast<std::int64_t>(count);
  }
}

void CheckedFile::verify() {
  for (std::size_t i = 0; i < sums_.sums.size(); ++i) piece(static_cast<std::int64_t>(i));
}

}  // namespace regatta::checkpoint
