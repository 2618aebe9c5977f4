#pragma once
// The structs of the C interface, from what they say in C++.

#include "runtime/c/text.h"
#include "runtime/engine/engine.h"

namespace regatta::c_api {

inline regatta_part part_of(const sharding::BlockPart& part) {
  return {part.rows.begin, part.rows.end, part.cols.begin, part.cols.end, part.run.begin, part.run.end};
}

/// Its culprit is `from`'s.
inline regatta_step_report report_of(const StepReport& from) {
  regatta_step_report to = {};
  to.step = from.step;
  to.skipped_steps = from.skipped_steps;
  to.skipped = from.skipped ? 1 : 0;
  to.groups = static_cast<int32_t>(from.groups.size());
  to.culprit = from.culprit.c_str();
  to.lr = from.lr;
  to.grad_norm = from.grad_norm;
  to.clip_factor = from.clip_factor;
  to.loss_scale = from.loss_scale;
  to.wait_grad_seconds = from.times.wait_grad_seconds;
  to.vote_seconds = from.times.vote_seconds;
  to.sweep_seconds = from.times.sweep_seconds;
  to.wait_exchange_seconds = from.times.wait_exchange_seconds;
  to.wait_gather_seconds = from.times.wait_gather_seconds;
  to.step_seconds = from.times.step_seconds;
  to.grad_comm_seconds = from.times.grad_comm_seconds;
  to.gather_comm_seconds = from.times.gather_comm_seconds;
  to.reduce_scatter_bytes = from.bytes.reduce_scatter;
  to.all_gather_bytes = from.bytes.all_gather;
  to.exchange_bytes = from.bytes.exchange;
  to.vote_bytes = from.bytes.vote;
  return to;
}

/// Of a GroupReport or ParamReport; its name is `name` itself.
template <class Report>
regatta_figures figures_of(const Report& from, const std::string& name) {
  regatta_figures to = {};
  to.name = name.c_str();
  to.numel = from.numel;
  to.grad_norm = from.grad_norm;
  to.update_rms = from.update_rms;
  to.weight_rms = from.weight_rms;
  to.update_to_weight = from.update_to_weight;
  to.smallest_line_norm = from.smallest_line_norm;
  to.largest_line_norm = from.largest_line_norm;
  to.zero_lines = from.zero_lines;
  to.clamped_lines = from.clamped_lines;
  to.non_finite_lines = from.non_finite_lines;
  return to;
}

inline regatta_state_part state_part_of(const StatePart& from) {
  regatta_state_part to = {};
  to.state = from.state.c_str();
  to.param = from.param;
  to.block = from.block;
  to.part = part_of(from.part);
  to.data = from.data;
  to.numel = from.part.run.size();
  to.dtype = number_of_dtype(from.dtype);
  to.primary = from.primary ? 1 : 0;
  to.rows = from.shape.rows;
  to.columns = from.shape.cols;
  return to;
}

inline regatta_wire_bytes wire_bytes_of(const sharding::WireBytes& from) {
  return {from.reduce_scatter, from.all_gather, from.exchange, from.vote};
}

}  // namespace regatta::c_api
