#pragma once
// What rank 0 may tell all ranks in the middle of a job: new settings, or to pause or end. Plain values of a fixed
// size, as they travel in rank 0's vote of a step. Every rank reads a command from the same message, so it holds from
// the next step on everywhere, or, when rank 0 dies on the way, the job ends before any rank makes that step.

#include <cstdint>
#include <string>

namespace regatta {

struct Command {
  enum class Kind : std::uint32_t {
    none,
    set,    ///< the engine applies it
    pause,  ///< the trainer's loop acts on these
    resume,
    drain,
    save,
  };
  /// Which of the numbers are given.
  enum Field : std::uint32_t {
    lr_given = 1,
    weight_decay_given = 2,
    momentum_given = 4,
    rho_given = 8,
    clip_given = 16
  };
  static constexpr std::int32_t all_groups = -1;

  Kind kind = Kind::none;
  std::int32_t group = all_groups;
  std::uint32_t fields = 0;
  std::uint32_t reserved = 0;
  std::uint64_t number = 0;  ///< the sender's, to find its command again
  /// For all groups in place of the schedule's, each group keeping its lr_scale; for one group its own, no scale.
  double lr = 0;
  double weight_decay = 0;
  double momentum = 0;
  double rho = 0;
  double clip = 0;  ///< of the whole gradient, so for all groups only

  bool has(Field field) const { return (fields & field) != 0; }
};

/// What a command changes.
struct SettingChange {
  std::string group;  ///< empty: the whole job
  std::string name;
  double from = 0;  ///< NaN for a learning rate that no step has used yet
  double to = 0;
};

}  // namespace regatta
