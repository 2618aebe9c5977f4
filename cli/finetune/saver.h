#pragma once
// The checkpoints of a training run: what goes into them, and when. One per rank, on its thread; all calls but told()
// are collective.

#include <functional>
#include <memory>
#include <string>

#include "cli/finetune/job.h"
#include "runtime/checkpoint/checkpoint_writer.h"
#include "runtime/engine/engine.h"
#include "runtime/transport/transport.h"

namespace regatta::finetune {

class Saver {
 public:
  /// The job and the engine must outlive it.
  Saver(const Job& job, const sharding::Mesh& mesh, Engine& engine, Transport& transport);

  /// Copies what a checkpoint of `step` needs and lets it be written behind the next steps. Gives back why it could not
  /// begin, alike on all ranks, or nothing. Does nothing for the step that was saved last.
  std::string save(std::int64_t step);
  /// The job goes on from the checkpoint `path`: if that is one of its own, the step is saved already. Writing it again
  /// would put a sound one aside, and with it, for a moment, maybe all there is.
  void went_on_from(const std::string& path, std::int64_t step);
  /// Not collective. Calls `saved` or `failed` for each save that has ended.
  void tell(const std::function<void(const checkpoint::SaveOutcome&)>& saved,
            const std::function<void(const std::string&)>& failed);
  /// Saves `step` unless that was done, and waits until it is on disk. Throws Error(checkpoint) when it is not.
  void save_last(std::int64_t step);

 private:
  const Job& job_;
  sharding::Mesh mesh_;
  Engine& engine_;
  Transport& transport_;
  std::vector<checkpoint::TextFile> texts_;
  checkpoint::CheckpointWriter writer_;
  std::int64_t saved_step_ = -1;
};

}  // namespace regatta::finetune
