#include "runtime/engine/device_vote.h"

#include <numeric>

namespace regatta {

namespace cuda = kernels::cuda;
using kernels::WholeSum;

static_assert(sizeof(cuda::VoteFlags) == sharding::vote_flag_bytes);
static_assert(sizeof(Command) == sharding::vote_command_bytes);
static_assert(sizeof(WholeSum) == sharding::vote_bytes_per_param);

// A part is laid out as in vote.cpp: flags, of rank 0 the command, sums of the parameters that the rank votes on.
DeviceVote::DeviceVote(const sharding::Plan& plan, int rank, Device& device)
    : device_(device), rank_(rank), arena_(device), params_(std::ssize(plan.params())), written_(device) {
  const int ranks = plan.mesh().world_size();
  for (int r = 0; r < ranks; ++r) bytes_.push_back(plan.vote_bytes(r));
  const std::int64_t total = std::accumulate(bytes_.begin(), bytes_.end(), std::int64_t{0});
  all_ = Buffer(total, &device);
  if (ranks > 1) mine_ = Buffer(bytes_[rank], &device);
  landing_ = Buffer::pinned(total, device);
  constexpr auto numbers_bytes = static_cast<std::int64_t>(sizeof(cuda::DecideNumbers) + sizeof(Command));
  from_host_ = Buffer::pinned(numbers_bytes, device);
  on_device_ = Buffer(numbers_bytes, &device);
  squares_ = arena_.make<double>(params_);

  std::vector<const cuda::VoteFlags*> flags;
  std::vector<std::vector<const WholeSum*>> parts(plan.params().size());
  const auto sums_of = [](std::byte* part, int of_rank) {
    return reinterpret_cast<WholeSum*>(part + sharding::vote_flag_bytes +
                                       (of_rank == 0 ? sharding::vote_command_bytes : 0));
  };
  std::byte* part = all_.data();
  for (int r = 0; r < ranks; part += bytes_[r++]) {
    flags.push_back(reinterpret_cast<const cuda::VoteFlags*>(part));
    const WholeSum* sum = sums_of(part, r);
    for (const int param : plan.voted_params(r)) parts[param].push_back(sum++);
  }
  std::vector<const WholeSum*> all_parts;
  std::vector<std::int64_t> first_part{0};
  for (const auto& of_param : parts) {
    all_parts.insert(all_parts.end(), of_param.begin(), of_param.end());
    first_part.push_back(std::ssize(all_parts));
  }
  decide_ = {arena_.place(flags),
             ranks,
             arena_.place(all_parts),
             arena_.place(first_part),
             params_,
             squares_,
             on_device_.as<cuda::DecideNumbers>()};

  std::byte* const own = ranks > 1 ? mine_.data() : all_.data();
  std::vector<std::int32_t> places(plan.params().size(), -1);
  std::int32_t place = 0;
  for (const int param : plan.voted_params(rank)) places[param] = place++;
  write_ = {nullptr, arena_.place(places), params_, reinterpret_cast<cuda::VoteFlags*>(own), sums_of(own, rank)};
}

void DeviceVote::prepare(const Command& command, const cuda::DecideNumbers& numbers) {
  std::memcpy(from_host_.data(), &numbers, sizeof numbers);
  std::memcpy(from_host_.data() + sizeof numbers, &command, sizeof command);
}

void DeviceVote::send(Transport& world, DeviceArrays& arrays, StreamHandle stream) {
  device_.bind();
  const StreamHandle reductions = arrays.reductions_stream(stream);
  device_.copy(on_device_.data(), from_host_.data(), on_device_.bytes(), reductions);
  if (rank_ == 0)
    device_.copy(reinterpret_cast<std::byte*>(write_.flags) + sharding::vote_flag_bytes,
                 on_device_.data() + sizeof(cuda::DecideNumbers), sizeof(Command), reductions);
  write_.figures = arrays.figures();
  device_.check_launch(device_.kernels().write_vote(write_, reductions), "this rank's vote");
  if (world.world_size() > 1) {
    world
        .all_gather_small({mine_.data(), static_cast<std::size_t>(mine_.bytes())},
                          {all_.data(), static_cast<std::size_t>(all_.bytes())}, bytes_, "vote on gradients")
        .then(stream);
  } else if (reductions != stream) {
    device_.record(written_.handle(), reductions);
    device_.wait(stream, written_.handle());
  }
}

void DeviceVote::decide(cuda::RegScalars* reg, cuda::AdamwScalars* adamw, std::int64_t groups, StreamHandle stream) {
  decide_.reg = reg;
  decide_.adamw = adamw;
  decide_.groups = groups;
  device_.check_launch(device_.kernels().decide(decide_, stream), "the decision on a step");
  device_.copy(landing_.data(), all_.data(), all_.bytes(), stream);
}

}  // namespace regatta
