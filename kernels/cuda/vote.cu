#include "kernels/cuda/vote.cuh"

#include "kernels/cuda/launch.h"

namespace regatta::kernels::cuda {

int write_vote(const WriteVote& args, StreamHandle stream) {
  return launch(write_vote_kernel, args, 1, block_threads, stream);
}

int decide(const Decide& args, StreamHandle stream) { return launch(decide_kernel, args, 1, block_threads, stream); }

}  // namespace regatta::kernels::cuda
