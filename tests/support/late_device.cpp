#include "tests/support/late_device.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "tests/kernels/cuda/emulated_launches.h"
#include "tests/support/late_stream.h"

namespace regatta::testing {
namespace {

using kernels::cuda::LaunchTable;

// A launch of the emulator's table, later.
template <auto entry>
struct Late;
template <class... Args, int (*LaunchTable::*entry)(Args...)>
struct Late<entry> {
  static int launch(Args... args) {
    auto held = std::make_tuple(std::decay_t<Args>(args)...);
    LateStream::of(std::get<sizeof...(Args) - 1>(held)).put([held] {
      std::apply(emulated_launches().*entry, held);
      return true;
    });
    return 0;
  }
};

const LaunchTable& late_launches() {
  using T = LaunchTable;
  static constexpr LaunchTable table = {Late<&T::update_rows>::launch,    Late<&T::update_long_rows>::launch,
                                        Late<&T::update_columns>::launch, Late<&T::observe>::launch,
                                        Late<&T::apply>::launch,          Late<&T::adamw>::launch,
                                        Late<&T::finish_lines>::launch,   Late<&T::sum_blocks>::launch,
                                        Late<&T::make_steps>::launch,     Late<&T::copy_words>::launch,
                                        Late<&T::reduce_tree>::launch,    Late<&T::cast>::launch,
                                        Late<&T::merge_health>::launch,   Late<&T::merge_figures>::launch,
                                        Late<&T::write_vote>::launch,     Late<&T::decide>::launch};
  return table;
}

// Stretches of memory by where they begin.
class Memory {
 public:
  void add(const void* at, std::int64_t bytes) { stretches_[static_cast<const std::byte*>(at)] = bytes; }
  bool remove(const void* at) { return stretches_.erase(static_cast<const std::byte*>(at)) == 1; }
  bool holds(const void* address) const {
    auto next = stretches_.upper_bound(static_cast<const std::byte*>(address));
    if (next == stretches_.begin()) return false;
    --next;
    return static_cast<const std::byte*>(address) < next->first + next->second;
  }
  bool empty() const { return stretches_.empty(); }

 private:
  std::map<const std::byte*, std::int64_t> stretches_;
};

class LateDevice final : public Device {
 public:
  explicit LateDevice(bool eager_default) : default_(std::make_shared<LateStream>(eager_default)) {
    streams_.push_back(default_);
  }
  ~LateDevice() override {
    if (!memory_.empty() || !pinned_.empty()) std::abort();
  }

  std::string name() const override { return "a late device"; }
  bool reads_host_memory() const override { return false; }
  kernels::cuda::DeviceLimits limits() override { return emulated_limits; }
  const LaunchTable& kernels() const override { return late_launches(); }
  void bind() override { LateStream::make_current(default_.get()); }

  void* allocate(std::int64_t bytes) override { return take(bytes, memory_); }
  void free(void* memory) noexcept override { give(memory, memory_); }
  void* allocate_pinned(std::int64_t bytes) override { return take(bytes, pinned_); }
  void free_pinned(void* memory) noexcept override { give(memory, pinned_); }
  std::string pin(void* memory, std::int64_t bytes) override {
    std::lock_guard lock(mutex_);
    pinned_.add(memory, bytes);
    return "";
  }
  void unpin(void* memory) noexcept override {
    settle();
    std::lock_guard lock(mutex_);
    if (!pinned_.remove(memory)) std::abort();
  }
  bool owns(const void* address) override {
    std::lock_guard lock(mutex_);
    return memory_.holds(address);
  }

  StreamHandle make_stream() override {
    std::lock_guard lock(mutex_);
    return streams_.emplace_back(std::make_shared<LateStream>()).get();
  }
  void destroy_stream(StreamHandle) noexcept override {}
  EventHandle make_event() override { return new LateStream::Mark; }
  void destroy_event(EventHandle event) noexcept override { delete &mark_of(event); }
  void record(EventHandle event, StreamHandle stream) override {
    bind();
    mark_of(event) = LateStream::of(stream).mark();
  }
  void wait(StreamHandle stream, EventHandle event) override {
    bind();
    LateStream::of(stream).wait_for(mark_of(event));
  }
  bool done(EventHandle event) override {
    const LateStream::Mark& mark = mark_of(event);
    if (!mark.reached()) mark.stream->move_on();
    return mark.reached();
  }
  void synchronize(StreamHandle stream) override {
    if (capturing_ != nullptr) std::abort();  // cudaErrorStreamCaptureUnsupported
    bind();
    LateStream::move_to(LateStream::of(stream).mark());
  }

  void copy(void* to, const void* from, std::int64_t bytes, StreamHandle stream) override {
    if (bytes == 0) return;
    bind();
    const auto count = static_cast<std::size_t>(bytes);
    if (capturing_ != nullptr && (!on_device_or_pinned(to) || !on_device_or_pinned(from))) std::abort();
    if (!on_device_or_pinned(to)) {
      synchronize(stream);
      std::memcpy(to, from, count);
    } else if (!on_device_or_pinned(from)) {
      std::vector<std::byte> aside(count);
      std::memcpy(aside.data(), from, count);
      LateStream::of(stream).put([to, aside] {
        std::memcpy(to, aside.data(), aside.size());
        return true;
      });
    } else {
      LateStream::of(stream).put([to, from, count] {
        std::memmove(to, from, count);
        return true;
      });
    }
  }
  void zero(void* to, std::int64_t bytes, StreamHandle stream) override {
    if (bytes == 0) return;
    bind();
    LateStream::of(stream).put([to, bytes] {
      std::memset(to, 0, static_cast<std::size_t>(bytes));
      return true;
    });
  }
  GraphHandle capture(const std::function<void(StreamHandle)>& body) override {
    bind();
    const auto stream = std::make_shared<LateStream>();
    capturing_ = stream.get();
    body(stream.get());
    capturing_ = nullptr;
    return new Works(stream->take_all());
  }
  void launch(GraphHandle graph, StreamHandle stream) override {
    bind();
    for (const auto& work : *static_cast<Works*>(graph)) LateStream::of(stream).put(work);
  }
  void destroy_graph(GraphHandle graph) noexcept override { delete static_cast<Works*>(graph); }

 private:
  using Works = std::deque<std::function<bool()>>;

  static LateStream::Mark& mark_of(EventHandle event) { return *static_cast<LateStream::Mark*>(event); }

  void* take(std::int64_t bytes, Memory& from) {
    void* const memory = std::aligned_alloc(256, static_cast<std::size_t>((bytes + 255) / 256 * 256));
    std::memset(memory, 0, static_cast<std::size_t>(bytes));
    std::lock_guard lock(mutex_);
    from.add(memory, bytes);
    return memory;
  }
  void give(void* memory, Memory& to) noexcept {
    settle();
    {
      std::lock_guard lock(mutex_);
      if (!to.remove(memory)) std::abort();
    }
    std::free(memory);
  }
  // Everything that can run does; what waits for other ranks is left.
  void settle() {
    std::vector<std::shared_ptr<LateStream>> streams;
    {
      std::lock_guard lock(mutex_);
      streams = streams_;
    }
    for (bool moved = true; moved;) {
      moved = false;
      for (const auto& stream : streams) moved = stream->move_on() || moved;
    }
  }
  bool on_device_or_pinned(const void* address) {
    std::lock_guard lock(mutex_);
    return memory_.holds(address) || pinned_.holds(address);
  }

  LateStream* capturing_ = nullptr;
  std::mutex mutex_;
  Memory memory_, pinned_;
  std::shared_ptr<LateStream> default_;
  std::vector<std::shared_ptr<LateStream>> streams_;
};

}  // namespace

std::shared_ptr<Device> late_device(bool eager_default) { return std::make_shared<LateDevice>(eager_default); }

}  // namespace regatta::testing
