#pragma once
// Owning, zeroed memory of one rank, on the host or on a device. On the host it is cache-line-aligned, and large ones
// ask for huge pages. Move-only.

#include <cstddef>
#include <cstdint>

namespace regatta {

class Device;

class Buffer {
 public:
  Buffer() = default;
  /// Throws Error(device) naming the size when the machine has no such memory.
  explicit Buffer(std::int64_t bytes) : Buffer(bytes, nullptr) {}
  /// Memory of `device`, which outlives it; of the host when it is null.
  Buffer(std::int64_t bytes, Device* device);
  /// Memory of the host from which `device` copies without staging.
  static Buffer pinned(std::int64_t bytes, Device& device);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  std::byte* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
  Device* device_ = nullptr;
  bool pinned_ = false;
};

}  // namespace regatta
