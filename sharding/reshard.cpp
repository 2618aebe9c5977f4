#include "sharding/reshard.h"

namespace regatta::sharding {

std::vector<Stretch> stretches(const BlockPart& part, std::int64_t block_cols) {
  std::vector<Stretch> found;
  const MatrixRun run = part.matrix_run();
  if (run.empty()) return found;
  for (std::int64_t at = run.begin; at < run.end;) {
    const std::int64_t row = at / run.cols, col = at % run.cols;
    const std::int64_t count = std::min(run.cols - col, run.end - at);
    const std::int64_t in_block = (part.rows.begin + row) * block_cols + part.cols.begin + col;
    if (!found.empty() && found.back().in_block + found.back().count == in_block)
      found.back().count += count;
    else
      found.push_back({in_block, at - run.begin, count});
    at += count;
  }
  return found;
}

std::vector<Copy> reshard(std::span<const BlockPart> sources, const BlockPart& target, std::int64_t block_cols) {
  std::vector<Stretch> wanted = stretches(target, block_cols);
  std::vector<Copy> copies;
  for (int s = 0; s < static_cast<int>(sources.size()) && !wanted.empty(); ++s) {
    const std::vector<Stretch> offered = stretches(sources[s], block_cols);
    std::vector<Stretch> missing;
    auto offer = offered.begin();
    for (const Stretch& want : wanted) {
      std::int64_t done = want.in_block;
      const std::int64_t end = want.in_block + want.count;
      const auto miss_until = [&](std::int64_t until) {
        if (done < until) missing.push_back({done, want.in_part + done - want.in_block, until - done});
      };
      while (offer != offered.end() && offer->in_block + offer->count <= want.in_block) ++offer;
      for (auto o = offer; o != offered.end() && o->in_block < end; ++o) {
        const Range both = intersect({want.in_block, end}, {o->in_block, o->in_block + o->count});
        if (both.empty()) continue;
        miss_until(both.begin);
        copies.push_back(
            {s, o->in_part + both.begin - o->in_block, want.in_part + both.begin - want.in_block, both.size()});
        done = both.end;
      }
      miss_until(end);
    }
    wanted = std::move(missing);
  }
  return copies;
}

}  // namespace regatta::sharding
