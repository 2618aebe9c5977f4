#pragma once
// Carries one wave of whole matrices: directions of all runs to the matrices' owners, and what the owners make of them
// back. Each way is one sparse all-to-all, of directions and of whatever sums, factors and numbers a rule lets ride
// along. Knows plans, views and line sums, no rule's name. Driven by the engine's thread; allocates nothing after
// construction.

#include <cstddef>
#include <span>
#include <vector>

#include "runtime/engine/work.h"
#include "runtime/transport/transport.h"
#include "sharding/plan.h"

namespace regatta {

/// So many waves are under way at once: one gathers, one is solved, one comes back.
inline constexpr int matrix_waves_under_way = 3;

/// Messages of a wave. Waves take turns in some of them, so a wave must be done before the next one in its place.
struct MatrixStaging {
  std::vector<std::byte> directions, gathered, updates, returned;
};

/// What the owner works in, one matrix at a time.
struct MatrixScratch {
  std::vector<float> values, row_factors, column_factors;
  std::vector<std::byte> scratch;
  std::vector<kernels::LineSum> row_sums, column_sums;
  std::vector<kernels::WholeSum> block_sums;
};

class MatrixExchange {
 public:
  /// Wave `wave` of the plan. `states[k]` are the small states of matrix k of Plan::matrices(), for those this rank
  /// owns. What is referred to outlives this; the rules may be replaced by others of the same view.
  MatrixExchange(const sharding::Plan& plan, int wave, int rank, std::span<Work> works,
                 std::span<const Rule* const> rule_of_param, std::span<const std::span<float* const>> states,
                 MatrixStaging& staging, MatrixScratch& scratch);

  /// False when nothing travels on any rank; then the two send calls do nothing.
  bool needed() const { return needed_; }
  /// Momentum and directions of this rank's runs. `infos` by group.
  void direct(std::span<const StepInfo> infos, DType momentum_dtype, ThreadPool& pool);
  Ticket send_directions(Transport& world);
  /// Owner's side, once the directions are here.
  void solve(std::span<const StepInfo> infos, ThreadPool& pool);
  Ticket send_updates(Transport& world);
  /// Once the updates are here: the works point at them, until the staging serves another wave. Works with passes keep
  /// them until the next step.
  void take_updates();
  /// This rank's works of the wave.
  std::span<Work* const> works() const { return works_; }

 private:
  struct Mine {  // a run of this rank
    Work* work;
    bool owned;                      // by this rank: its direction and update stay here
    std::int64_t direction, update;  // where they begin in `directions` or `gathered`, and in `returned`
  };
  struct Part {  // of an owned matrix
    const sharding::MatrixShare::Holder* holder;
    bool own;
    std::int64_t direction, update;  // in `gathered`, and in `updates` or `returned`
  };
  struct Owned {
    const sharding::MatrixShare* share;
    Work* work;
    std::span<float* const> states;
    std::vector<Part> parts;
  };
  struct Counts {  // by rank
    std::vector<std::int64_t> send, receive;
  };

  void lay_out(const sharding::Plan& plan, int wave, std::span<Work> works,
               std::span<const std::span<float* const>> states);
  void size_buffers(const sharding::Plan& plan, MatrixScratch& scratch);
  WholeMatrix gather(const Owned& owned);
  void scatter(const Owned& owned, const WholeMatrix& matrix);

  int rank_;
  std::span<const Rule* const> rules_;
  MatrixStaging& staging_;
  MatrixScratch& scratch_;
  bool needed_ = false;
  bool keeps_ = false;  // updates are read after the next wave has begun
  std::vector<std::byte> kept_;
  std::vector<Mine> mine_;
  std::vector<Owned> owned_;
  std::vector<Work*> works_;
  Counts direction_bytes_, update_bytes_;
  std::int64_t gathered_own_ = 0, returned_own_ = 0;  // bytes of this rank's own parts, behind the received ones
  std::string directions_label_, updates_label_;
};

/// Bytes of the messages and the scratch that a rank keeps for its matrices.
std::int64_t matrix_exchange_bytes(const sharding::Plan& plan, int rank, std::span<const Rule* const> rule_of_param);

}  // namespace regatta
