#pragma once
// Writes checkpoints of a running job: every rank its own files, side by side and behind the next steps.
//
//     CheckpointWriter writer(settings, transport);      // collective, one per rank
//     writer.save(contents);                             // collective; returns when everything is copied
//     ... steps ...
//     writer.finish();                                   // collective; the last save is on disk, or Error(checkpoint)
//
// A save goes to the folder step-N.part. Each rank writes its files and then its record; rank 0 waits for the records,
// writes the manifest, and renames the folder to step-N: before that there is no checkpoint, after it there is all of
// it. Rank 0 then renews `latest` and removes what is not to be kept. A save that fails leaves the earlier ones alone;
// it is told by outcome() and finish(), not by stopping the job.
//
// The folder must be one that all ranks see.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/checkpoint/safetensors.h"
#include "runtime/checkpoint/saved_part.h"
#include "runtime/checkpoint/system_calls.h"
#include "runtime/transport/transport.h"

namespace regatta::checkpoint {

struct SaveSettings {
  std::string folder;
  int keep_last = 0;              ///< newest ones that stay; 0: all
  std::int64_t keep_every = 0;    ///< those at multiples of it stay too; 0: none
  double deadline_seconds = 600;  ///< for rank 0's wait until all ranks have written
  SystemCalls* calls = &system_calls();
};

/// A small file that rank 0 writes: config.json, a tokenizer.
struct TextFile {
  std::string name;
  std::string text;
};

struct Contents {
  std::int64_t step = 0;
  std::string job = "{}";                    ///< JSON object for the manifest; rank 0's counts
  std::vector<GivenPart> state;              ///< this rank's, without replicas
  std::vector<safetensors::Source> weights;  ///< whole tensors this rank writes; each tensor on one rank only
  std::vector<TextFile> texts;               ///< rank 0's count
};

struct SaveOutcome {
  std::int64_t step = 0;
  std::string problem;       ///< empty: it is a checkpoint now
  std::int64_t bytes = 0;    ///< of this rank
  double copy_seconds = 0;   ///< that save() took: agreement and copies, and what the save before still needed
  double write_seconds = 0;  ///< behind the next steps; on rank 0 until the checkpoint was published
};

class CheckpointWriter {
 public:
  /// Makes the folder. Throws Error(checkpoint) on all ranks when that cannot be.
  CheckpointWriter(SaveSettings settings, Transport& transport);
  /// Waits for the files of this rank, not for the others.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// Copies `contents` and returns; waits for the save before first. Throws Error(checkpoint) on all ranks when there
  /// is no room for it or its folder cannot be made.
  void save(const Contents& contents);
  /// Of a save that has ended, as far as this rank knows: on rank 0 all of it, elsewhere its own files. Each is told
  /// once, in order.
  std::optional<SaveOutcome> outcome();
  /// Throws Error(checkpoint) on all ranks when the last save did not become a checkpoint.
  void finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace regatta::checkpoint
