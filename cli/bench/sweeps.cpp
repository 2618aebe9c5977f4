#include "cli/bench/sweeps.h"

#include <sys/mman.h>

#include <chrono>
#include <cmath>
#include <cstdlib>

#include "runtime/error.h"
#include "runtime/rules/sweep_tasks.h"

namespace regatta::cli {
namespace {

constexpr std::int64_t task_numel = 1 << 18;
constexpr std::size_t huge_page = std::size_t{2} << 20;

MatrixShape wide_shape(std::int64_t elements) {
  const std::int64_t rows = static_cast<std::int64_t>(std::sqrt(static_cast<double>(elements) / 4)) / 16 * 16;
  return {rows, 4 * rows};
}

// The compiler makes the best of it for each instruction set; like the steps, it writes only what it has read.
#if defined(__x86_64__)
[[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), gnu::optimize("O3")]]
#endif
void axpy_range(float a, const float* __restrict x, float* __restrict y, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) y[i] = a * y[i] + x[i];
}

}  // namespace

BenchBuffer::BenchBuffer(std::int64_t count, ThreadPool& pool, float scale) {
  // Buffers start at different cache sets, as they would in a heap.
  static int made = 0;
  const std::size_t stagger = static_cast<std::size_t>(++made % 8) * 21 * 64;
  const std::size_t wanted = static_cast<std::size_t>(count) * sizeof(float) + stagger;
  const std::size_t bytes = (wanted + huge_page - 1) / huge_page * huge_page;
  memory_ = std::aligned_alloc(huge_page, bytes);
  if (!memory_)
    throw Error(Code::device,
                "no memory for a buffer of " + std::to_string(bytes >> 20) + " MiB; ask for fewer --elements");
#ifdef MADV_HUGEPAGE
  madvise(memory_, bytes, MADV_HUGEPAGE);
#endif
  data_ = reinterpret_cast<float*>(static_cast<std::byte*>(memory_) + stagger);
  const SweepTasks tasks({1, count, 0, count}, task_numel);
  pool.run(tasks.count(), [&](std::int64_t task, int) {
    auto state = static_cast<std::uint32_t>(task * 2654435761U + 12345U);
    const MatrixRun range = tasks.task(task);
    for (std::int64_t i = range.begin; i < range.end; ++i) {
      state = state * 1664525U + 1013904223U;
      data_[i] = scale * (static_cast<float>(state >> 8) * 0x1p-24F + 0x1p-10F);
    }
  });
}

BenchBuffer::~BenchBuffer() { std::free(memory_); }

BenchSweeps::BenchSweeps(std::int64_t elements, ThreadPool& pool)
    : wide_(wide_shape(elements)),
      tall_{wide_.cols, wide_.rows},
      grad_(wide_.numel(), pool, 1e-2F),
      momentum_(wide_.numel(), pool, 1e-2F),
      moment2_(wide_.numel(), pool, 1e-4F),
      weight_(wide_.numel(), pool, 1),
      axpy_x_(wide_.numel(), pool, 1),
      axpy_y_(wide_.numel(), pool, 1),
      reg_(make_rule("reg", {})),
      adamw_(make_rule("adamw", {})),
      lines_(wide_.rows),
      factors_(wide_.rows) {}

const std::vector<BenchSweeps::Variant>& BenchSweeps::variants() {
  static const std::vector<Variant> all = {{"axpy", 12, &BenchSweeps::axpy},
                                           {"reg_wide", 20, &BenchSweeps::reg_wide},
                                           {"reg_tall", 24, &BenchSweeps::reg_tall},
                                           {"reg_split", 24, &BenchSweeps::reg_split},
                                           {"adamw", 28, &BenchSweeps::adamw}};
  return all;
}

double BenchSweeps::time(const Variant& variant, ThreadPool& pool) {
  const auto start = std::chrono::steady_clock::now();
  (this->*variant.step)(pool);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

bool BenchSweeps::sane() const {
  for (std::int64_t i = 0; i < elements(); i += 997)
    if (!std::isfinite(weight_.data()[i]) || !std::isfinite(axpy_y_.data()[i])) return false;
  return true;
}

void BenchSweeps::axpy(ThreadPool& pool) {
  const SweepTasks tasks({1, elements(), 0, elements()}, task_numel);
  pool.run(tasks.count(), [&](std::int64_t task, int) {
    const MatrixRun range = tasks.task(task);
    axpy_range(0.5F, axpy_x_.data() + range.begin, axpy_y_.data() + range.begin, range.numel());
  });
}

RunTensors BenchSweeps::tensors(MatrixShape shape) const {
  RunTensors t;
  t.run = {shape.rows, shape.cols, 0, shape.numel()};
  t.grad = grad_.data();
  t.weight = weight_.data();
  return t;
}

void BenchSweeps::reg_wide(ThreadPool& pool) {
  RunTensors t = tensors(wide_);
  void* const state = momentum_.data();
  t.state = {&state, 1};
  kernels::SweepHealth health;
  reg_->update(t, wide_, info_, DType::f32, pool, health);
}

void BenchSweeps::open_lines(MatrixShape shape, ThreadPool& pool) {
  RunTensors t = tensors(shape);
  void* const state = momentum_.data();
  t.state = {&state, 1};
  kernels::SweepHealth health;
  std::fill(lines_.begin(), lines_.end(), kernels::LineSum{});
  reg_->observe(0, t, shape, info_, DType::f32, {}, lines_, pool);
  const double scale = reg_->step_scale(shape, info_, 0);
  for (std::size_t line = 0; line < lines_.size(); ++line)
    factors_[line] = kernels::step_factor(reg_->inverse(0, shape, {&lines_[line], 1}, health), scale);
  const kernels::LineFactors last{reg_->view(shape).passes[0], factors_.data()};
  reg_->apply(t, shape, info_, DType::f32, {&last, 1}, pool, health);
}

void BenchSweeps::reg_tall(ThreadPool& pool) { open_lines(tall_, pool); }

void BenchSweeps::reg_split(ThreadPool& pool) { open_lines(wide_, pool); }

void BenchSweeps::adamw(ThreadPool& pool) {
  RunTensors t = tensors(wide_);
  void* const state[2] = {momentum_.data(), moment2_.data()};
  t.state = state;
  kernels::SweepHealth health;
  adamw_->update(t, wide_, info_, DType::f32, pool, health);
}

}  // namespace regatta::cli
