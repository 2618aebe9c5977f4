// The emulator as the machine under test.

#include <cstring>

#include "tests/kernels/cuda/emulated_launches.h"
#include "tests/kernels/cuda/machine.h"

namespace regatta::testing {
namespace {

class EmulatedMachine final : public Machine {
 public:
  EmulatedMachine() : Machine(emulated_launches()) {}
  cuda::DeviceLimits limits() override { return emulated_limits; }
  void* allocate(std::int64_t bytes) override {
    blocks_.push_back(std::make_unique<Chunk[]>(bytes / sizeof(Chunk) + 1));
    std::memset(static_cast<void*>(blocks_.back().get()), 0x5a, (bytes / sizeof(Chunk) + 1) * sizeof(Chunk));
    return blocks_.back().get();
  }
  void write(void* to, const void* from, std::int64_t bytes) override { std::memcpy(to, from, bytes); }
  void read(void* to, const void* from, std::int64_t bytes) override { std::memcpy(to, from, bytes); }
  void free_all() override { blocks_.clear(); }
  void synchronize() override {}

 private:
  struct alignas(256) Chunk {
    char bytes[256];
  };
  std::vector<std::unique_ptr<Chunk[]>> blocks_;
};

}  // namespace

Machine* machine(std::string&) {
  static EmulatedMachine machine;
  return &machine;
}

}  // namespace regatta::testing
