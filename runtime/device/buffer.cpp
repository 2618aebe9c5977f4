#include "runtime/device/buffer.h"

#include <sys/mman.h>

#include <string>
#include <utility>

#include "runtime/device/device.h"
#include "runtime/error.h"

namespace regatta {

// Anonymous mappings are zeroed and page-aligned, and their pages appear on the core that first touches them.
Buffer::Buffer(std::int64_t bytes, Device* device) : bytes_(bytes), device_(device) {
  if (bytes == 0) return;
  if (device != nullptr) {
    data_ = static_cast<std::byte*>(device->allocate(bytes));
    return;
  }
  void* memory =
      mmap(nullptr, static_cast<std::size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED)
    throw Error(Code::device, "this machine has no " + std::to_string(bytes) + " bytes of memory left for a buffer");
  data_ = static_cast<std::byte*>(memory);
#ifdef MADV_HUGEPAGE
  if (bytes >= (4 << 20)) madvise(memory, static_cast<std::size_t>(bytes), MADV_HUGEPAGE);
#endif
}

Buffer Buffer::pinned(std::int64_t bytes, Device& device) {
  Buffer buffer;
  buffer.bytes_ = bytes;
  buffer.device_ = &device;
  buffer.pinned_ = true;
  if (bytes > 0) buffer.data_ = static_cast<std::byte*>(device.allocate_pinned(bytes));
  return buffer;
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (device_ == nullptr) {
    munmap(data_, static_cast<std::size_t>(bytes_));
  } else if (pinned_) {
    device_->free_pinned(data_);
  } else {
    device_->free(data_);
  }
}

Buffer::Buffer(Buffer&& other) noexcept { *this = std::move(other); }

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(device_, other.device_);
  std::swap(pinned_, other.pinned_);
  return *this;
}

}  // namespace regatta
