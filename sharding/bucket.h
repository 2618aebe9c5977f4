#pragma once
// Buckets: parameters packed one after another in the order backward finishes them, each bucket cut into one contiguous
// chunk per dp rank. Chunks may differ in length (a cut moves to the nearest allowed place) and may be empty, so every
// parameter stays contiguous and a line can stay whole.

#include <cstdint>
#include <span>
#include <vector>

#include "sharding/geometry.h"

namespace regatta::sharding {

/// Where a chunk may end.
enum class Cut : std::uint8_t {
  element,  ///< anywhere
  row,      ///< between rows of blocks whose rule sees lines; anywhere else
  matrix,   ///< between logical blocks
};

/// One parameter in a bucket; offsets and counts are elements.
struct BucketEntry {
  int param = 0;
  std::int64_t offset = 0;
  std::int64_t numel = 0;
  bool operator==(const BucketEntry&) const = default;
};

struct BucketLayout {
  std::vector<BucketEntry> entries;
  std::int64_t numel = 0;            ///< padding between entries included
  std::vector<std::int64_t> bounds;  ///< dp + 1 ascending positions, 0 and numel included
  Range chunk(int dp_rank) const { return {bounds[dp_rank], bounds[dp_rank + 1]}; }
  bool operator==(const BucketLayout&) const = default;
};

/// Entries start at multiples of this many elements, so that they are aligned to 64 bytes in every dtype.
inline constexpr std::int64_t entry_alignment = 32;

/// Packs parameters, last one first, into buckets of at least `bucket_bytes` (the last bucket may be smaller). `bytes`
/// and `kinds` have one entry per parameter; a bucket holds one kind (its dtypes). A parameter is never split between
/// buckets.
std::vector<std::vector<int>> group_params(std::span<const std::int64_t> bytes, std::span<const int> kinds,
                                           std::int64_t bucket_bytes);

/// A logical block as it lies in a parameter's local memory.
struct LocalBlock {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  bool lines = false;  ///< its rule sees lines
  std::int64_t numel() const { return rows * cols; }
};

/// Lays out `params` (indices into `local_blocks`) and cuts the bucket into dp chunks as equal as `cut` allows.
BucketLayout lay_out(std::span<const int> params, std::span<const std::vector<LocalBlock>> local_blocks, int dp,
                     Cut cut);

}  // namespace regatta::sharding
