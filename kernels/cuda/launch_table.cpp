#include "kernels/cuda/launch_table.h"

namespace regatta::kernels::cuda {

const LaunchTable& launch_table() {
  static constexpr LaunchTable table = {update_rows,  update_long_rows, update_columns, observe,    apply,       adamw,
                                        finish_lines, sum_blocks,       make_steps,     copy_words, reduce_tree, cast,
                                        merge_health, merge_figures,    write_vote,     decide};
  return table;
}

}  // namespace regatta::kernels::cuda
