#include "runtime/engine/proof.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "kernels/kernels.h"
#include "sharding/reshard.h"

namespace regatta {
namespace {

// A well-mixed number of a step, to draw from.
std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

}  // namespace

Proof::Proof(const sharding::Plan& plan, int rank, std::span<const Rule* const> rule_of_param,
             std::vector<int> group_of_param, DType momentum_dtype, int every, const OptimizerState& state,
             Transport& world, ThreadPool& pool)
    : plan_(plan),
      rank_(rank),
      rule_of_param_(rule_of_param),
      group_of_param_(std::move(group_of_param)),
      momentum_dtype_(momentum_dtype),
      every_(every),
      state_(state),
      pool_(pool) {
  std::vector<int> all(static_cast<std::size_t>(world.world_size()));
  std::iota(all.begin(), all.end(), 0);
  group_ = world.split(all);
}

// Calls body(index in Plan::matrices(), share) for the drawn parameter's matrices that `rank` owns and that count.
template <class Body>
void Proof::for_owned(int rank, const Body& body) const {
  if (!plan_.primary(rank, report_.param)) return;
  for (std::size_t k = 0; k < plan_.matrices().size(); ++k) {
    const sharding::MatrixShare& share = plan_.matrices()[k];
    if (share.param == report_.param && share.owner == rank) body(static_cast<int>(k), share);
  }
}

std::vector<Proof::WholeArray> Proof::gather(std::span<const Work> works, bool with_gradient) {
  const sharding::ParamSpec& spec = plan_.params()[report_.param];
  const std::vector<StateSpec> states = element_states(*rule_of_param_[report_.param], momentum_dtype_),
                               small = matrix_states(*rule_of_param_[report_.param], momentum_dtype_);
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

  const auto small_shape = [&](std::size_t s, int block) { return state_shape(small[s].extent, spec.blocks[block]); };
  for (std::size_t s = 0; s < small.size(); ++s)
    for_owned(rank_, [&](int matrix, const sharding::MatrixShare& share) {
      append(state_.of_matrix(matrix)[s], small_shape(s, share.block).numel() * 4);
    });

  const auto ranks = static_cast<std::size_t>(group_->world_size());
  std::vector<std::int64_t> send_bytes(ranks, 0), receive_bytes(ranks, 0);
  send_bytes[report_.rank] = std::ssize(mine);
  const auto pieces_of = [&](int rank, const auto& body) {
    if (!plan_.primary(rank, report_.param)) return;
    for (const sharding::Piece& piece : plan_.layout(rank).pieces)
      if (piece.param == report_.param) body(piece);
  };
  if (rank_ == report_.rank) {
    for (std::size_t r = 0; r < ranks; ++r) {
      for (const WholeArray& array : arrays)
        pieces_of(static_cast<int>(r), [&](const sharding::Piece& piece) {
          receive_bytes[r] += piece.part.run.size() * array.element_bytes;
        });
      for (std::size_t s = 0; s < small.size(); ++s)
        for_owned(static_cast<int>(r), [&](int, const sharding::MatrixShare& share) {
          receive_bytes[r] += small_shape(s, share.block).numel() * 4;
        });
    }
  }
  std::vector<std::byte> received(
      static_cast<std::size_t>(std::accumulate(receive_bytes.begin(), receive_bytes.end(), std::int64_t{0})));
  group_->exchange(mine, send_bytes, received, receive_bytes, "live proof").wait();
  if (rank_ != report_.rank) return {};

  for (WholeArray& array : arrays)
    for (const MatrixShape& block : spec.blocks)
      array.blocks.emplace_back(static_cast<std::size_t>(block.numel() * array.element_bytes));
  const std::size_t large = arrays.size();
  for (std::size_t s = 0; s < small.size(); ++s) {
    arrays.emplace_back();
    for (std::size_t b = 0; b < spec.blocks.size(); ++b)
      arrays.back().blocks.emplace_back(static_cast<std::size_t>(small_shape(s, static_cast<int>(b)).numel() * 4));
  }
  const std::byte* from = received.data();
  for (std::size_t r = 0; r < ranks; ++r) {
    for (WholeArray& array : std::span(arrays).first(large)) {
      pieces_of(static_cast<int>(r), [&](const sharding::Piece& piece) {
        std::byte* const to = array.blocks[piece.block].data();
        sharding::for_each_stretch(piece.part, spec.blocks[piece.block].cols,
                                   [&](std::int64_t in_block, std::int64_t in_run, std::int64_t count) {
                                     std::memcpy(to + in_block * array.element_bytes,
                                                 from + in_run * array.element_bytes,
                                                 static_cast<std::size_t>(count * array.element_bytes));
                                   });
        from += piece.part.run.size() * array.element_bytes;
      });
    }
    for (std::size_t s = 0; s < small.size(); ++s)
      for_owned(static_cast<int>(r), [&](int, const sharding::MatrixShare& share) {
        std::vector<std::byte>& to = arrays[large + s].blocks[share.block];
        std::memcpy(to.data(), from, to.size());
        from += to.size();
      });
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
  const std::size_t weights = 1 + element_states(*rule, momentum_dtype_).size();
  int rounds = 0;
  for (Work& work : works) {
    const std::int64_t at = work.tensors.run.begin;
    const auto address = [&](std::size_t array) {
      return arrays_[array].blocks[work.block].data() + at * arrays_[array].element_bytes;
    };
    work.tensors.grad = address(0);
    work.tensors.grad_dtype = DType::f32;
    for (std::size_t a = 1; a < weights; ++a) work.state.push_back(address(a));
    work.tensors.state = work.state;
    work.tensors.weight = reinterpret_cast<float*>(address(weights));
    if (work.one_sweep) rule->update(work.tensors, work.shape, info, momentum_dtype_, pool_, work.health);
    rounds = std::max(rounds, work.rounds());
  }
  solve_alone(alone, works, info, weights + 1);
  for (int round = 0; round < rounds; ++round)
    for (Work& work : works) observe_work(work, *rule, round, info, momentum_dtype_, pool_);
  for (Work& work : works)
    if (!work.one_sweep && !work.passes.empty()) apply_work(work, *rule, info, momentum_dtype_, pool_);
}

// The matrices of a plan of one rank, with the owners' states from arrays_[first_state] on.
void Proof::solve_alone(const sharding::Plan& alone, std::span<Work> works, const StepInfo& info,
                        std::size_t first_state) {
  std::vector<std::vector<float*>> states;
  for (const sharding::MatrixShare& share : alone.matrices()) {
    states.emplace_back();
    for (std::size_t a = first_state; a < arrays_.size(); ++a)
      states.back().push_back(reinterpret_cast<float*>(arrays_[a].blocks[share.block].data()));
  }
  const std::vector<std::span<float* const>> spans(states.begin(), states.end());
  const Rule* const rule = rule_of_param_[report_.param];
  MatrixScratch scratch;
  for (int wave = 0; wave < alone.wave_count(); ++wave) {
    // Works with passes read what came back after this, from the exchange's own memory.
    alone_waves_.push_back({std::make_unique<MatrixStaging>(), nullptr});
    AloneWave& here = alone_waves_.back();
    here.exchange =
        std::make_unique<MatrixExchange>(alone, wave, 0, works, std::span(&rule, 1), spans, *here.staging, scratch);
    here.exchange->direct({&info, 1}, momentum_dtype_, pool_);
    here.exchange->solve({&info, 1}, pool_);
    here.exchange->take_updates();
    for (Work* work : here.exchange->works())
      if (work->passes.empty()) rule->update(work->tensors, work->shape, info, momentum_dtype_, pool_, work->health);
  }
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
  alone_waves_.clear();
  std::int64_t figures[2] = {report_.compared, report_.differing};
  group_->broadcast(std::as_writable_bytes(std::span(figures)), report_.rank, "live proof's result").wait();
  report_.compared = figures[0];
  report_.differing = figures[1];
  return report_;
}

}  // namespace regatta
