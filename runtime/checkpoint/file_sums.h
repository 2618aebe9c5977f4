#pragma once
// Checksums of a file by pieces of 1 MiB (XXH3, 64 bits), so that a reader who wants a few bytes checks just the pieces
// they lie in.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace regatta::checkpoint {

inline constexpr std::int64_t summed_piece_bytes = 1 << 20;

struct FileSums {
  std::string name;  ///< within the checkpoint's folder
  std::int64_t bytes = 0;
  std::vector<std::uint64_t> sums;  ///< of each piece; the last piece may be short
  bool operator==(const FileSums&) const = default;
};

std::uint64_t sum_of(std::span<const std::byte> data);

/// Of data that comes in parts.
class Summer {
 public:
  Summer();
  ~Summer();
  Summer(const Summer&) = delete;
  Summer& operator=(const Summer&) = delete;
  void add(std::span<const std::byte> data);
  FileSums finish(std::string name);

 private:
  struct State;
  std::unique_ptr<State> state_;
  FileSums result_;
  std::int64_t in_piece_ = 0;
};

/// Reads pieces of an open file and checks each before anybody sees it. Keeps the last piece. One thread.
class CheckedFile {
 public:
  /// Throws Error(invalid_argument) naming the file when it is missing or its length is not that of `sums`.
  CheckedFile(std::string path, FileSums sums);
  ~CheckedFile();
  CheckedFile(const CheckedFile&) = delete;
  CheckedFile& operator=(const CheckedFile&) = delete;

  const std::string& path() const { return path_; }
  std::int64_t bytes() const { return sums_.bytes; }
  /// Throws Error(invalid_argument) naming the file and the place when it is damaged there.
  void read(std::int64_t offset, std::span<std::byte> destination);
  /// Checks all of it.
  void verify();

 private:
  std::span<const std::byte> piece(std::int64_t index);
  std::string path_;
  FileSums sums_;
  int descriptor_ = -1;
  std::int64_t held_ = -1;  // the piece in piece_
  std::vector<std::byte> piece_;
};

}  // namespace regatta::checkpoint
