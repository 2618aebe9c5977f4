#pragma once
// Small arrays on a device. DeviceArena: made once, kept until the arena ends. UploadRing: for one launch, filled on
// the host and copied on the launch's stream. Neither is thread-safe.

#include <cstring>
#include <vector>

#include "runtime/device/buffer.h"
#include "runtime/device/device.h"

namespace regatta {

class DeviceArena {
 public:
  /// Memory that is asked of the device at a time; arrays may be larger.
  static constexpr std::int64_t chunk_bytes = 1 << 20;

  explicit DeviceArena(Device& device) : device_(device) {}
  /// `count` zeroed values at a 256-byte boundary; null when there are none.
  template <class T>
  T* make(std::int64_t count) {
    return static_cast<T*>(take(count * static_cast<std::int64_t>(sizeof(T))));
  }
  /// A copy of `values`. Returns when it is there.
  template <class T>
  const T* place(const std::vector<T>& values) {
    T* const to = make<T>(static_cast<std::int64_t>(values.size()));
    if (to == nullptr) return nullptr;
    device_.copy(to, values.data(), static_cast<std::int64_t>(values.size() * sizeof(T)), nullptr);
    device_.synchronize(nullptr);
    return to;
  }

 private:
  void* take(std::int64_t bytes);

  Device& device_;
  std::vector<Buffer> chunks_;
  std::int64_t used_ = 0;  // of the last chunk
};

class UploadRing {
 public:
  UploadRing(Device& device, std::int64_t bytes);
  /// Where to write `bytes` on the host, and where they will lie on the device after send().
  struct Packet {
    std::byte* host = nullptr;
    std::byte* device = nullptr;
    std::int64_t bytes = 0;
  };
  /// Waits for earlier launches when they may still read that place.
  Packet begin(std::int64_t bytes, StreamHandle stream);
  void send(const Packet& packet, StreamHandle stream);

 private:
  void resize(std::int64_t half_bytes);

  Device& device_;
  Buffer host_, memory_;
  Event left_[2];  // when the launches that read a half were put on their stream
  bool recorded_[2] = {false, false};
  std::int64_t half_bytes_ = 0, cursor_ = 0;
  int half_ = 0;
};

}  // namespace regatta
