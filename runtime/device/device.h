#pragma once
// A device that sweeps: its memory, its streams and events, copies between it and the host, and the kernels that run
// there. The CPU is no Device: code that is given none works on the host's own memory.
//
// One per process and piece of hardware, shared by the ranks and threads that use it; all functions are thread-safe.
// Work is put on a stream and goes on behind the caller's back: only synchronize() and the events' done() look at it.
//
// Memory comes as Buffer (buffer.h).
//
// Errors: Error(device) with what was tried and the device's own words. Destructors of the handles below never throw.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "kernels/cuda/launch_table.h"

namespace regatta {

/// A cudaStream_t; null is the device's default stream.
using StreamHandle = kernels::cuda::StreamHandle;
using EventHandle = void*;
using GraphHandle = void*;

class Device {
 public:
  virtual ~Device() = default;
  /// "cuda:0 (NVIDIA H100 80GB HBM3)"
  virtual std::string name() const = 0;
  /// Whether kernels may be given ordinary memory of the host.
  virtual bool reads_host_memory() const = 0;
  virtual kernels::cuda::DeviceLimits limits() = 0;
  virtual const kernels::cuda::LaunchTable& kernels() const = 0;
  /// Makes it the calling thread's current device, for launches that follow.
  virtual void bind() = 0;

  /// Zeroed, 256-byte aligned.
  virtual void* allocate(std::int64_t bytes) = 0;
  virtual void free(void* memory) noexcept = 0;
  /// Zeroed memory of the host that copies to and from the device need not stage.
  virtual void* allocate_pinned(std::int64_t bytes) = 0;
  virtual void free_pinned(void* memory) noexcept = 0;
  /// Makes memory of the host that there is already such memory, until unpin(). Empty when it is now, else why not.
  virtual std::string pin(void* memory, std::int64_t bytes) = 0;
  virtual void unpin(void* memory) noexcept = 0;
  /// Whether an address lies in a device's memory.
  virtual bool owns(const void* address) = 0;

  virtual StreamHandle make_stream() = 0;
  virtual void destroy_stream(StreamHandle) noexcept = 0;
  virtual EventHandle make_event() = 0;
  virtual void destroy_event(EventHandle) noexcept = 0;
  virtual void record(EventHandle, StreamHandle) = 0;
  /// What follows on the stream waits for the event.
  virtual void wait(StreamHandle, EventHandle) = 0;
  virtual bool done(EventHandle) = 0;
  /// Blocks until everything on the stream has ended.
  virtual void synchronize(StreamHandle) = 0;

  /// In any direction between the host and the device. Pinned memory must stay unchanged until the copy is done.
  virtual void copy(void* to, const void* from, std::int64_t bytes, StreamHandle) = 0;
  virtual void zero(void* to, std::int64_t bytes, StreamHandle) = 0;
  /// What `body` puts on the stream that it is given, kept to be put on streams again and again by launch(). The body
  /// runs once, now, and nothing that it puts there is done; it must not wait for the device, and memory of the host in
  /// it must be pinned. Throws what it throws.
  virtual GraphHandle capture(const std::function<void(StreamHandle)>& body) = 0;
  virtual void launch(GraphHandle, StreamHandle) = 0;
  virtual void destroy_graph(GraphHandle) noexcept = 0;
  /// Throws Error(device) naming the launch when `code` says that it was not accepted.
  void check_launch(int code, std::string_view what) const;
};

/// Memory of the host that is pinned while this lives; it must outlive this. When the device's driver refuses, a
/// warning says so once and copies are slower.
class HostPin {
 public:
  HostPin() = default;
  HostPin(Device& device, void* memory, std::int64_t bytes);
  ~HostPin() {
    if (memory_ != nullptr) device_->unpin(memory_);
  }
  HostPin(HostPin&& other) noexcept { *this = std::move(other); }
  HostPin& operator=(HostPin&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(memory_, other.memory_);
    return *this;
  }

 private:
  Device* device_ = nullptr;
  void* memory_ = nullptr;
};

class Event {
 public:
  Event() = default;
  explicit Event(Device& device) : device_(&device), handle_(device.make_event()) {}
  ~Event() {
    if (handle_ != nullptr) device_->destroy_event(handle_);
  }
  Event(Event&& other) noexcept { *this = std::move(other); }
  Event& operator=(Event&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(handle_, other.handle_);
    return *this;
  }
  EventHandle handle() const { return handle_; }

 private:
  Device* device_ = nullptr;
  EventHandle handle_ = nullptr;
};

class Stream {
 public:
  Stream() = default;
  explicit Stream(Device& device) : device_(&device), handle_(device.make_stream()) {}
  ~Stream() {
    if (handle_ != nullptr) device_->destroy_stream(handle_);
  }
  Stream(Stream&& other) noexcept { *this = std::move(other); }
  Stream& operator=(Stream&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(handle_, other.handle_);
    return *this;
  }
  StreamHandle handle() const { return handle_; }

 private:
  Device* device_ = nullptr;
  StreamHandle handle_ = nullptr;
};

class Graph {
 public:
  Graph() = default;
  Graph(Device& device, const std::function<void(StreamHandle)>& body)
      : device_(&device), handle_(device.capture(body)) {}
  ~Graph() {
    if (handle_ != nullptr) device_->destroy_graph(handle_);
  }
  Graph(Graph&& other) noexcept { *this = std::move(other); }
  Graph& operator=(Graph&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(handle_, other.handle_);
    return *this;
  }
  explicit operator bool() const { return handle_ != nullptr; }
  void launch(StreamHandle stream) const { device_->launch(handle_, stream); }

 private:
  Device* device_ = nullptr;
  GraphHandle handle_ = nullptr;
};

/// Whether this build has CUDA.
bool cuda_is_built_in();
/// CUDA devices that this process sees; 0 without CUDA or a driver.
int cuda_device_count();
/// CUDA device `index` of this process. Throws Error(device) saying whether the build has no CUDA or the machine has no
/// such device. shared_ptr: transports and engines of several ranks of a process use one device.
std::shared_ptr<Device> open_cuda_device(int index);
/// "cpu" gives null, "cuda" device `usual_index`, "cuda:N" device N; throws Error(invalid_argument) for other names.
std::shared_ptr<Device> open_device(const std::string& name, int usual_index = 0);

}  // namespace regatta
