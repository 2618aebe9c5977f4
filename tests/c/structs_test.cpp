// The structs of the C interface: every field from a report in which every number is another one.

#include "runtime/c/structs.h"

#include <gtest/gtest.h>

#include <cstring>

namespace regatta::c_api {
namespace {

TEST(CStructs, StepReport) {
  StepReport from;
  from.step = 1;
  from.skipped = true;
  from.culprit = "the culprit";
  from.skipped_steps = 2;
  from.lr = 3.5;
  from.grad_norm = 4.5;
  from.clip_factor = 5.5;
  from.loss_scale = 6.5;
  from.groups.resize(7);
  from.times = {8.5, 9.5, 10.5, 11.5, 12.5, 13.5, 14.5, 15.5};
  from.bytes = {16, 17, 18, 19};
  EXPECT_EQ(from.times.wait_exchange_seconds, 11.5);
  const regatta_step_report to = report_of(from);
  EXPECT_EQ(to.step, 1);
  EXPECT_EQ(to.skipped, 1);
  EXPECT_STREQ(to.culprit, "the culprit");
  EXPECT_EQ(to.skipped_steps, 2);
  EXPECT_EQ(to.lr, 3.5);
  EXPECT_EQ(to.grad_norm, 4.5);
  EXPECT_EQ(to.clip_factor, 5.5);
  EXPECT_EQ(to.loss_scale, 6.5);
  EXPECT_EQ(to.groups, 7);
  EXPECT_EQ(to.wait_grad_seconds, from.times.wait_grad_seconds);
  EXPECT_EQ(to.vote_seconds, from.times.vote_seconds);
  EXPECT_EQ(to.sweep_seconds, from.times.sweep_seconds);
  EXPECT_EQ(to.wait_exchange_seconds, from.times.wait_exchange_seconds);
  EXPECT_EQ(to.wait_gather_seconds, from.times.wait_gather_seconds);
  EXPECT_EQ(to.step_seconds, from.times.step_seconds);
  EXPECT_EQ(to.grad_comm_seconds, from.times.grad_comm_seconds);
  EXPECT_EQ(to.gather_comm_seconds, from.times.gather_comm_seconds);
  EXPECT_EQ(to.reduce_scatter_bytes, from.bytes.reduce_scatter);
  EXPECT_EQ(to.all_gather_bytes, from.bytes.all_gather);
  EXPECT_EQ(to.exchange_bytes, from.bytes.exchange);
  EXPECT_EQ(to.vote_bytes, from.bytes.vote);
  EXPECT_EQ(report_of(StepReport{}).skipped, 0);
}

template <class Report>
void expect_figures() {
  Report from;
  from.numel = 1;
  from.grad_norm = 2.5;
  from.update_rms = 3.5;
  from.weight_rms = 4.5;
  from.update_to_weight = 5.5;
  from.smallest_line_norm = 6.5;
  from.largest_line_norm = 7.5;
  from.zero_lines = 8;
  from.clamped_lines = 9;
  from.non_finite_lines = 10;
  const std::string name = "its name";
  const regatta_figures to = figures_of(from, name);
  EXPECT_EQ(to.name, name.c_str());
  EXPECT_EQ(to.numel, 1);
  EXPECT_EQ(to.grad_norm, 2.5);
  EXPECT_EQ(to.update_rms, 3.5);
  EXPECT_EQ(to.weight_rms, 4.5);
  EXPECT_EQ(to.update_to_weight, 5.5);
  EXPECT_EQ(to.smallest_line_norm, 6.5);
  EXPECT_EQ(to.largest_line_norm, 7.5);
  EXPECT_EQ(to.zero_lines, 8);
  EXPECT_EQ(to.clamped_lines, 9);
  EXPECT_EQ(to.non_finite_lines, 10);
}

TEST(CStructs, Figures) {
  expect_figures<GroupReport>();
  expect_figures<ParamReport>();
}

TEST(CStructs, StatePartAndBytes) {
  StatePart from{"moment2", 1, 2, {{3, 4}, {5, 6}, {7, 100}}, &from, DType::bf16, false, {11, 12}};
  regatta_state_part to = state_part_of(from);
  EXPECT_STREQ(to.state, "moment2");
  EXPECT_EQ(to.param, 1);
  EXPECT_EQ(to.block, 2);
  EXPECT_EQ(to.part.rows_begin, 3);
  EXPECT_EQ(to.part.rows_end, 4);
  EXPECT_EQ(to.part.cols_begin, 5);
  EXPECT_EQ(to.part.cols_end, 6);
  EXPECT_EQ(to.part.run_begin, 7);
  EXPECT_EQ(to.part.run_end, 100);
  EXPECT_EQ(to.data, &from);
  EXPECT_EQ(to.numel, 93);
  EXPECT_EQ(to.dtype, REGATTA_BF16);
  EXPECT_EQ(to.primary, 0);
  EXPECT_EQ(to.rows, 11);
  EXPECT_EQ(to.columns, 12);
  from.primary = true;
  EXPECT_EQ(state_part_of(from).primary, 1);
  const regatta_wire_bytes bytes = wire_bytes_of({1, 2, 3, 4});
  EXPECT_EQ(bytes.reduce_scatter, 1);
  EXPECT_EQ(bytes.all_gather, 2);
  EXPECT_EQ(bytes.exchange, 3);
  EXPECT_EQ(bytes.vote, 4);
}

TEST(CStructs, DtypesThereAndBack) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
    EXPECT_EQ(dtype_of_number(number_of_dtype(dtype), "it"), dtype);
  EXPECT_EQ(number_of_dtype(DType::f32), 0);
  EXPECT_EQ(number_of_dtype(DType::bf16), 1);
  EXPECT_EQ(number_of_dtype(DType::f16), 2);
}

}  // namespace
}  // namespace regatta::c_api
