#pragma once
// Tokens of text or token files, and which of them each micro-batch sees.
//
// Text is read byte by byte (token = byte); .u16 and .u32 files are raw little-endian token ids. Files are mapped, not
// copied, and are one long packed sequence in the order given; it must not shrink while it is in use. Immutable after
// construction, so any thread may read. Errors: Error(invalid_argument) naming the file.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace regatta::finetune {

class TokenData {
 public:
  /// Checks every id against `vocab` once.
  TokenData(const std::vector<std::string>& paths, std::int64_t vocab);
  ~TokenData();
  TokenData(TokenData&&) noexcept;

  std::int64_t size() const { return size_; }
  /// Whether any file was read as bytes.
  bool has_text() const { return has_text_; }
  /// Tokens [begin, begin + out.size()).
  void read(std::int64_t begin, std::span<std::int64_t> out) const;

 private:
  struct File;
  std::vector<std::unique_ptr<File>> files_;
  std::int64_t size_ = 0;
  bool has_text_ = false;
};

/// Which window of the data is sequence `index` of the job, index = step * global_batch + (sequence in the global
/// batch). Windows are seq + 1 tokens long and overlap by the one token that is target of one and input of the next.
/// Every epoch is another permutation of all of them. Depends on seed, data length and index only: never on ranks or
/// history.
class WindowSampler {
 public:
  /// Requires tokens > seq; throws Error(invalid_argument) naming `what` otherwise.
  WindowSampler(std::int64_t tokens, std::int64_t seq, std::uint64_t seed, const std::string& what);

  std::int64_t windows() const { return windows_; }
  /// First token of the window.
  std::int64_t begin(std::int64_t index) const;
  /// Window `i` of at most `count` that lie evenly over the data, unshuffled: for evaluation.
  std::int64_t even_begin(std::int64_t i, std::int64_t count) const { return (i * windows_ / count) * seq_; }

 private:
  std::int64_t seq_;
  std::int64_t windows_;
  std::uint64_t seed_;
  int half_bits_;
};

/// A well-mixed 64-bit hash; the only source of randomness here, so that no library's generator is part of a result.
std::uint64_t mix(std::uint64_t value);

}  // namespace regatta::finetune
