#pragma once
// The sweeps that `regatta bench` times: one optimizer step on one big matrix of fp32 values, through the rules as the
// engine calls them, and the axpy that is their ceiling.

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "runtime/device/thread_pool.h"
#include "runtime/rules/rule.h"

namespace regatta::cli {

/// Page-aligned floats, on huge pages where the system has them.
class BenchBuffer {
 public:
  BenchBuffer(std::int64_t count, ThreadPool& pool, float scale);
  ~BenchBuffer();
  BenchBuffer(const BenchBuffer&) = delete;
  BenchBuffer& operator=(const BenchBuffer&) = delete;
  float* data() const { return data_; }

 private:
  void* memory_;
  float* data_;
};

class BenchSweeps {
 public:
  /// A square's worth of `elements`, rounded down to a wide matrix of k x 4k.
  BenchSweeps(std::int64_t elements, ThreadPool& pool);

  struct Variant {
    std::string_view name;
    double bytes_per_element;
    void (BenchSweeps::*step)(ThreadPool&);
  };
  /// axpy first.
  static const std::vector<Variant>& variants();

  std::int64_t elements() const { return wide_.numel(); }
  MatrixShape wide() const { return wide_; }
  /// Wall seconds of one step.
  double time(const Variant&, ThreadPool&);
  /// Whether all values are still finite: a bench of NaNs measures something else.
  bool sane() const;

 private:
  void axpy(ThreadPool&);
  void reg_wide(ThreadPool&);
  void reg_tall(ThreadPool&);
  void reg_split(ThreadPool&);
  void adamw(ThreadPool&);
  void open_lines(MatrixShape shape, ThreadPool&);
  RunTensors tensors(MatrixShape shape) const;

  MatrixShape wide_, tall_;
  BenchBuffer grad_, momentum_, moment2_, weight_, axpy_x_, axpy_y_;
  std::shared_ptr<const Rule> reg_, adamw_;
  std::vector<kernels::LineSum> lines_;
  std::vector<float> factors_;
  StepInfo info_{1e-4, 1, 1};
};

}  // namespace regatta::cli
