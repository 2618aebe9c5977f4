#pragma once
// Learning-rate schedules.

#include <cstdint>
#include <string_view>
#include <vector>

namespace regatta {

/// lr(step) = base * factor; linear warm-up over the first `warmup` steps, then constant, or linear or cosine decay to
/// `final_ratio` at `steps`; from each change's step on its value in place of that.
struct Schedule {
  enum class Kind { constant, linear, cosine };
  Kind kind = Kind::constant;
  double base = 1e-3;
  std::int64_t warmup = 0;
  std::int64_t steps = 1;
  double final_ratio = 0;
  struct Change {
    std::int64_t step = 0;  ///< counted from 0
    double lr = 0;
  };
  std::vector<Change> changes;  ///< ascending steps

  /// Learning rate of update `step`, counted from 0.
  double lr(std::int64_t step) const;
  /// "constant", "linear", "cosine"; throws Error(invalid_argument) with the list otherwise.
  static Kind parse(std::string_view name);
};

}  // namespace regatta
