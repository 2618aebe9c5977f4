#pragma once
// Owning, zeroed, cache-line-aligned memory of one rank; large ones ask for huge pages. Move-only.

#include <cstddef>
#include <cstdint>

namespace regatta {

class Buffer {
 public:
  Buffer() = default;
  /// Throws Error(device) naming the size when the machine has no such memory.
  explicit Buffer(std::int64_t bytes);
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
};

}  // namespace regatta
