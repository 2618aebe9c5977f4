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

  void update_rows(const cuda::UpdateRows& a) override { done(cuda::update_rows(a, nullptr), "update_rows"); }
  void update_long_rows(const cuda::RegLaunch& a) override {
    done(cuda::update_long_rows(a, nullptr), "update_long_rows");
  }
  void update_columns(const cuda::UpdateColumns& a) override {
    done(cuda::update_columns(a, nullptr), "update_columns");
  }
  void observe(const cuda::Observe& a) override { done(cuda::observe(a, nullptr), "observe"); }
  void apply(const cuda::RegLaunch& a) override { done(cuda::apply(a, nullptr), "apply"); }
  void adamw(const cuda::Adamw& a) override { done(cuda::adamw(a, nullptr), "adamw"); }
  void finish_lines(const cuda::FinishLines& a) override { done(cuda::finish_lines(a, nullptr), "finish_lines"); }
  void sum_blocks(const cuda::BlockItem* items, std::int64_t count) override {
    done(cuda::sum_blocks(items, count, nullptr), "sum_blocks");
  }
  void make_steps(const cuda::MakeSteps& a) override { done(cuda::make_steps(a, nullptr), "make_steps"); }
  void copy_words(const cuda::CopyItem* items, const cuda::Tile* tiles, std::int64_t tile_count) override {
    done(cuda::copy_words(items, tiles, tile_count, nullptr), "copy_words");
  }
  void reduce_tree(const cuda::ReduceTree& a) override { done(cuda::reduce_tree(a, nullptr), "reduce_tree"); }
  void cast(const cuda::Cast& a) override { done(cuda::cast(a, nullptr), "cast"); }
  void merge_health(const cuda::MergeItem* items, std::int64_t count, const cuda::TileRange* ranges,
                    const kernels::SweepHealth* tiles, kernels::SweepHealth* results) override {
    done(cuda::merge_health(items, count, ranges, tiles, results, nullptr), "merge_health");
  }
  void merge_figures(const cuda::MergeItem* items, std::int64_t count, const cuda::TileRange* ranges,
                     const cuda::TileFigures* tiles, cuda::TileFigures* results) override {
    done(cuda::merge_figures(items, count, ranges, tiles, results, nullptr), "merge_figures");
  }

 private:
  void done(int code, const char* what) {
    check(code, what);
    check(cudaDeviceSynchronize(), what);
  }
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
