// A CUDA device through the runtime library.

#include <cuda_runtime_api.h>

#include <algorithm>

#include "runtime/device/device.h"
#include "runtime/error.h"

namespace regatta {
namespace {

std::string words_of(cudaError_t error) {
  return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
}

cudaStream_t stream_of(StreamHandle handle) { return static_cast<cudaStream_t>(handle); }
cudaEvent_t event_of(EventHandle handle) { return static_cast<cudaEvent_t>(handle); }

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int index) : index_(index) {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, index), "ask for its properties");
    name_ = "cuda:" + std::to_string(index) + " (" + properties.name + ")";
  }

  std::string name() const override { return name_; }
  bool reads_host_memory() const override { return false; }
  kernels::cuda::DeviceLimits limits() override {
    bind();
    kernels::cuda::DeviceLimits limits;
    check(static_cast<cudaError_t>(kernels::cuda::device_limits(limits)), "ask for its limits");
    return limits;
  }
  const kernels::cuda::LaunchTable& kernels() const override { return kernels::cuda::launch_table(); }
  void bind() override { check(cudaSetDevice(index_), "make it current"); }

  void* allocate(std::int64_t bytes) override {
    bind();
    void* memory = nullptr;
    check(cudaMalloc(&memory, static_cast<std::size_t>(bytes)), "allocate " + std::to_string(bytes) + " bytes");
    const cudaError_t zeroed = cudaMemset(memory, 0, static_cast<std::size_t>(bytes));
    // The default stream does not hold back streams that were made non-blocking.
    const cudaError_t waited = zeroed == cudaSuccess ? cudaStreamSynchronize(nullptr) : zeroed;
    if (waited != cudaSuccess) {
      cudaFree(memory);
      check(waited, "zero " + std::to_string(bytes) + " bytes");
    }
    return memory;
  }
  void free(void* memory) noexcept override { cudaFree(memory); }
  void* allocate_pinned(std::int64_t bytes) override {
    bind();
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, static_cast<std::size_t>(bytes), cudaHostAllocPortable),
          "allocate " + std::to_string(bytes) + " bytes of pinned memory");
    auto* const data = static_cast<std::byte*>(memory);
    std::fill_n(data, bytes, std::byte{0});
    return memory;
  }
  void free_pinned(void* memory) noexcept override { cudaFreeHost(memory); }
  std::string pin(void* memory, std::int64_t bytes) override {
    bind();
    const cudaError_t error = cudaHostRegister(memory, static_cast<std::size_t>(bytes), cudaHostRegisterPortable);
    if (error == cudaSuccess) return "";
    cudaGetLastError();
    return words_of(error);
  }
  void unpin(void* memory) noexcept override {
    cudaHostUnregister(memory);
    cudaGetLastError();
  }
  bool owns(const void* address) override {
    cudaPointerAttributes attributes;
    check(cudaPointerGetAttributes(&attributes, address), "ask for an address");
    return attributes.type == cudaMemoryTypeDevice;
  }

  StreamHandle make_stream() override {
    bind();
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "make a stream");
    return stream;
  }
  void destroy_stream(StreamHandle stream) noexcept override { cudaStreamDestroy(stream_of(stream)); }
  EventHandle make_event() override {
    bind();
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "make an event");
    return event;
  }
  void destroy_event(EventHandle event) noexcept override { cudaEventDestroy(event_of(event)); }
  void record(EventHandle event, StreamHandle stream) override {
    bind();
    check(cudaEventRecord(event_of(event), stream_of(stream)), "record an event");
  }
  void wait(StreamHandle stream, EventHandle event) override {
    bind();
    check(cudaStreamWaitEvent(stream_of(stream), event_of(event), 0), "wait for an event");
  }
  bool done(EventHandle event) override {
    const cudaError_t state = cudaEventQuery(event_of(event));
    if (state == cudaErrorNotReady) return false;
    check(state, "finish what was put on it");
    return true;
  }
  void synchronize(StreamHandle stream) override {
    bind();
    check(cudaStreamSynchronize(stream_of(stream)), "finish what was put on it");
  }

  void copy(void* to, const void* from, std::int64_t bytes, StreamHandle stream) override {
    if (bytes == 0) return;
    bind();
    check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDefault, stream_of(stream)),
          "copy " + std::to_string(bytes) + " bytes");
  }
  void zero(void* to, std::int64_t bytes, StreamHandle stream) override {
    if (bytes == 0) return;
    bind();
    check(cudaMemsetAsync(to, 0, static_cast<std::size_t>(bytes), stream_of(stream)),
          "zero " + std::to_string(bytes) + " bytes");
  }

  // On a stream of its own: the default stream cannot be captured.
  GraphHandle capture(const std::function<void(StreamHandle)>& body) override {
    const Stream stream(*this);
    const cudaStream_t handle = stream_of(stream.handle());
    check(cudaStreamBeginCapture(handle, cudaStreamCaptureModeThreadLocal), "begin a graph");
    cudaGraph_t graph = nullptr;
    try {
      body(stream.handle());
    } catch (...) {
      cudaStreamEndCapture(handle, &graph);
      if (graph != nullptr) cudaGraphDestroy(graph);
      cudaGetLastError();
      throw;
    }
    check(cudaStreamEndCapture(handle, &graph), "end a graph");
    cudaGraphExec_t executable = nullptr;
    const cudaError_t made = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    check(made, "make a graph");
    return executable;
  }
  void launch(GraphHandle graph, StreamHandle stream) override {
    bind();
    check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), stream_of(stream)), "launch a graph");
  }
  void destroy_graph(GraphHandle graph) noexcept override { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)); }

 private:
  void check(cudaError_t error, const std::string& what) const {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // the next call is not to answer for this one
    throw Error(Code::device, (name_.empty() ? "cuda:" + std::to_string(index_) : name_) + " could not " + what + ": " +
                                  words_of(error));
  }

  int index_;
  std::string name_;
};

}  // namespace

bool cuda_is_built_in() { return true; }

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

std::shared_ptr<Device> open_cuda_device(int index) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    throw Error(Code::device, "there is no CUDA device here: " + words_of(error));
  }
  if (index < 0 || index >= count)
    throw Error(Code::device,
                "CUDA device " + std::to_string(index) + " was asked for; this machine shows " + std::to_string(count));
  return std::make_shared<CudaDevice>(index);
}

}  // namespace regatta
