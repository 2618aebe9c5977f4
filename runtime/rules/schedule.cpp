#include "runtime/rules/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "runtime/error.h"

namespace regatta {

double Schedule::lr(std::int64_t step) const {
  for (std::size_t i = changes.size(); i-- > 0;)
    if (changes[i].step <= step) return changes[i].lr;
  if (step < warmup) return base * static_cast<double>(step + 1) / static_cast<double>(warmup + 1);
  if (kind == Kind::constant) return base;
  const double length = static_cast<double>(std::max<std::int64_t>(steps - warmup, 1));
  const double part = std::min(static_cast<double>(step - warmup) / length, 1.0);
  const double shape = kind == Kind::linear ? 1 - part : 0.5 * (1 + std::cos(std::numbers::pi * part));
  return base * (final_ratio + (1 - final_ratio) * shape);
}

Schedule::Kind Schedule::parse(std::string_view name) {
  if (name == "constant") return Kind::constant;
  if (name == "linear") return Kind::linear;
  if (name == "cosine") return Kind::cosine;
  throw Error(Code::invalid_argument,
              "schedule '" + std::string(name) + "' is unknown; constant, linear or cosine was expected");
}

}  // namespace regatta
