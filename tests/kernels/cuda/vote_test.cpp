// The vote of a step on the device, against the host's words for it (runtime/engine: vote.cpp, engine_report.cpp).

#include "kernels/cuda/layout.h"
#include "tests/kernels/cuda/device_case.h"

namespace regatta::testing {
namespace {

using kernels::WholeSum;

WholeSum random_sum(Random& random, int values, double spread) {
  Array numbers(DType::f32, values);
  numbers.fill(random, spread);
  WholeSum sum;
  for (int i = 0; i < values; ++i) kernels::add(sum, static_cast<double>(numbers[i]) * numbers[i]);
  return sum;
}

template <class T>
T* room(Machine& machine, std::size_t count) {
  return static_cast<T*>(machine.allocate(static_cast<std::int64_t>(count * sizeof(T))));
}

TEST_F(CudaKernels, AVoteTellsTheFirstCulpritAndTheSumsThatTravel) {
  for (const int params : {1, 3, 256, 700, 1000}) {
    std::vector<cuda::TileFigures> figures(static_cast<std::size_t>(params));
    std::vector<std::int32_t> places;
    std::int32_t travelling = 0;
    std::int64_t bad = 0, first = -1;
    for (int p = 0; p < params; ++p) {
      figures[p].squares = random_sum(random_, 1 + p % 4, 40);
      if (params == 1000 && p >= 700 && p % 7 == 3) figures[p].non_finite = p;
      // Several that the same thread of a block looks at.
      if (params == 700 && p % kernels::cuda::block_threads == 44) figures[p].non_finite = p;
      if (figures[p].non_finite != 0 && first < 0) first = p;
      bad += figures[p].non_finite;
      places.push_back(p % 3 == 1 ? -1 : travelling++);
    }
    auto* flags = room<cuda::VoteFlags>(*machine_, 1);
    auto* sums = room<WholeSum>(*machine_, static_cast<std::size_t>(travelling));
    machine_->write_vote({to_machine(*machine_, figures), to_machine(*machine_, places), params, flags, sums});
    const cuda::VoteFlags got = from_machine(*machine_, flags, 1)[0];
    EXPECT_EQ(got.culprit, first) << params;
    EXPECT_EQ(got.non_finite, bad) << params;
    const auto sent = from_machine(*machine_, sums, travelling);
    for (int p = 0; p < params; ++p)
      EXPECT_TRUE(places[p] < 0 || sent[places[p]] == figures[p].squares) << p << " of " << params;
    machine_->free_all();
  }
}

TEST_F(CudaKernels, ADecisionHasTheBitsOfTheHost) {
  for (int round = 0; round < 24; ++round) {
    const int params = 1 + static_cast<int>(random_() % 600), ranks = 1 + round % 4;
    const double loss_scale = round % 3 == 0 ? 1024 : 1, clip = round % 2 == 0 ? 0.37 * (1 + round) : 0;
    const bool skip = round % 8 == 7;
    std::vector<cuda::VoteFlags> flags(static_cast<std::size_t>(ranks));
    if (skip) flags[static_cast<std::size_t>(round / 8 % ranks)] = {round / 8 == 1 ? 0 : 5, 2};
    std::vector<WholeSum> sums;
    std::vector<std::int64_t> first_part{0};
    std::vector<double> squares;
    for (int p = 0; p < params; ++p) {
      WholeSum total;
      for (int r = 0; r < ranks; ++r) {
        if ((p + r) % 5 == 4) continue;
        sums.push_back(p % 17 == 9 ? WholeSum{} : random_sum(random_, 3, round < 12 ? 4 : 60));
        kernels::merge(total, sums.back());
      }
      first_part.push_back(std::ssize(sums));
      squares.push_back(kernels::value(total));
    }
    double total = 0;
    for (const double square : squares) total += square;
    const double norm = std::sqrt(total) / loss_scale;
    const double factor = clip > 0 ? std::min(1.0, clip / (norm + 1e-6)) : 1;

    auto* flags_there = to_machine(*machine_, flags);
    auto* sums_there = to_machine(*machine_, sums);
    std::vector<const cuda::VoteFlags*> flag_pointers;
    for (int r = 0; r < ranks; ++r) flag_pointers.push_back(flags_there + r);
    std::vector<const WholeSum*> parts;
    for (std::size_t i = 0; i < sums.size(); ++i) parts.push_back(sums_there + i);
    auto* reg = to_machine(*machine_, std::vector<cuda::RegScalars>(3));
    auto* adamw = to_machine(*machine_, std::vector<cuda::AdamwScalars>(3));
    auto* squares_there = room<double>(*machine_, squares.size());
    machine_->decide({to_machine(*machine_, flag_pointers), ranks, to_machine(*machine_, parts),
                      to_machine(*machine_, first_part), params, squares_there,
                      to_machine(*machine_, std::vector<cuda::DecideNumbers>{{clip, loss_scale}}), reg, adamw, 3});
    const auto got = from_machine(*machine_, squares_there, params);
    for (int p = 0; p < params; ++p)
      EXPECT_EQ(std::bit_cast<std::uint64_t>(got[p]), std::bit_cast<std::uint64_t>(squares[p])) << p;
    const auto regs = from_machine(*machine_, reg, 3);
    const auto adamws = from_machine(*machine_, adamw, 3);
    for (int g = 0; g < 3; ++g) {
      EXPECT_EQ(regs[g].grad_scale, static_cast<float>(factor / loss_scale)) << round;
      EXPECT_EQ(adamws[g].grad_scale, static_cast<float>(factor / loss_scale)) << round;
      EXPECT_EQ(regs[g].skip, skip ? 1 : 0) << round;
      EXPECT_EQ(adamws[g].skip, skip ? 1 : 0) << round;
      EXPECT_EQ(regs[g].mu, cuda::RegScalars{}.mu);
      EXPECT_EQ(adamws[g].decay, cuda::AdamwScalars{}.decay);
    }
    machine_->free_all();
  }
}

}  // namespace
}  // namespace regatta::testing
