#include "runtime/checkpoint/system_calls.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <vector>

#include "runtime/error.h"

namespace regatta::checkpoint {
namespace {

[[noreturn]] void fail(const std::string& path, const char* what, int number) {
  throw Error(Code::checkpoint, path + " cannot be " + what + ": " + std::strerror(number));
}

/// Closed when it goes.
class Descriptor {
 public:
  Descriptor(const std::string& path, int flags) : number_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {}
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int number() const { return number_; }

 private:
  int number_;
};

}  // namespace

ssize_t SystemCalls::write(int descriptor, const void* data, std::size_t bytes) {
  return ::write(descriptor, data, bytes);
}
int SystemCalls::fsync(int descriptor) { return ::fsync(descriptor); }
int SystemCalls::rename(const char* from, const char* to) { return std::rename(from, to); }
std::int64_t SystemCalls::free_bytes(const std::string& folder) {
  std::error_code failed;
  const std::filesystem::space_info space = std::filesystem::space(folder, failed);
  if (failed) {
    errno = failed.value();
    return -1;
  }
  return static_cast<std::int64_t>(std::min<std::uintmax_t>(space.available, std::uintmax_t{0} + INT64_MAX));
}

SystemCalls& system_calls() {
  static SystemCalls calls;
  return calls;
}

void write_file(SystemCalls& calls, const std::string& path, Pieces pieces) {
  const Descriptor file(path, O_WRONLY | O_CREAT | O_TRUNC);
  if (file.number() < 0) fail(path, "created", errno);
  for (std::span<const std::byte> piece : pieces) {
    while (!piece.empty()) {
      const ssize_t written =
          calls.write(file.number(), piece.data(), std::min<std::size_t>(piece.size(), std::size_t{64} << 20));
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) fail(path, "written", written == 0 ? ENOSPC : errno);
      piece = piece.subspan(static_cast<std::size_t>(written));
    }
  }
  if (calls.fsync(file.number()) != 0) fail(path, "flushed to disk", errno);
}

void write_file(SystemCalls& calls, const std::string& path, const std::string& text) {
  const std::span<const std::byte> piece = std::as_bytes(std::span(text));
  write_file(calls, path, Pieces(&piece, 1));
}

void flush_folder(SystemCalls& calls, const std::string& folder) {
  const Descriptor directory(folder, O_RDONLY | O_DIRECTORY);
  if (directory.number() < 0) fail(folder, "opened", errno);
  // Some file systems have no such flush, and then need none.
  if (calls.fsync(directory.number()) != 0 && errno != EINVAL) fail(folder, "flushed to disk", errno);
}

void make_folder(SystemCalls& calls, const std::string& folder) {
  namespace fs = std::filesystem;
  std::error_code failed, ignored;
  std::vector<fs::path> above;  // of what is new
  for (fs::path at = fs::absolute(folder); !fs::exists(at, ignored) && at.has_relative_path(); at = at.parent_path())
    above.push_back(at.parent_path());
  fs::create_directories(folder, failed);
  if (failed) throw Error(Code::checkpoint, folder + " cannot be made: " + failed.message());
  for (const fs::path& each : above) flush_folder(calls, each.string());
}

void rename(SystemCalls& calls, const std::string& from, const std::string& to) {
  if (calls.rename(from.c_str(), to.c_str()) != 0) fail(from, ("renamed to " + to).c_str(), errno);
  flush_folder(calls, std::filesystem::path(to).parent_path().string());
}

}  // namespace regatta::checkpoint
