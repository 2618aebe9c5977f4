#pragma once
// The vote of a step (runtime/engine/vote.h) on the device: a rank's part from the figures of its gradients, and from
// all parts whether the step happens and by how much the gradient is clipped, with the bits of the host.

#include "kernels/cuda/block.cuh"

namespace regatta::kernels::cuda {

/// value() of a WholeSum.
REGATTA_HOST_DEVICE inline double whole_value(const WholeSum& sum) {
  if (sum.bin == empty_bin) return 0;
  if (sum.bin == non_finite_bin) return __builtin_inf();
  const double upper = mul_rn(rounded_once(sum.hi, WholeSum::bits, sum.mid), exp2i(WholeSum::bits));
  return mul_rn(add_rn(upper, static_cast<double>(sum.lo)), exp2i(WholeSum::bits * (sum.bin - 2)));
}

/// One block.
REGATTA_KERNEL(block_threads, 1) write_vote_kernel(WriteVote args) {
  REGATTA_SHARED(std::int64_t[block_threads], culprits);
  REGATTA_SHARED(std::int64_t[block_threads], counts);
  const int thread = static_cast<int>(threadIdx.x);
  std::int64_t culprit = args.params, count = 0;
  for (std::int64_t p = thread; p < args.params; p += block_threads) {
    const TileFigures figures = args.figures[p];
    if (figures.non_finite != 0 && p < culprit) culprit = p;
    count += figures.non_finite;
    if (args.places[p] >= 0) args.sums[args.places[p]] = figures.squares;
  }
  culprits[thread] = culprit;
  counts[thread] = count;
  for (int half = block_threads / 2; half > 0; half /= 2) {
    block_sync();
    if (thread >= half) continue;
    if (culprits[thread + half] < culprits[thread]) culprits[thread] = culprits[thread + half];
    counts[thread] += counts[thread + half];
  }
  if (thread != 0) return;
  args.flags->culprit = culprits[0] < args.params ? culprits[0] : -1;
  args.flags->non_finite = counts[0];
}

/// One block. The sum over parameters runs in their order, on one thread: a double's sum has no other right order.
REGATTA_KERNEL(block_threads, 1) decide_kernel(Decide args) {
  REGATTA_SHARED(float, grad_scale);
  REGATTA_SHARED(std::int32_t, skip);
  const int thread = static_cast<int>(threadIdx.x);
  for (std::int64_t p = thread; p < args.params; p += block_threads) {
    WholeSum sum;
    for (std::int64_t i = args.first_part[p]; i < args.first_part[p + 1]; ++i) merge(sum, *args.parts[i]);
    args.squares[p] = whole_value(sum);
  }
  block_sync();
  if (thread == 0) {
    double total = 0;
    for (std::int64_t p = 0; p < args.params; ++p) total = add_rn(total, args.squares[p]);
    const DecideNumbers numbers = *args.numbers;
    const double norm = div_rn(sqrt_rn(total), numbers.loss_scale);
    double factor = 1;
    if (numbers.clip > 0) {
      const double wanted = div_rn(numbers.clip, add_rn(norm, 1e-6));
      if (wanted < factor) factor = wanted;
    }
    grad_scale = to_float(div_rn(factor, numbers.loss_scale));
    skip = 0;
    for (std::int64_t r = 0; r < args.ranks; ++r)
      if (args.flags[r]->culprit >= 0) skip = 1;
  }
  block_sync();
  for (std::int64_t g = thread; g < args.groups; g += block_threads) {
    args.reg[g].grad_scale = grad_scale;
    args.reg[g].skip = skip;
    args.adamw[g].grad_scale = grad_scale;
    args.adamw[g].skip = skip;
  }
}

}  // namespace regatta::kernels::cuda
