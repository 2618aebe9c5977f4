// Memory of a rank and small arrays on a device, over a device that is as late as it may be and poisons what it frees.

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <random>
#include <set>

#include "runtime/device/arena.h"
#include "runtime/error.h"

namespace regatta {
namespace {

// One stream. What is put there is done when somebody waits, or some of it whenever the test says so.
class QueueDevice final : public Device {
 public:
  ~QueueDevice() override {
    for (void* memory : all_) std::free(memory);
  }
  std::string name() const override { return "a queue"; }
  bool reads_host_memory() const override { return false; }
  kernels::cuda::DeviceLimits limits() override { return {}; }
  const kernels::cuda::LaunchTable& kernels() const override { std::abort(); }
  void bind() override {}
  void* allocate(std::int64_t bytes) override { return take(bytes, device_); }
  void free(void* memory) noexcept override { give(memory, device_); }
  void* allocate_pinned(std::int64_t bytes) override { return take(bytes, host_); }
  void free_pinned(void* memory) noexcept override { give(memory, host_); }
  std::string pin(void* memory, std::int64_t) override { return pins.insert(memory).second ? "" : "pinned already"; }
  void unpin(void* memory) noexcept override { EXPECT_EQ(pins.erase(memory), 1U); }
  bool owns(const void*) override { return false; }
  StreamHandle make_stream() override { return new int(streams++); }
  void destroy_stream(StreamHandle stream) noexcept override {
    --streams;
    delete static_cast<int*>(stream);
  }
  EventHandle make_event() override { return new std::int64_t(++events * 0); }
  void destroy_event(EventHandle event) noexcept override {
    --events;
    delete static_cast<std::int64_t*>(event);
  }
  void record(EventHandle event, StreamHandle) override { *static_cast<std::int64_t*>(event) = given_; }
  void wait(StreamHandle, EventHandle) override {}
  bool done(EventHandle event) override { return ended_ >= *static_cast<std::int64_t*>(event); }
  void synchronize(StreamHandle) override {
    ++waits;
    move_on(std::ssize(queue_));
  }
  void copy(void* to, const void* from, std::int64_t bytes, StreamHandle) override {
    put([=] { std::memcpy(to, from, static_cast<std::size_t>(bytes)); });
  }
  void zero(void* to, std::int64_t bytes, StreamHandle) override {
    put([=] { std::memset(to, 0, static_cast<std::size_t>(bytes)); });
  }
  GraphHandle capture(const std::function<void(StreamHandle)>&) override { return nullptr; }
  void launch(GraphHandle, StreamHandle) override {}
  void destroy_graph(GraphHandle) noexcept override {}

  void put(std::function<void()> work) {
    queue_.push_back(std::move(work));
    ++given_;
  }
  void move_on(std::int64_t count) {
    for (; count > 0 && !queue_.empty(); --count, ++ended_) {
      queue_.front()();
      queue_.pop_front();
    }
  }
  std::size_t device_blocks() const { return device_.size(); }
  std::size_t host_blocks() const { return host_.size(); }

  int streams = 0, events = 0, waits = 0;
  std::set<void*> pins;

 private:
  using Blocks = std::map<void*, std::int64_t>;
  void* take(std::int64_t bytes, Blocks& blocks) {
    const auto size = static_cast<std::size_t>((bytes + 255) / 256 * 256);
    void* const memory = std::aligned_alloc(256, size);
    std::memset(memory, 0, size);
    blocks[memory] = bytes;
    all_.push_back(memory);
    return memory;
  }
  // It stays where it is, so that who reads it finds the poison.
  void give(void* memory, Blocks& blocks) {
    const auto found = blocks.find(memory);
    ASSERT_NE(found, blocks.end()) << "freed twice, or as another kind of memory";
    std::memset(memory, 0xdd, static_cast<std::size_t>(found->second));
    blocks.erase(found);
  }

  std::deque<std::function<void()>> queue_;
  std::int64_t given_ = 0, ended_ = 0;
  Blocks device_, host_;
  std::vector<void*> all_;
};

void expect_bytes(const void* memory, std::int64_t count, int value) {
  const auto* const bytes = static_cast<const unsigned char*>(memory);
  for (std::int64_t i = 0; i < count; ++i)
    ASSERT_EQ(bytes[i], static_cast<unsigned char>(value)) << i << " of " << count;
}

TEST(DeviceArena, ArraysAreZeroedAlignedAndStay) {
  std::mt19937 random(1);
  QueueDevice device;
  {
    DeviceArena arena(device);
    EXPECT_EQ(arena.make<float>(0), nullptr);
    EXPECT_EQ(arena.place(std::vector<double>{}), nullptr);
    struct Array {
      char* at;
      std::int64_t bytes;
    };
    std::vector<Array> arrays;
    constexpr std::int64_t chunk = DeviceArena::chunk_bytes;
    std::vector<std::int64_t> sizes = {1,     255,       256,       257, chunk - 256, chunk - 255, chunk,
                                       chunk, chunk + 1, 3 * chunk, 1,   chunk / 2,   chunk / 2,   chunk / 2 + 1,
                                       300,   chunk - 1, 5};
    for (int i = 0; i < 60; ++i) sizes.push_back(1 + static_cast<std::int64_t>(random() % (chunk / 3)));
    for (const std::int64_t bytes : sizes) {
      char* const at = arena.make<char>(bytes);
      ASSERT_EQ(reinterpret_cast<std::uintptr_t>(at) % 256, 0U);
      expect_bytes(at, bytes, 0);
      std::memset(at, static_cast<int>(arrays.size() + 1), static_cast<std::size_t>(bytes));
      arrays.push_back({at, bytes});
    }
    for (std::size_t i = 0; i < arrays.size(); ++i)
      expect_bytes(arrays[i].at, arrays[i].bytes, static_cast<int>(i + 1));
    // Small arrays share chunks.
    EXPECT_LT(device.device_blocks(), arrays.size() * 2 / 3);
    const std::vector<double> values{1, 2, 3, 4, 5};
    const double* const placed = arena.place(values);
    for (std::size_t i = 0; i < values.size(); ++i) EXPECT_EQ(placed[i], values[i]) << "there when place() returns";
    const std::int64_t before = static_cast<std::int64_t>(device.device_blocks());
    for (int i = 0; i < 4; ++i) arena.make<double>(3);
    EXPECT_LE(std::ssize(std::vector<int>(device.device_blocks())) - before, 1);
  }
  EXPECT_EQ(device.device_blocks(), 0U);
}

// Launches read their packets long after others were begun; none may find another's values there.
TEST(UploadRing, APacketIsThereUntilItsLaunchHasReadIt) {
  std::mt19937 random(2);
  for (const std::int64_t ring_bytes : {512, 2048, 5000}) {
    QueueDevice device;
    {
      UploadRing ring(device, ring_bytes);
      std::int64_t read = 0;
      for (int packet = 0; packet < 3000; ++packet) {
        std::int64_t bytes = 1 + static_cast<std::int64_t>(random() % 700);
        if (packet % 500 == 499) bytes = ring_bytes + packet;  // more than there is room for
        if (packet % 7 == 0) device.move_on(static_cast<std::int64_t>(random() % 20));
        const UploadRing::Packet there = ring.begin(bytes, nullptr);
        ASSERT_EQ(there.bytes, bytes);
        ASSERT_EQ(reinterpret_cast<std::uintptr_t>(there.device) % 256, 0U);
        ASSERT_EQ(reinterpret_cast<std::uintptr_t>(there.host) % 256, 0U);
        std::memset(there.host, packet % 251, static_cast<std::size_t>(bytes));
        ring.send(there, nullptr);
        device.put([=, &read] {
          expect_bytes(there.device, bytes, packet % 251);
          ++read;
        });
      }
      device.synchronize(nullptr);
      EXPECT_EQ(read, 3000);
      EXPECT_GT(device.waits, 10);
      // With a device that keeps up nothing waits.
      const int waits = device.waits;
      for (int packet = 0; packet < 3000; ++packet) {
        ring.send(ring.begin(1 + packet % 200, nullptr), nullptr);
        device.move_on(2);
      }
      EXPECT_EQ(device.waits, waits);
    }
    EXPECT_EQ(device.device_blocks() + device.host_blocks(), 0U);
    EXPECT_EQ(device.events, 0);
  }
}

TEST(Buffer, IsZeroedAndFreedOnceAsWhatItIs) {
  QueueDevice device;
  for (const std::int64_t bytes : {1, 64, 5000, (4 << 20) - 1, (4 << 20) + 4096}) {
    const Buffer buffer(bytes);
    EXPECT_EQ(buffer.bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % 64, 0U);
    expect_bytes(buffer.data(), std::min<std::int64_t>(bytes, 10000), 0);
    std::memset(buffer.data() + bytes - 1, 1, 1);
  }
  EXPECT_EQ(Buffer(0).data(), nullptr);
  EXPECT_EQ(Buffer::pinned(0, device).data(), nullptr);
  {
    Buffer on_device(100, &device), pinned = Buffer::pinned(200, device), host(300), empty;
    EXPECT_EQ(device.device_blocks(), 1U);
    EXPECT_EQ(device.host_blocks(), 1U);
    std::byte* const at[] = {on_device.data(), pinned.data(), host.data()};
    Buffer moved = std::move(pinned);  // each takes its kind of memory along
    empty = std::move(on_device);
    host = std::move(moved);
    EXPECT_EQ(host.data(), at[1]);
    EXPECT_EQ(host.bytes(), 200);
    EXPECT_EQ(empty.data(), at[0]);
    EXPECT_EQ(empty.bytes(), 100);
    EXPECT_EQ(device.device_blocks() + device.host_blocks(), 2U);
  }
  EXPECT_EQ(device.device_blocks() + device.host_blocks(), 0U);
  try {
    const Buffer too_large(std::int64_t{1} << 60);
    ADD_FAILURE() << "there is no such machine";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::device);
    EXPECT_NE(std::string(error.what()).find("1152921504606846976"), std::string::npos);
  }
}

TEST(HostPins, ARefusedOneIsSaidOnceForAll) {
  QueueDevice device;
  std::int64_t memory = 0;
  const HostPin pin(device, &memory, 8);
  ::testing::internal::CaptureStderr();
  for (int i = 0; i < 3; ++i) const HostPin refused(device, &memory, 8);
  const std::string said = ::testing::internal::GetCapturedStderr();
  const std::size_t first = said.find("could not pin");
  EXPECT_TRUE(first == std::string::npos || said.find("could not pin", first + 1) == std::string::npos) << said;
}

TEST(DeviceHandles, EndWithTheirOwnersAndOnlyThen) {
  QueueDevice device;
  char memory[2][8];
  {
    Event event(device), second_event(device), taken_event = std::move(event);
    Stream stream(device), other(device);
    second_event = Event();
    EXPECT_EQ(event.handle(), nullptr);
    EXPECT_NE(taken_event.handle(), nullptr);
    HostPin pin(device, memory[0], 8), nothing(device, nullptr, 0), again(device, memory[0], 8);
    HostPin taken = std::move(pin), second(device, memory[1], 8);
    EXPECT_EQ(device.pins.size(), 2U);
    EXPECT_EQ(device.streams, 2);
    EXPECT_EQ(device.events, 1);
  }
  EXPECT_EQ(device.pins.size(), 0U);
  EXPECT_EQ(device.streams + device.events, 0);
}

TEST(OpenDevice, KnowsItsNames) {
  EXPECT_EQ(open_device("cpu"), nullptr);
  for (const char* name : {"", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda: 1", "Cuda", "cuda1"}) {
    try {
      open_device(name);
      ADD_FAILURE() << "took " << name;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_argument);
      EXPECT_EQ(std::string(error.what()), "device is '" + std::string(name) + "'; expected cpu, cuda or cuda:N");
    }
  }
}

}  // namespace
}  // namespace regatta
