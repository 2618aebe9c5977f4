#pragma once
// Learning-rate schedules.

#include <cstdint>
#include <string_view>

namespace regatta {

/// lr(step) = base * factor; linear warm-up over the first `warmup` steps, then constant, or linear or cosine decay to
/// `final_ratio` at `steps`.
struct Schedule {
  enum class Kind { constant, linear, cosine };
  Kind kind = Kind::constant;
  double base = 1e-3;
  std::int64_t warmup = 0;
  std::int64_t steps = 1;
  double final_ratio = 0;

  /// Learning rate of update `step`, counted from 0.
  double lr(std::int64_t step) const;
  /// "constant", "linear", "cosine"; throws Error(invalid_argument) with the list otherwise.
  static Kind parse(std::string_view name);
};

}  // namespace regatta
