#include "runtime/engine/proof.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "kernels/kernels.h"

namespace regatta {
namespace {

// A well-mixed number of a step, to draw from.
std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

// Calls body(offset in the block, offset in the run, count) for the row segments of a piece.
template <class Body>
void for_segments(const sharding::BlockPart& part, std::int64_t block_cols, const Body& body) {
  const std::int64_t cols = part.cols.size();
  for (std::int64_t at = part.run.begin; at < part.run.end;) {
    const std::int64_t row = at / cols, col = at % cols;
    const std::int64_t count = std::min(cols - col, part.run.end - at);
    body((part.rows.begin + row) * block_cols + part.cols.begin + col, at - part.run.begin, count);
    at += count;
  }
}

}  // namespace

Proof::Proof(const sharding::Plan& plan, int rank, std::span<const Rule* const> rule_of_param,
             std::vector<int> group_of_param, DType momentum_dtype, int every, Transport& world, ThreadPool& pool)
    : plan_(plan),
      rank_(rank),
      rule_of_param_(rule_of_param),
      group_of_param_(std::move(group_of_param)),
      momentum_dtype_(momentum_dtype),
      every_(every),
      pool_(pool) {
  std::vector<int> all(static_cast<std::size_t>(world.world_size()));
  std::iota(all.begin(), all.end(), 0);
  group_ = world.split(all);
}

std::vector<Proof::WholeArray> Proof::gather(std::span<const Work> works, bool with_gradient) {
  const sharding::ParamSpec& spec = plan_.params()[report_.param];
  const std::vector<StateSpec> states = rule_of_param_[report_.param]->state(momentum_dtype_);
  std::vector<WholeArray> arrays;
  const auto add_array = [&](DType dtype) { arrays.emplace_back().element_bytes = size_of(dtype); };
  if (with_gradient) add_array(DType::f32);
  for (const StateSpec& state : states) add_array(state.dtype);
  add_array(DType::f32);

  // This rank's pieces, array by array.
  std::vector<std::byte> mine;
  const auto append = [&](const void* from, std::int64_t bytes) {
    const auto* data = static_cast<const std::byte*>(from);
    mine.insert(mine.end(), data, data + bytes);
  };
  std::vector<float> wide;
  for (std::size_t a = 0; a < arrays.size(); ++a) {
    for (const Work& work : works) {
      if (work.param != report_.param || !work.primary) continue;
      const std::int64_t count = work.tensors.run.numel();
      if (a == 0 && with_gradient) {
        wide.resize(static_cast<std::size_t>(count));
        kernels::cpu_kernels().to_f32(work.tensors.grad, work.tensors.grad_dtype, wide.data(), count);
        append(wide.data(), count * 4);
      } else if (a + 1 == arrays.size()) {
        append(work.tensors.weight, count * 4);
      } else {
        append(work.state[a - (with_gradient ? 1 : 0)], count * arrays[a].element_bytes);
      }
    }
  }

  const auto ranks = static_cast<std::size_t>(group_->world_size());
  std::vector<std::int64_t> send_bytes(ranks, 0), receive_bytes(ranks, 0);
  send_bytes[report_.rank] = std::ssize(mine);
  const auto pieces_of = [&](int rank, const auto& body) {
    if (!plan_.primary(rank, report_.param)) return;
    for (const sharding::Piece& piece : plan_.layout(rank).pieces)
      if (piece.param == report_.param) body(piece);
  };
  if (rank_ == report_.rank) {
    for (std::size_t r = 0; r < ranks; ++r)
      for (const WholeArray& array : arrays)
        pieces_of(static_cast<int>(r), [&](const sharding::Piece& piece) {
          receive_bytes[r] += piece.part.run.size() * array.element_bytes;
        });
  }
  std::vector<std::byte> received(
      static_cast<std::size_t>(std::accumulate(receive_bytes.begin(), receive_bytes.end(), std::int64_t{0})));
  group_->exchange(mine, send_bytes, received, receive_bytes, "live proof").wait();
  if (rank_ != report_.rank) return {};

  for (WholeArray& array : arrays)
    for (const MatrixShape& block : spec.blocks)
      array.blocks.emplace_back(static_cast<std::size_t>(block.numel() * array.element_bytes));
  const std::byte* from = received.data();
  for (std::size_t r = 0; r < ranks; ++r) {
    for (WholeArray& array : arrays) {
      pieces_of(static_cast<int>(r), [&](const sharding::Piece& piece) {
        std::byte* const to = array.blocks[piece.block].data();
        for_segments(piece.part, spec.blocks[piece.block].cols,
                     [&](std::int64_t in_block, std::int64_t in_run, std::int64_t count) {
                       std::memcpy(to + in_block * array.element_bytes, from + in_run * array.element_bytes,
                                   static_cast<std::size_t>(count * array.element_bytes));
                     });
        from += piece.part.run.size() * array.element_bytes;
      });
    }
  }
  return arrays;
}

void Proof::begin(std::int64_t step, std::span<const Work> works) {
  const std::uint64_t drawn = mix(static_cast<std::uint64_t>(step) * 0x9e3779b97f4a7c15U);
  report_ = {};
  report_.param = static_cast<int>(drawn % plan_.params().size());
  report_.rank = static_cast<int>((drawn >> 32) % static_cast<std::uint64_t>(group_->world_size()));
  arrays_ = gather(works, true);
}

// The step of the drawn parameter as a job of one rank makes it, in place.
void Proof::compute(const StepInfo& info) {
  sharding::ParamSpec spec = plan_.params()[report_.param];
  spec.placement = {};
  const sharding::Plan alone(sharding::Mesh(), {spec}, {});
  const Rule* const rule = rule_of_param_[report_.param];
  const int group = 0;
  std::vector<Work> works = make_works(alone, 0, {&rule, 1}, {&group, 1});
  int rounds = 0;
  for (Work& work : works) {
    const std::int64_t at = work.tensors.run.begin;
    const auto address = [&](std::size_t array) {
      return arrays_[array].blocks[work.block].data() + at * arrays_[array].element_bytes;
    };
    work.tensors.grad = address(0);
    work.tensors.grad_dtype = DType::f32;
    for (std::size_t a = 1; a + 1 < arrays_.size(); ++a) work.state.push_back(address(a));
    work.tensors.state = work.state;
    work.tensors.weight = reinterpret_cast<float*>(address(arrays_.size() - 1));
    if (work.one_sweep) rule->update(work.tensors, work.shape, info, momentum_dtype_, pool_, work.health);
    rounds = std::max(rounds, work.rounds());
  }
  for (int round = 0; round < rounds; ++round)
    for (Work& work : works) observe_work(work, *rule, round, info, momentum_dtype_, pool_);
  for (Work& work : works)
    if (!work.one_sweep) apply_work(work, *rule, info, momentum_dtype_, pool_);
}

ProofReport Proof::finish(std::span<const Work> works, std::span<const StepInfo> infos) {
  const std::vector<WholeArray> after = gather(works, false);
  if (rank_ == report_.rank) {
    compute(infos[group_of_param_[report_.param]]);
    for (std::size_t a = 0; a < after.size(); ++a) {
      for (std::size_t b = 0; b < after[a].blocks.size(); ++b) {
        const std::vector<std::byte>&mine = arrays_[a + 1].blocks[b], &theirs = after[a].blocks[b];
        const auto bytes = static_cast<std::size_t>(after[a].element_bytes);
        report_.compared += std::ssize(mine) / after[a].element_bytes;
        for (std::size_t i = 0; i < mine.size(); i += bytes)
          if (std::memcmp(mine.data() + i, theirs.data() + i, bytes) != 0) ++report_.differing;
      }
    }
  }
  arrays_.clear();
  std::int64_t figures[2] = {report_.compared, report_.differing};
  group_->broadcast(std::as_writable_bytes(std::span(figures)), report_.rank, "live proof's result").wait();
  report_.compared = figures[0];
  report_.differing = figures[1];
  return report_;
}

}  // namespace regatta
