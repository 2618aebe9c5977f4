// The kernel table of one instruction set.

#include "kernels/cpu/table.h"

namespace regatta::kernels::REGATTA_ISA {
namespace {

void reg_observe(const ObserveArgs& args) {
  if (args.line == Line::row) return observe_rows(args);
  observe_columns(args);
}

}  // namespace

extern const KernelTable table{REGATTA_ISA_NAME, reg_update_rows, reg_observe, reg_apply, adamw,
                               reduce_tree,      accumulate,      to_f32,      from_f32};

}  // namespace regatta::kernels::REGATTA_ISA
