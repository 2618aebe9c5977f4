#pragma once
// A step of whose figures every one is another number.

#include <cstdint>

#include "cli/finetune/totals.h"

namespace regatta::finetune {

inline StepRecord record_of(std::int64_t step, double seconds_scale = 1) {
  StepRecord record;
  record.step = step;
  record.loss = 2.5 + 0.125 * static_cast<double>(step);
  record.phases = {0.25 * seconds_scale, 0.5 * seconds_scale, 1 * seconds_scale, 2 * seconds_scale};
  StepReport& r = record.report;
  r.step = 1000 + step;
  r.lr = 0.0123;
  r.grad_norm = 17.5;
  r.clip_factor = 0.75;
  r.loss_scale = 256;
  r.groups = {{"matrices", 90, 9, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9, 10, 11},
              {"rest", 91, 12, 13.5, 14.5, 15.5, 16.5, 17.5, 18.5, 19, 20, 21}};
  r.times = {0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625, 0.001953125, 0.125, 0.0009765625};
  r.bytes = {100, 200, 400, 800};
  return record;
}

}  // namespace regatta::finetune
