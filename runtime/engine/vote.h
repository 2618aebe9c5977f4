#pragma once
// What all ranks must agree on before any state is written: is every gradient finite, and how large is the global
// gradient. One small all-gather; every rank adds the same exact sums in the same order, so all come to the same bits.
// Rank 0's part also carries a command, which so reaches all ranks in the same step.

#include <span>
#include <vector>

#include "runtime/engine/command.h"
#include "runtime/engine/gradients.h"
#include "runtime/transport/transport.h"
#include "sharding/plan.h"

namespace regatta {

class Vote {
 public:
  Vote(const sharding::Plan& plan, int rank);

  /// `command` travels when this is rank 0.
  Ticket send(Transport& world, std::span<const Gradients::Figures> figures, const Command& command);
  /// Once the ticket is done.
  void count();
  /// Counts votes that came another way: of all ranks, by rank, plan.vote_bytes(rank) each.
  void count(std::span<const std::byte> votes);

  /// First parameter (by index) with a non-finite gradient on any rank; -1 when all are finite.
  int culprit() const { return culprit_; }
  /// Rank 0's command.
  const Command& command() const { return command_; }
  /// Squared norm of each parameter's whole gradient, replicas counted once. Requires no culprit.
  std::span<const double> param_squares() const { return squares_; }

 private:
  struct Flags {
    std::int64_t culprit = -1;
    std::int64_t non_finite = 0;
  };
  static_assert(sizeof(Flags) == sharding::vote_flag_bytes);
  static_assert(sizeof(Command) == sharding::vote_command_bytes);
  static_assert(sizeof(kernels::WholeSum) == sharding::vote_bytes_per_param);

  std::vector<std::vector<int>> voted_;  // parameters, by rank
  int rank_;
  std::vector<std::byte> mine_, all_;
  std::vector<std::int64_t> bytes_;
  std::vector<kernels::WholeSum> sums_;
  std::vector<double> squares_;
  int culprit_ = -1;
  Command command_;
};

}  // namespace regatta
