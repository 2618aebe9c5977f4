#pragma once
// The facts of one step, equal on all ranks unless marked local.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/engine/command.h"

namespace regatta {

/// Figures of one parameter group over all its parameters on all ranks.
struct GroupReport {
  std::string name;
  std::int64_t numel = 0;
  double lr = 0;  ///< of this group in this step
  double grad_norm = 0;
  double update_rms = 0;  ///< of w' - w as applied, decay included
  double weight_rms = 0;
  double update_to_weight = 0;
  double smallest_line_norm = 0;  ///< over non-zero lines; 0 when the group has none
  double largest_line_norm = 0;
  std::int64_t zero_lines = 0;
  std::int64_t clamped_lines = 0;
  std::int64_t non_finite_lines = 0;
};

/// Figures of one parameter over all ranks, as GroupReport's.
struct ParamReport {
  std::string name;
  int group = 0;
  std::int64_t numel = 0;
  double grad_norm = 0;
  double update_rms = 0;
  double weight_rms = 0;
  double update_to_weight = 0;
  double smallest_line_norm = 0;
  double largest_line_norm = 0;
  std::int64_t zero_lines = 0;
  std::int64_t clamped_lines = 0;
  std::int64_t non_finite_lines = 0;
};

/// A step's result for one parameter, drawn anew each time, against the same step computed whole on one rank.
struct ProofReport {
  int param = 0;  ///< index
  int rank = 0;   ///< that computed it
  std::int64_t compared = 0;
  std::int64_t differing = 0;  ///< weights and state whose bits differ; 0 unless something is broken
};

/// Wall time of this rank's step() by phase, and what went on behind the trainer's own work. Local.
struct StepTimes {
  double wait_grad_seconds = 0;  ///< step() waiting for gradient reduce-scatters: exposed
  double vote_seconds = 0;
  double sweep_seconds = 0;  ///< observe, update and apply sweeps
  double wait_exchange_seconds = 0;
  double wait_gather_seconds = 0;  ///< waiting for parameter all-gathers: exposed
  double step_seconds = 0;
  double grad_comm_seconds = 0;    ///< busy time of the gradient reduce-scatters
  double gather_comm_seconds = 0;  ///< busy time of the parameter all-gathers
  /// Share of the gradient communication that ran behind backward, in [0, 1].
  double grad_overlap() const {
    return grad_comm_seconds > 0 ? 1 - std::min(1.0, wait_grad_seconds / grad_comm_seconds) : 1;
  }
};

/// Payload bytes this rank sent in the step. Local.
struct StepBytes {
  std::int64_t reduce_scatter = 0;
  std::int64_t all_gather = 0;
  std::int64_t exchange = 0;  ///< open lines: partial sums to owners, inverse norms back
  std::int64_t vote = 0;
  std::int64_t total() const { return reduce_scatter + all_gather + exchange + vote; }
};

struct StepReport {
  std::int64_t step = 0;           ///< updates applied so far, this one included; unchanged by a skipped step
  bool skipped = false;            ///< a gradient was not finite; no state was touched
  std::string culprit;             ///< first parameter with a non-finite gradient, when skipped
  std::int64_t skipped_steps = 0;  ///< so far
  double lr = 0;                   ///< as given to step(), or by a command in its place; groups may have others
  double grad_norm = 0;            ///< global, before clipping, loss scale removed; replicated parameters counted once
  double clip_factor = 1;
  double loss_scale = 1;  ///< the one this step's gradients carried
  Command command;        ///< that came with this step and holds from the next one on
  std::vector<GroupReport> groups;
  std::optional<ProofReport> proof;  ///< in steps that made one
  StepTimes times;
  StepBytes bytes;
};

}  // namespace regatta
