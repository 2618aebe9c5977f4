#include "tests/support/emulated_device.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>

#include "runtime/error.h"
#include "tests/kernels/cuda/emulated_launches.h"

namespace regatta::testing {
namespace {

class EmulatedDevice final : public Device {
 public:
  explicit EmulatedDevice(bool reads_host_memory) : reads_host_memory_(reads_host_memory) {}
  ~EmulatedDevice() override {
    if (!pinned_.empty() || !memory_.empty()) std::abort();
  }

  std::string name() const override { return "an emulated device"; }
  bool reads_host_memory() const override { return reads_host_memory_; }
  kernels::cuda::DeviceLimits limits() override { return emulated_limits; }
  const kernels::cuda::LaunchTable& kernels() const override { return emulated_launches(); }
  void bind() override {}

  void* allocate(std::int64_t bytes) override {
    void* const memory = allocate_pinned(bytes);
    std::lock_guard lock(mutex_);
    memory_[static_cast<const std::byte*>(memory)] = bytes;
    return memory;
  }
  void free(void* memory) noexcept override {
    {
      std::lock_guard lock(mutex_);
      memory_.erase(static_cast<const std::byte*>(memory));
    }
    std::free(memory);
  }
  void* allocate_pinned(std::int64_t bytes) override {
    void* const memory = std::aligned_alloc(256, static_cast<std::size_t>((bytes + 255) / 256 * 256));
    std::memset(memory, 0, static_cast<std::size_t>(bytes));
    return memory;
  }
  void free_pinned(void* memory) noexcept override { std::free(memory); }
  std::string pin(void* memory, std::int64_t) override {
    std::lock_guard lock(mutex_);
    return pinned_.insert(memory).second ? "" : "it is pinned already";
  }
  void unpin(void* memory) noexcept override {
    std::lock_guard lock(mutex_);
    if (pinned_.erase(memory) == 0) std::abort();
  }
  bool owns(const void* address) override {
    std::lock_guard lock(mutex_);
    auto next = memory_.upper_bound(static_cast<const std::byte*>(address));
    if (next == memory_.begin()) return false;
    --next;
    return static_cast<const std::byte*>(address) < next->first + next->second;
  }

  StreamHandle make_stream() override { return nullptr; }
  void destroy_stream(StreamHandle) noexcept override {}
  EventHandle make_event() override { return this; }
  void destroy_event(EventHandle) noexcept override {}
  void record(EventHandle, StreamHandle) override {}
  void wait(StreamHandle, EventHandle) override {}
  bool done(EventHandle) override { return true; }
  void synchronize(StreamHandle) override {}
  void copy(void* to, const void* from, std::int64_t bytes, StreamHandle) override {
    if (bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
  }
  void zero(void* to, std::int64_t bytes, StreamHandle) override {
    if (bytes > 0) std::memset(to, 0, static_cast<std::size_t>(bytes));
  }
  GraphHandle capture(const std::function<void(StreamHandle)>& body) override {
    return new std::function<void(StreamHandle)>(body);
  }
  void launch(GraphHandle graph, StreamHandle stream) override {
    (*static_cast<std::function<void(StreamHandle)>*>(graph))(stream);
  }
  void destroy_graph(GraphHandle graph) noexcept override {
    delete static_cast<std::function<void(StreamHandle)>*>(graph);
  }

 private:
  bool reads_host_memory_;
  std::mutex mutex_;
  std::map<const std::byte*, std::int64_t> memory_;
  std::set<void*> pinned_;
};

}  // namespace

std::shared_ptr<Device> emulated_device(bool reads_host_memory) {
  return std::make_shared<EmulatedDevice>(reads_host_memory);
}

}  // namespace regatta::testing
