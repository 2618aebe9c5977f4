// Column-norm: every column of the momentum at norm one; for matrices whose columns are units (the down projection of a
// gated MLP). The formula is in line_norm.h.

#include "runtime/rules/line_norm.h"

namespace regatta {

const RuleEntry column_norm_entry{[] {
                                    return info_of<LineNormSettings>(
                                        {"column_norm",
                                         "every column of the momentum at norm one",
                                         "arXiv 2605.18106; timlautk/equivariant_optimizers",
                                         "high: read in the authors' code, as row-norm of the transpose",
                                         {}},
                                        line_norm_settings());
                                  },
                                  [](std::span<const std::pair<std::string, std::string>> given) {
                                    return make_line_norm<Line::column>("column_norm", given);
                                  }};

}  // namespace regatta
