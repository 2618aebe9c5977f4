#include "runtime/engine/device_arrays.h"

#include <algorithm>
#include <array>
#include <memory>

#include "kernels/cuda/tiles.h"

namespace regatta {
namespace {

namespace cuda = kernels::cuda;

constexpr std::int64_t ring_bytes = 4 << 20;
constexpr std::int64_t first_results = 1024;

// Whose reduction this thread is in.
thread_local const void* reducing = nullptr;

// Parts of a packet, one after another, each at a 16-byte boundary.
class Layout {
 public:
  std::int64_t add(std::int64_t bytes) {
    const std::int64_t at = size_;
    size_ += (bytes + 15) / 16 * 16;
    return at;
  }
  std::int64_t size() const { return size_; }

 private:
  std::int64_t size_ = 0;
};

template <class T>
const T* put(const UploadRing::Packet& packet, std::int64_t at, std::span<const T> values) {
  std::memcpy(packet.host + at, values.data(), values.size_bytes());
  return reinterpret_cast<const T*>(packet.device + at);
}

}  // namespace

DeviceArrays::DeviceArrays(Device& device, StreamHandle stream, StreamHandle reductions)
    : device_(device),
      main_{stream, UploadRing(device, ring_bytes), {}, {}, {}},
      reductions_{reductions != nullptr ? reductions : stream, UploadRing(device, ring_bytes), {}, {}, {}},
      own_stream_(reductions != nullptr) {
  reductions_.results = Buffer(first_results * static_cast<std::int64_t>(sizeof(cuda::TileFigures)), &device);
}

void DeviceArrays::use_stream(StreamHandle stream) {
  main_.stream = stream;
  if (!own_stream_) reductions_.stream = stream;
}

void DeviceArrays::enter_reduction() {
  device_.bind();
  reducing = this;
}
void DeviceArrays::leave_reduction() { reducing = nullptr; }
DeviceArrays::Lane& DeviceArrays::lane() { return reducing == this ? reductions_ : main_; }

SymmetricBuffer DeviceArrays::allocate_shared(Transport& group, std::int64_t bytes) {
  if (group.device() != nullptr || device_.reads_host_memory()) return group.allocate(bytes);
  // shared_ptr: a queued collective holds the memory too.
  auto memory = std::make_shared<Buffer>(std::max<std::int64_t>(bytes, 64), &device_);
  std::byte* const data = memory->data();
  return group.adopt(data, std::max<std::int64_t>(bytes, 64), std::move(memory));
}

void DeviceArrays::copy(void* to, const void* from, std::int64_t bytes) {
  device_.copy(to, from, bytes, lane().stream);
}
void DeviceArrays::zero(void* to, std::int64_t bytes) { device_.zero(to, bytes, lane().stream); }

void DeviceArrays::accumulate(float* to, const void* from, DType dtype, std::int64_t count, bool overwrite) {
  if (count == 0) return;
  Lane& here = lane();
  const std::vector<cuda::Tile> tiles = cuda::flat_tiles({&count, 1});
  const cuda::CastSegment segment{count, from, to};
  Layout layout;
  const std::int64_t segment_at = layout.add(sizeof segment),
                     tiles_at = layout.add(static_cast<std::int64_t>(tiles.size() * sizeof(cuda::Tile)));
  const UploadRing::Packet packet = here.ring.begin(layout.size(), here.stream);
  const cuda::Cast launch{put<cuda::CastSegment>(packet, segment_at, {&segment, 1}),
                          put<cuda::Tile>(packet, tiles_at, tiles),
                          static_cast<std::int64_t>(tiles.size()),
                          dtype,
                          DType::f32,
                          !overwrite};
  here.ring.send(packet, here.stream);
  device_.check_launch(device_.kernels().cast(launch, here.stream), "the addition of a gradient");
}

void DeviceArrays::reduce_tree(std::span<const void* const> pieces, DType dtype, std::int64_t count, float* out,
                               GradientFigures* figures) {
  if (count == 0) return;
  Lane& here = lane();
  const std::vector<cuda::Tile> tiles = cuda::flat_tiles({&count, 1});
  const auto tile_count = static_cast<std::int64_t>(tiles.size());
  const cuda::MergeItem item{0, 1};
  const cuda::TileRange range{0, tile_count};
  cuda::ReduceSegment segment{count, nullptr, static_cast<std::int64_t>(pieces.size()), out};
  Layout layout;
  const std::int64_t segment_at = layout.add(sizeof segment),
                     pieces_at = layout.add(static_cast<std::int64_t>(pieces.size_bytes())),
                     tiles_at = layout.add(static_cast<std::int64_t>(tiles.size() * sizeof(cuda::Tile))),
                     item_at = layout.add(sizeof item), range_at = layout.add(sizeof range);
  const UploadRing::Packet packet = here.ring.begin(layout.size(), here.stream);
  segment.pieces = put<const void*>(packet, pieces_at, pieces);
  cuda::ReduceTree launch{put<cuda::ReduceSegment>(packet, segment_at, {&segment, 1}),
                          put<cuda::Tile>(packet, tiles_at, tiles), tile_count, dtype, nullptr};
  const auto* items = put<cuda::MergeItem>(packet, item_at, {&item, 1});
  const auto* ranges = put<cuda::TileRange>(packet, range_at, {&range, 1});
  here.ring.send(packet, here.stream);

  if (figures != nullptr) {
    const std::int64_t bytes = tile_count * static_cast<std::int64_t>(sizeof(cuda::TileFigures));
    if (here.tile_figures.bytes() < bytes) {
      device_.synchronize(here.stream);
      here.tile_figures = Buffer(2 * bytes, &device_);
    }
    if (static_cast<std::int64_t>((here.wanted.size() + 1) * sizeof(cuda::TileFigures)) > here.results.bytes())
      take_figures(here);
    launch.tile_figures = here.tile_figures.as<cuda::TileFigures>();
  }
  device_.check_launch(device_.kernels().reduce_tree(launch, here.stream), "a gradient's reduction");
  if (figures == nullptr) return;
  device_.check_launch(
      device_.kernels().merge_figures(items, 1, ranges, launch.tile_figures,
                                      here.results.as<cuda::TileFigures>() + here.wanted.size(), here.stream),
      "the figures of a gradient");
  here.wanted.push_back(figures);
}

// Exact sums merge to the same bits in any order.
void DeviceArrays::take_figures(Lane& here) {
  std::vector<cuda::TileFigures> results(here.wanted.size());
  if (!results.empty())
    device_.copy(results.data(), here.results.data(),
                 static_cast<std::int64_t>(results.size() * sizeof(cuda::TileFigures)), here.stream);
  device_.synchronize(here.stream);
  for (std::size_t i = 0; i < results.size(); ++i) {
    kernels::merge(here.wanted[i]->squares, results[i].squares);
    here.wanted[i]->non_finite += results[i].non_finite;
  }
  here.wanted.clear();
}

void DeviceArrays::finish() { take_figures(reductions_); }

}  // namespace regatta
