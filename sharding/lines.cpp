#include "sharding/lines.h"

namespace regatta::sharding {

std::vector<Range> touched_lines(const BlockPart& part, Line line) {
  const MatrixRun run = part.matrix_run();
  if (run.empty()) return {};
  if (line == Line::row) {
    const Range rows = run.touched_rows();
    return {{part.rows.begin + rows.begin, part.rows.begin + rows.end}};
  }
  const std::int64_t first = run.begin % run.cols, last = (run.end - 1) % run.cols;
  const std::int64_t origin = part.cols.begin;
  const std::int64_t row_count = run.touched_rows().size();
  if (row_count == 1) return {{origin + first, origin + last + 1}};
  if (row_count > 2 || last + 1 >= first) return {part.cols};
  return {{origin, origin + last + 1}, {origin + first, part.cols.end}};
}

std::vector<OpenLines> open_lines(std::span<const LineHolder> holders) {
  std::vector<std::int64_t> edges;
  for (const LineHolder& holder : holders)
    for (const Range& range : holder.lines) {
      edges.push_back(range.begin);
      edges.push_back(range.end);
    }
  std::sort(edges.begin(), edges.end());
  edges.erase(std::unique(edges.begin(), edges.end()), edges.end());

  std::vector<OpenLines> open;
  for (std::size_t i = 0; i + 1 < edges.size(); ++i) {
    OpenLines here{{edges[i], edges[i + 1]}, {}};
    for (const LineHolder& holder : holders)
      for (const Range& range : holder.lines)
        if (range.begin <= here.lines.begin && here.lines.end <= range.end) here.ranks.push_back(holder.rank);
    if (here.ranks.size() < 2) continue;
    if (!open.empty() && open.back().lines.end == here.lines.begin && open.back().ranks == here.ranks)
      open.back().lines.end = here.lines.end;
    else
      open.push_back(std::move(here));
  }
  return open;
}

std::vector<OwnedLines> share_lines(const OpenLines& open, int turn) {
  std::vector<OwnedLines> shares;
  const int count = static_cast<int>(open.ranks.size());
  for (int i = 0; i < count; ++i) {
    const Range part = chunk(open.lines.size(), count, i);
    if (part.empty()) break;
    shares.push_back({{open.lines.begin + part.begin, open.lines.begin + part.end}, open.ranks[(i + turn) % count]});
  }
  return shares;
}

}  // namespace regatta::sharding
