#include "sharding/owners.h"

#include <algorithm>
#include <numeric>

namespace regatta::sharding {

double newton_schulz_work(MatrixShape block) {
  const auto k = static_cast<double>(std::min(block.rows, block.cols)),
             l = static_cast<double>(std::max(block.rows, block.cols));
  return 2 * k * k * l + k * k * k;
}

std::vector<int> assign_owners(std::span<const MatrixTask> tasks, int ranks) {
  std::vector<int> owners(tasks.size());
  std::vector<std::size_t> order(tasks.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return tasks[a].wave != tasks[b].wave ? tasks[a].wave < tasks[b].wave : tasks[a].work > tasks[b].work;
  });
  std::vector<double> load(ranks, 0.0);
  for (std::size_t i : order) {
    const std::vector<int>& holders = tasks[i].holders;
    owners[i] = *std::min_element(holders.begin(), holders.end(), [&](int a, int b) { return load[a] < load[b]; });
    load[owners[i]] += tasks[i].work;
  }
  return owners;
}

Range message_rows(const BlockPart& part) {
  const Range rows = part.matrix_run().touched_rows();
  return {part.rows.begin + rows.begin, part.rows.begin + rows.end};
}

Range message_columns(const BlockPart& part) { return part.cols; }

std::int64_t element_section(const View& view, const BlockPart& part) {
  return (part.run.size() * view.traffic.element_bytes + 3) / 4 * 4;
}

std::int64_t bytes_to_owner(const View& view, const BlockPart& part) {
  return element_section(view, part) + message_rows(part).size() * view.traffic.row_bytes +
         message_columns(part).size() * view.traffic.column_bytes + view.traffic.block_bytes;
}

std::int64_t bytes_from_owner(const View& view, const BlockPart& part) {
  return element_section(view, part) + message_rows(part).size() * view.traffic.row_answer_bytes +
         message_columns(part).size() * view.traffic.column_answer_bytes + view.traffic.block_answer_bytes;
}

}  // namespace regatta::sharding
