#pragma once
// The calls by which a save reaches the disk, so that tests can make each of them fail. Thread-safe.

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace regatta::checkpoint {

/// As the calls of the same names: -1 and errno on failure.
class SystemCalls {
 public:
  virtual ~SystemCalls() = default;
  virtual ssize_t write(int descriptor, const void* data, std::size_t bytes);
  virtual int fsync(int descriptor);
  virtual int rename(const char* from, const char* to);
  /// What an ordinary user may still write to the folder's file system.
  virtual std::int64_t free_bytes(const std::string& folder);
};

/// The real ones.
SystemCalls& system_calls();

using Pieces = std::span<const std::span<const std::byte>>;

// All throw Error(checkpoint) naming the path and what the system says.

/// A new file of these pieces, one after another, on disk when this returns. Replaces what was there.
void write_file(SystemCalls&, const std::string& path, Pieces pieces);
void write_file(SystemCalls&, const std::string& path, const std::string& text);
/// The entry is on disk when this returns. `to` may be an existing file, but no folder.
void rename(SystemCalls&, const std::string& from, const std::string& to);
void flush_folder(SystemCalls&, const std::string& folder);
/// The folder and whatever is missing above it, on disk when this returns.
void make_folder(SystemCalls&, const std::string& folder);

}  // namespace regatta::checkpoint
