#pragma once
// The live proof: one parameter of a step, computed again whole on one rank from what all ranks held before the step,
// compared bit by bit with what they hold after it. Parameter and rank are drawn anew for each proof, alike on all
// ranks. Collective, on transports of its own; one per rank, used by its thread.

#include <memory>
#include <span>
#include <vector>

#include "runtime/device/thread_pool.h"
#include "runtime/engine/matrix_exchange.h"
#include "runtime/engine/state.h"
#include "runtime/engine/step_report.h"
#include "runtime/engine/work.h"
#include "runtime/transport/transport.h"
#include "sharding/plan.h"

namespace regatta {

class Proof {
 public:
  /// What is referred to outlives the proof.
  Proof(const sharding::Plan& plan, int rank, std::span<const Rule* const> rule_of_param,
        std::vector<int> group_of_param, DType momentum_dtype, int every, const OptimizerState& state, Transport& world,
        ThreadPool& pool);

  bool due(std::int64_t step) const { return step % every_ == 0; }
  /// Draws, and gathers gradient, state and weights. Before the sweep, with gradients bound to the works.
  void begin(std::int64_t step, std::span<const Work> works);
  /// After the sweep: gathers state and weights, computes, compares. The same report on all ranks.
  ProofReport finish(std::span<const Work> works, std::span<const StepInfo> infos);

 private:
  /// One array of a parameter (gradient, a state, the weights) as whole blocks; the states of matrix owners as small as
  /// they are.
  struct WholeArray {
    std::int64_t element_bytes = 4;
    std::vector<std::vector<std::byte>> blocks;
  };
  template <class Body>
  void for_owned(int rank, const Body& body) const;
  std::vector<WholeArray> gather(std::span<const Work> works, bool with_gradient);
  void compute(const StepInfo& info);
  void solve_alone(const sharding::Plan& alone, std::span<Work> works, const StepInfo& info, std::size_t first_state);

  const sharding::Plan& plan_;
  int rank_;
  std::span<const Rule* const> rule_of_param_;
  std::vector<int> group_of_param_;
  DType momentum_dtype_;
  int every_;
  const OptimizerState& state_;
  std::unique_ptr<Transport> group_;
  ThreadPool& pool_;

  struct AloneWave {
    std::unique_ptr<MatrixStaging> staging;
    std::unique_ptr<MatrixExchange> exchange;
  };
  ProofReport report_;
  std::vector<AloneWave> alone_waves_;  // of the computation under way
  std::vector<WholeArray> arrays_;      // on the drawn rank: gradient, states, weights, owners' states
};

}  // namespace regatta
