#include "runtime/device/buffer.h"

#include <sys/mman.h>

#include <string>
#include <utility>

#include "runtime/error.h"

namespace regatta {

// Anonymous mappings are zeroed and page-aligned, and their pages appear on the core that first touches them.
Buffer::Buffer(std::int64_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  void* memory =
      mmap(nullptr, static_cast<std::size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED)
    throw Error(Code::device, "this machine has no " + std::to_string(bytes) + " bytes of memory left for a buffer");
  data_ = static_cast<std::byte*>(memory);
#ifdef MADV_HUGEPAGE
  if (bytes >= (4 << 20)) madvise(memory, static_cast<std::size_t>(bytes), MADV_HUGEPAGE);
#endif
}

Buffer::~Buffer() {
  if (data_ != nullptr) munmap(data_, static_cast<std::size_t>(bytes_));
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace regatta
