#pragma once
// What the machine gives this process: cores, binding, memory, shared memory. Read from the system at the call; pure
// otherwise.

#include <cstdint>
#include <string>

namespace regatta::cli {

struct Machine {
  std::string system;     ///< "Debian GNU/Linux 12 (bookworm)"
  std::string processor;  ///< model name as the kernel tells it
  int cores_online = 1;
  int cores_allowed = 1;      ///< by the affinity mask
  double cores_by_quota = 0;  ///< by the control group; 0: no limit
  double load = 0;            ///< mean number of running processes over the last minute; negative when unknown
  std::int64_t memory_bytes = 0;
  std::int64_t memory_available_bytes = 0;
  bool has_proc = false;
  bool has_shared_memory = false;  ///< /dev/shm is there and writable
  std::int64_t shared_memory_bytes = 0;
  std::int64_t shared_memory_free_bytes = 0;
  bool is_root = false;
};

Machine read_machine();

/// The value of an environment variable, or "" when unset.
std::string environment(const char* name);

}  // namespace regatta::cli
