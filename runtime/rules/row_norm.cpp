// Row-norm: every row of the momentum at norm one; for embeddings and for matrices whose rows are units (the gate and
// up projections of a gated MLP). The formula is in line_norm.h. A row that gets no gradients keeps its direction at
// full length until its norm falls to eps: for embeddings eps is a real setting.

#include "runtime/rules/line_norm.h"

namespace regatta {

const RuleEntry row_norm_entry{[] {
                                 return info_of<LineNormSettings>({"row_norm",
                                                                   "every row of the momentum at norm one",
                                                                   "arXiv 2605.18106; timlautk/equivariant_optimizers",
                                                                   "high: read in the authors' code",
                                                                   {}},
                                                                  line_norm_settings());
                               },
                               [](std::span<const std::pair<std::string, std::string>> given) {
                                 return make_line_norm<Line::row>("row_norm", given);
                               }};

}  // namespace regatta
