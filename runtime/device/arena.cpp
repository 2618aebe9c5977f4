#include "runtime/device/arena.h"

#include <algorithm>

namespace regatta {
namespace {

constexpr std::int64_t alignment = 256;

std::int64_t aligned(std::int64_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

}  // namespace

void* DeviceArena::take(std::int64_t bytes) {
  if (bytes == 0) return nullptr;
  bytes = aligned(bytes);
  if (chunks_.empty() || used_ + bytes > chunks_.back().bytes()) {
    chunks_.emplace_back(std::max(bytes, chunk_bytes), &device_);
    used_ = 0;
  }
  void* const at = chunks_.back().data() + used_;
  used_ += bytes;
  return at;
}

UploadRing::UploadRing(Device& device, std::int64_t bytes) : device_(device) {
  for (Event& event : left_) event = Event(device);
  resize(aligned(bytes / 2));
}

void UploadRing::resize(std::int64_t half_bytes) {
  half_bytes_ = half_bytes;
  host_ = Buffer::pinned(2 * half_bytes, device_);
  memory_ = Buffer(2 * half_bytes, &device_);
  recorded_[0] = recorded_[1] = false;
  cursor_ = half_ = 0;
}

UploadRing::Packet UploadRing::begin(std::int64_t bytes, StreamHandle stream) {
  const std::int64_t room = aligned(bytes);
  if (room > half_bytes_) {
    device_.synchronize(stream);
    resize(2 * room);
  } else if (cursor_ + room > half_bytes_) {
    device_.record(left_[half_].handle(), stream);
    recorded_[half_] = true;
    half_ = 1 - half_;
    cursor_ = 0;
    // The whole ring is far larger than what is usually under way, so this hardly ever waits.
    if (recorded_[half_] && !device_.done(left_[half_].handle())) device_.synchronize(stream);
  }
  const std::int64_t at = half_ * half_bytes_ + cursor_;
  cursor_ += room;
  return {host_.data() + at, memory_.data() + at, bytes};
}

void UploadRing::send(const Packet& packet, StreamHandle stream) {
  device_.copy(packet.device, packet.host, packet.bytes, stream);
}

}  // namespace regatta
