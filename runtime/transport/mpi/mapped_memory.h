#pragma once
// Memory shared by processes of one host: nameless files in memory (memfd), passed on as /proc/PID/fd/N. Nothing is
// left behind when a process is killed, /dev/shm and its size do not matter, and each process frees its mapping on its
// own.

#include <map>
#include <mutex>
#include <string>

#include "runtime/transport/shared/memory_sharing.h"

namespace regatta {

class MappedSharing final : public MemorySharing {
 public:
  ~MappedSharing() override;
  Piece create(std::int64_t bytes) override;
  Piece open(const std::string& handle, std::int64_t bytes) override;
  void retire(const std::string& handle) noexcept override;

 private:
  std::mutex mutex_;
  std::map<std::string, int> files_;  // created here and not yet retired
};

}  // namespace regatta
