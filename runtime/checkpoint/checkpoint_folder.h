#pragma once
// The folder that holds a job's checkpoints: step-00000100, step-00000200, ..., `latest` (a text with the newest one's
// name), and while a save is under way step-N.part.

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/checkpoint/system_calls.h"

namespace regatta::checkpoint {

struct Listed {
  std::int64_t step = 0;
  std::string path;
};

std::string folder_name(std::int64_t step);
/// Folders of that form, ascending by step; whether they are sound is not looked at. None when there is no such folder.
std::vector<Listed> list_checkpoints(const std::string& folder);
/// Writes `latest` atomically.
void point_at(SystemCalls& calls, const std::string& folder, std::int64_t step);
/// Removes those up to `step`, which was just saved, that are neither among the `keep_last` newest of these (0: all are
/// kept) nor at a multiple of `keep_every`. Later ones are damaged, as the job went on from before them: counted as
/// kept ones they would drive out the sound.
void prune(SystemCalls& calls, const std::string& folder, std::int64_t step, int keep_last, std::int64_t keep_every);
/// Removes what killed saves left.
void remove_leftovers(const std::string& folder);

}  // namespace regatta::checkpoint
