#include "sharding/bucket.h"

namespace regatta::sharding {
namespace {

std::int64_t numel_of(const std::vector<LocalBlock>& blocks) {
  std::int64_t numel = 0;
  for (const LocalBlock& block : blocks) numel += block.numel();
  return numel;
}

std::int64_t round_to_multiple(std::int64_t value, std::int64_t unit) { return (value + unit / 2) / unit * unit; }

// The allowed place nearest to `wanted`. Rounding to the nearest member of a fixed set keeps an ascending sequence
// ascending.
std::int64_t allowed_cut(const BucketLayout& bucket, std::span<const std::vector<LocalBlock>> local_blocks, Cut cut,
                         std::int64_t wanted) {
  for (const BucketEntry& entry : bucket.entries) {
    if (wanted < entry.offset) return entry.offset;  // in the padding before this entry
    if (wanted >= entry.offset + entry.numel) continue;
    std::int64_t begin = entry.offset;
    for (const LocalBlock& block : local_blocks[entry.param]) {
      const std::int64_t inside = wanted - begin;
      if (inside >= block.numel()) {
        begin += block.numel();
        continue;
      }
      switch (cut) {
        case Cut::element: return wanted;
        case Cut::row: return block.lines ? begin + round_to_multiple(inside, block.cols) : wanted;
        case Cut::matrix: return begin + round_to_multiple(inside, block.numel());
      }
    }
  }
  return bucket.numel;
}

}  // namespace

std::vector<std::vector<int>> group_params(std::span<const std::int64_t> bytes, std::span<const int> kinds,
                                           std::int64_t bucket_bytes) {
  std::vector<std::vector<int>> buckets;
  std::int64_t filled = 0;
  for (int i = static_cast<int>(bytes.size()) - 1; i >= 0; --i) {
    if (buckets.empty() || filled >= bucket_bytes || kinds[buckets.back().front()] != kinds[i]) {
      buckets.emplace_back();
      filled = 0;
    }
    buckets.back().push_back(i);
    filled += bytes[i];
  }
  return buckets;
}

BucketLayout lay_out(std::span<const int> params, std::span<const std::vector<LocalBlock>> local_blocks, int dp,
                     Cut cut) {
  BucketLayout bucket;
  for (int param : params) {
    bucket.numel = (bucket.numel + entry_alignment - 1) / entry_alignment * entry_alignment;
    bucket.entries.push_back({param, bucket.numel, numel_of(local_blocks[param])});
    bucket.numel += bucket.entries.back().numel;
  }
  bucket.bounds.resize(dp + 1, 0);
  for (int k = 1; k < dp; ++k) {
    const auto wanted = static_cast<std::int64_t>(static_cast<__int128>(bucket.numel) * k / dp);
    bucket.bounds[k] = allowed_cut(bucket, local_blocks, cut, wanted);
  }
  bucket.bounds[dp] = bucket.numel;
  return bucket;
}

}  // namespace regatta::sharding
