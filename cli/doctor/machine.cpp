#include "cli/doctor/machine.h"

#include <sched.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

namespace regatta::cli {
namespace {

/// The value of the first line `key SEPARATOR value` of a small system file; "" when there is none.
std::string value_of(const char* file, const std::string& key, char separator) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (line.rfind(key, 0) != 0) continue;
    const std::size_t at = line.find(separator);
    if (at == std::string::npos) continue;
    const std::size_t begin = line.find_first_not_of(" \t\"", at + 1);
    if (begin == std::string::npos) return "";
    return line.substr(begin, line.find_last_not_of(" \t\"") + 1 - begin);
  }
  return "";
}

std::int64_t kibibytes_of(const char* key) {
  const std::string text = value_of("/proc/meminfo", key, ':');
  return text.empty() ? 0 : std::atoll(text.c_str()) * 1024;
}

/// Control groups, version 2 ("max 100000" or "200000 100000") and 1 (two files).
double quota_cores() {
  std::ifstream unified("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (unified >> quota >> period) return quota == "max" || period <= 0 ? 0 : std::atof(quota.c_str()) / period;
  double microseconds = 0;
  std::ifstream quota_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  std::ifstream period_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  if (quota_file >> microseconds && period_file >> period && microseconds > 0 && period > 0)
    return microseconds / period;
  return 0;
}

}  // namespace

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

Machine read_machine() {
  Machine machine;
  machine.system = value_of("/etc/os-release", "PRETTY_NAME", '=');
  machine.processor = value_of("/proc/cpuinfo", "model name", ':');
  machine.cores_online = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  machine.cores_allowed =
      sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : machine.cores_online;
  machine.cores_by_quota = quota_cores();
  double averages[1] = {};
  machine.load = getloadavg(averages, 1) == 1 ? averages[0] : -1;
  machine.memory_bytes = kibibytes_of("MemTotal");
  machine.memory_available_bytes = kibibytes_of("MemAvailable");
  machine.has_proc = access("/proc/self/stat", R_OK) == 0;
  struct statvfs shared {};
  machine.has_shared_memory = access("/dev/shm", W_OK) == 0 && statvfs("/dev/shm", &shared) == 0;
  if (machine.has_shared_memory) {
    machine.shared_memory_bytes =
        static_cast<std::int64_t>(shared.f_blocks) * static_cast<std::int64_t>(shared.f_frsize);
    machine.shared_memory_free_bytes =
        static_cast<std::int64_t>(shared.f_bavail) * static_cast<std::int64_t>(shared.f_frsize);
  }
  machine.is_root = geteuid() == 0;
  return machine;
}

}  // namespace regatta::cli
