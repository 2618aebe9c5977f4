// The launches on the current CUDA device, if there is one.

#include <cuda_runtime_api.h>

#include <stdexcept>

#include "tests/kernels/cuda/machine.h"

namespace regatta::testing {
namespace {

void check(int code, const char* what) {
  if (code != 0) throw std::runtime_error(std::string(what) + ": " + cuda::error_text(code));
}

class DeviceMachine final : public Machine {
 public:
  DeviceMachine() : Machine(cuda::launch_table()) {}
  cuda::DeviceLimits limits() override {
    cuda::DeviceLimits limits;
    check(cuda::device_limits(limits), "device_limits");
    return limits;
  }
  void* allocate(std::int64_t bytes) override {
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes + 1), "cudaMalloc");
    check(cudaMemset(memory, 0x5a, bytes + 1), "cudaMemset");
    memory_.push_back(memory);
    return memory;
  }
  void write(void* to, const void* from, std::int64_t bytes) override {
    check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  void read(void* to, const void* from, std::int64_t bytes) override {
    check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
  }
  void free_all() override {
    for (void* memory : memory_) cudaFree(memory);
    memory_.clear();
  }

  void synchronize() override { check(cudaDeviceSynchronize(), "cudaDeviceSynchronize"); }

 private:
  std::vector<void*> memory_;
};

}  // namespace

Machine* machine(std::string& why_not) {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices < 1) {
    why_not = "no CUDA device: " + (error != cudaSuccess ? cuda::error_text(error) : std::string("none is listed"));
    return nullptr;
  }
  static DeviceMachine machine;
  return &machine;
}

}  // namespace regatta::testing
