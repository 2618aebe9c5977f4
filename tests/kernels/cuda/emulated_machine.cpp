// The emulator as the machine under test. Behind every array lies a page that nobody may touch.

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "tests/kernels/cuda/emulated_launches.h"
#include "tests/kernels/cuda/machine.h"

namespace regatta::testing {
namespace {

class EmulatedMachine final : public Machine {
 public:
  EmulatedMachine() : Machine(emulated_launches()) {}
  cuda::DeviceLimits limits() override { return emulated_limits; }
  void* allocate(std::int64_t bytes) override {
    const std::int64_t page = sysconf(_SC_PAGESIZE), kept = (bytes + alignment - 1) / alignment * alignment;
    const std::int64_t size = (kept + page - 1) / page * page;
    void* const mapped = mmap(nullptr, static_cast<std::size_t>(size + page), PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::runtime_error("no memory for an array");
    blocks_.emplace_back(mapped, size + page);
    char* const at = static_cast<char*>(mapped) + (size - kept);
    std::memset(at, 0x5a, static_cast<std::size_t>(kept));
    if (mprotect(static_cast<char*>(mapped) + size, static_cast<std::size_t>(page), PROT_NONE) != 0)
      throw std::runtime_error("no page to guard an array");
    return at;
  }
  void write(void* to, const void* from, std::int64_t bytes) override { std::memcpy(to, from, bytes); }
  void read(void* to, const void* from, std::int64_t bytes) override { std::memcpy(to, from, bytes); }
  void free_all() override {
    for (const auto& [mapped, bytes] : blocks_) munmap(mapped, static_cast<std::size_t>(bytes));
    blocks_.clear();
  }
  void synchronize() override {}

 private:
  static constexpr std::int64_t alignment = 256;
  std::vector<std::pair<void*, std::int64_t>> blocks_;
};

}  // namespace

Machine* machine(std::string&) {
  static EmulatedMachine machine;
  return &machine;
}

}  // namespace regatta::testing
