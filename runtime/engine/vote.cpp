#include "runtime/engine/vote.h"

#include <cstring>
#include <numeric>

namespace regatta {

Vote::Vote(const sharding::Plan& plan, int rank) : rank_(rank) {
  for (int r = 0; r < plan.mesh().world_size(); ++r) {
    voted_.push_back(plan.voted_params(r));
    bytes_.push_back(plan.vote_bytes(r));
  }
  mine_.resize(bytes_[rank]);
  all_.resize(std::accumulate(bytes_.begin(), bytes_.end(), std::int64_t{0}));
  sums_.resize(plan.params().size());
  squares_.resize(plan.params().size());
}

Ticket Vote::send(Transport& world, std::span<const Gradients::Figures> figures, const Command& command) {
  Flags flags;
  for (std::size_t p = 0; p < figures.size(); ++p) {
    if (figures[p].non_finite == 0) continue;
    if (flags.culprit < 0) flags.culprit = static_cast<std::int64_t>(p);
    flags.non_finite += figures[p].non_finite;
  }
  std::byte* to = mine_.data();
  std::memcpy(to, &flags, sizeof flags);
  to += sizeof flags;
  if (rank_ == 0) {
    std::memcpy(to, &command, sizeof command);
    to += sizeof command;
  }
  for (int param : voted_[rank_]) {
    std::memcpy(to, &figures[param].squares, sizeof(kernels::WholeSum));
    to += sizeof(kernels::WholeSum);
  }
  return world.all_gather_small(mine_, all_, bytes_, "vote on gradients");
}

void Vote::count() { count(all_); }

void Vote::count(std::span<const std::byte> votes) {
  culprit_ = -1;
  std::fill(sums_.begin(), sums_.end(), kernels::WholeSum{});
  const std::byte* from = votes.data();
  bool first = true;
  for (const std::vector<int>& params : voted_) {
    Flags flags;
    std::memcpy(&flags, from, sizeof flags);
    from += sizeof flags;
    if (first) {
      std::memcpy(&command_, from, sizeof command_);
      from += sizeof command_;
      first = false;
    }
    if (flags.culprit >= 0 && (culprit_ < 0 || flags.culprit < culprit_)) culprit_ = static_cast<int>(flags.culprit);
    for (int param : params) {
      kernels::WholeSum part;
      std::memcpy(&part, from, sizeof part);
      from += sizeof part;
      kernels::merge(sums_[param], part);
    }
  }
  for (std::size_t p = 0; p < sums_.size(); ++p) squares_[p] = kernels::value(sums_[p]);
}

}  // namespace regatta
