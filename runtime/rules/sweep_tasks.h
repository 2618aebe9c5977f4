#pragma once
// Cuts a run into tasks for a thread pool: groups of whole rows, or pieces of one row where rows are longer than a
// task. The cut depends on the run and the task size only, so figures added up in task order do not depend on the
// number of threads.

#include <algorithm>
#include <memory>
#include <span>

#include "kernels/kernels.h"
#include "runtime/device/thread_pool.h"
#include "sharding/geometry.h"

namespace regatta {

class SweepTasks {
 public:
  /// About `numel` elements each. Requires numel >= 1.
  SweepTasks(const MatrixRun& run, std::int64_t numel) : run_(run), numel_(numel) {
    if (run.empty()) return;
    const Range rows = run.touched_rows();
    first_row_ = rows.begin;
    pieces_per_row_ = (run.cols + numel - 1) / numel;
    rows_per_task_ = std::max<std::int64_t>(1, numel / run.cols);
    count_ = pieces_per_row_ > 1 ? rows.size() * pieces_per_row_ : (rows.size() + rows_per_task_ - 1) / rows_per_task_;
  }

  std::int64_t count() const { return count_; }
  /// Tasks are pieces of one row, and several may share a row.
  bool splits_rows() const { return pieces_per_row_ > 1; }
  /// May be empty when the run starts or ends in mid-row.
  MatrixRun task(std::int64_t index) const {
    std::int64_t begin, end;
    if (splits_rows()) {
      const std::int64_t row_begin = (first_row_ + index / pieces_per_row_) * run_.cols;
      begin = row_begin + index % pieces_per_row_ * numel_;
      end = std::min(begin + numel_, row_begin + run_.cols);
    } else {
      begin = (first_row_ + index * rows_per_task_) * run_.cols;
      end = begin + rows_per_task_ * run_.cols;
    }
    begin = std::max(begin, run_.begin);
    return {run_.rows, run_.cols, begin, std::max(begin, std::min(end, run_.end))};
  }
  /// The task's first row, counted from the first row the run touches.
  std::int64_t row_offset(std::int64_t index) const {
    return splits_rows() ? index / pieces_per_row_ : index * rows_per_task_;
  }

 private:
  MatrixRun run_;
  std::int64_t numel_;
  std::int64_t first_row_ = 0;
  std::int64_t pieces_per_row_ = 1;
  std::int64_t rows_per_task_ = 1;
  std::int64_t count_ = 0;
};

/// A thread's scratch memory as `count` default-made values.
template <class T>
std::span<T> scratch_values(ThreadPool& pool, int thread, std::int64_t count) {
  T* values = reinterpret_cast<T*>(pool.scratch(thread, count * static_cast<std::int64_t>(sizeof(T))).data());
  std::uninitialized_value_construct_n(values, count);
  return {values, static_cast<std::size_t>(count)};
}

/// Runs body(task, health of the task) and adds the figures to `health` in task order. Uses the caller's scratch.
template <class Body>
void run_with_health(ThreadPool& pool, std::int64_t count, kernels::SweepHealth& health, const Body& body) {
  const std::span<kernels::SweepHealth> parts = scratch_values<kernels::SweepHealth>(pool, 0, count);
  pool.run(count, [&](std::int64_t task, int) { body(task, parts[task]); });
  for (const kernels::SweepHealth& part : parts) health.add(part);
}

/// Address of element `offset` of an array of `dtype`.
inline void* advance(void* data, DType dtype, std::int64_t offset) {
  return static_cast<std::byte*>(data) + offset * size_of(dtype);
}
inline const void* advance(const void* data, DType dtype, std::int64_t offset) {
  return static_cast<const std::byte*>(data) + offset * size_of(dtype);
}

}  // namespace regatta
