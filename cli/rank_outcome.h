#pragma once
// How the ranks of a run ended, and what to say about it. Pure: no transport, no printing.

#include <string>
#include <vector>

#include "runtime/error.h"

namespace regatta::cli {

struct RankOutcome {
  bool failed = false;
  Code code = Code::aborted;
  bool secondary = false;  ///< ended only because another rank failed
  bool agreed = false;     ///< all ranks know the same and fail alike
  std::string reason;
};

/// 0, 1 or 2 for the job as a whole.
int exit_code_of(const std::vector<RankOutcome>& ranks);

/// The line that `rank` prints, without the program's name; empty when others say it. A failure shared by all ranks and
/// bad input are told once; otherwise each failed rank tells its own.
std::string line_of(const std::vector<RankOutcome>& ranks, int rank);

}  // namespace regatta::cli
