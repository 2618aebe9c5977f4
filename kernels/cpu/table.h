#pragma once
// The sweeps of one instruction set. Declared in its namespace; cpu_kernels.cpp picks a table.

#include "kernels/kernels.h"

namespace regatta::kernels::REGATTA_ISA {

void reg_update_rows(const UpdateRowsArgs&);
void observe_rows(const ObserveArgs&);
void observe_columns(const ObserveArgs&);
void reg_apply(const ApplyArgs&);
void adamw(const AdamwArgs&);
void reduce_tree(const ReduceTreeArgs&);
void accumulate(float* dst, const void* src, DType src_dtype, std::int64_t count, bool overwrite);
void to_f32(const void* src, DType src_dtype, float* dst, std::int64_t count);
void from_f32(const float* src, void* dst, DType dst_dtype, std::int64_t count);

}  // namespace regatta::kernels::REGATTA_ISA
