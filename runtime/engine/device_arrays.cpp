#include "runtime/engine/device_arrays.h"

#include <algorithm>
#include <array>
#include <memory>

#include "kernels/cuda/tiles.h"

namespace regatta {
namespace {

namespace cuda = kernels::cuda;

constexpr std::int64_t ring_bytes = 4 << 20;

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
      main_{stream, UploadRing(device, ring_bytes)},
      reductions_{reductions != nullptr ? reductions : stream, UploadRing(device, ring_bytes)},
      own_stream_(reductions != nullptr) {}

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

// One launch for all of them.
void DeviceArrays::reduce_trees(std::span<const TreeSum> sums, DType dtype) {
  Lane& here = lane();
  std::vector<std::int64_t> counts;
  std::vector<cuda::ReduceSegment> segments;
  std::int64_t piece_count = 0;
  bool figures = false;
  for (const TreeSum& sum : sums) {
    counts.push_back(sum.count);
    segments.push_back({sum.count, nullptr, std::ssize(sum.pieces), sum.out});
    piece_count += std::ssize(sum.pieces);
    figures = figures || sum.figures != nullptr;
  }
  const std::vector<cuda::Tile> tiles = cuda::flat_tiles(counts);
  if (tiles.empty()) return;
  const std::int64_t tile_count = std::ssize(tiles);
  Layout layout;
  const std::int64_t segments_at = layout.add(static_cast<std::int64_t>(segments.size() * sizeof segments[0])),
                     pieces_at = layout.add(piece_count * static_cast<std::int64_t>(sizeof(void*))),
                     tiles_at = layout.add(tile_count * static_cast<std::int64_t>(sizeof(cuda::Tile)));
  const UploadRing::Packet packet = here.ring.begin(layout.size(), here.stream);
  for (std::size_t s = 0, at = 0; s < sums.size(); at += sums[s++].pieces.size_bytes())
    segments[s].pieces = put(packet, pieces_at + static_cast<std::int64_t>(at), sums[s].pieces);
  cuda::ReduceTree launch{put<cuda::ReduceSegment>(packet, segments_at, segments),
                          put<cuda::Tile>(packet, tiles_at, tiles), tile_count, dtype, nullptr};
  here.ring.send(packet, here.stream);
  if (figures) {
    launch.tile_figures = room_for_tiles(tile_count);
    const std::int64_t first = tile_count_ - tile_count;
    std::int64_t tile = 0;
    for (std::size_t s = 0; s < sums.size(); ++s) {
      const std::int64_t begin = tile;
      while (tile < tile_count && tiles[tile].segment == static_cast<std::int32_t>(s)) ++tile;
      if (sums[s].figures != nullptr && begin < tile)
        wanted_.push_back({sums[s].figures, {first + begin, first + tile}});
    }
  }
  device_.check_launch(device_.kernels().reduce_tree(launch, here.stream), "the reduction of gradients");
}

// Grows in the first steps, then stays.
cuda::TileFigures* DeviceArrays::room_for_tiles(std::int64_t count) {
  constexpr auto size = static_cast<std::int64_t>(sizeof(cuda::TileFigures));
  const std::int64_t begin = tile_count_;
  tile_count_ += count;
  if (tile_figures_.bytes() < tile_count_ * size) {
    Buffer larger(std::max(2 * tile_count_, first_tiles) * size, &device_);
    device_.copy(larger.data(), tile_figures_.data(), begin * size, reductions_.stream);
    device_.synchronize(reductions_.stream);
    tile_figures_ = std::move(larger);
  }
  return tile_figures_.as<cuda::TileFigures>() + begin;
}

// Exact sums merge to the same bits in any order.
void DeviceArrays::merge(std::span<GradientFigures> figures) {
  constexpr auto size = static_cast<std::int64_t>(sizeof(cuda::TileFigures));
  if (results_.bytes() < std::ssize(figures) * size) results_ = Buffer(std::ssize(figures) * size, &device_);
  std::sort(wanted_.begin(), wanted_.end(), [](const Wanted& a, const Wanted& b) {
    return a.figures != b.figures ? a.figures < b.figures : a.tiles.begin < b.tiles.begin;
  });
  std::vector<cuda::MergeItem> items(figures.size());
  std::vector<cuda::TileRange> ranges;
  std::size_t next = 0;
  for (std::size_t p = 0; p < figures.size(); ++p) {
    items[p].first_range = std::ssize(ranges);
    for (; next < wanted_.size() && wanted_[next].figures == &figures[p]; ++next) ranges.push_back(wanted_[next].tiles);
    items[p].range_count = std::ssize(ranges) - items[p].first_range;
  }
  wanted_.clear();
  tile_count_ = 0;
  Lane& here = reductions_;
  Layout layout;
  const std::int64_t items_at = layout.add(static_cast<std::int64_t>(items.size() * sizeof(cuda::MergeItem))),
                     ranges_at = layout.add(static_cast<std::int64_t>(ranges.size() * sizeof(cuda::TileRange)));
  const UploadRing::Packet packet = here.ring.begin(layout.size(), here.stream);
  const auto* placed = put<cuda::MergeItem>(packet, items_at, items);
  const auto* placed_ranges = put<cuda::TileRange>(packet, ranges_at, ranges);
  here.ring.send(packet, here.stream);
  device_.check_launch(
      device_.kernels().merge_figures(placed, std::ssize(items), placed_ranges, tile_figures_.as<cuda::TileFigures>(),
                                      results_.as<cuda::TileFigures>(), here.stream),
      "the figures of gradients");
}

void DeviceArrays::finish(std::span<GradientFigures> figures) {
  device_.bind();
  merge(figures);
  if (keep_figures_) return;
  landing_.resize(figures.size());
  device_.copy(landing_.data(), results_.data(), static_cast<std::int64_t>(landing_.size() * sizeof(cuda::TileFigures)),
               reductions_.stream);
  device_.synchronize(reductions_.stream);
  for (std::size_t p = 0; p < figures.size(); ++p) {
    kernels::merge(figures[p].squares, landing_[p].squares);
    figures[p].non_finite += landing_[p].non_finite;
  }
}

}  // namespace regatta
