#pragma once
// The whole communication of a step, as a value: built once, equal on all ranks, never changed.
//
// A plan says where every element lies (buckets, chunks, runs), which lines are open and who finishes them, in which
// rounds they travel, and how many bytes each rank sends for what. It knows no rule, only views.

#include <cstdint>
#include <string>
#include <vector>

#include "sharding/bucket.h"
#include "sharding/dtype.h"
#include "sharding/lines.h"
#include "sharding/mesh.h"
#include "sharding/owners.h"
#include "sharding/placement.h"
#include "sharding/view.h"

namespace regatta::sharding {

struct ParamSpec {
  std::string name;
  std::vector<std::int64_t> shape;
  DType dtype = DType::f32;
  DType grad_dtype = DType::f32;  ///< of its gradients on the wire
  Placement placement;
  std::vector<MatrixShape> blocks;  ///< logical matrices stacked by rows
  std::vector<View> views;          ///< one per block
  std::string note;                 ///< anything else ranks must agree on (group, rule); goes into the fingerprint
};

/// The blocks of a parameter: a vector is 1 x n, more dims are the first by the rest; `block_rows` splits the rows,
/// empty means one block. Throws std::invalid_argument naming the parameter.
std::vector<MatrixShape> logical_blocks(const std::string& name, const std::vector<std::int64_t>& shape,
                                        const std::vector<std::int64_t>& block_rows);

struct PlanOptions {
  Cut cut = Cut::row;
  std::int64_t bucket_bytes = 25 << 20;
  bool sharded = false;             ///< the trainer shards over dp itself; otherwise the engine cuts buckets over dp
  int reductions_per_step = 1;      ///< zero2 reduces every micro-batch
  bool accumulates_in_f32 = false;  ///< several micro-batches add up in fp32 before they travel
  std::int64_t figure_bytes = 0;    ///< per parameter a rank votes on: health figures gathered at the end of a step
};

/// A rank's run of one block and where it lies.
struct Piece {
  int param = 0;
  int block = 0;
  BlockPart part;
  int bucket = 0;
  std::int64_t bucket_offset = 0;  ///< of the run's first element in the bucket
};

struct ParamLocation {
  int bucket = 0;
  std::int64_t offset = 0;
  std::int64_t numel = 0;
};

struct RankLayout {
  std::vector<BucketLayout> buckets;
  std::vector<Piece> pieces;          ///< non-empty runs in bucket order, ascending offsets
  std::vector<ParamLocation> params;  ///< by parameter: its local values
};

/// Open lines of one block that one rank finishes. `pass` == number of passes stands for the block's own number (one
/// "line").
struct Share {
  int param = 0;
  int block = 0;
  int pass = 0;
  Range lines;
  int owner = 0;
  std::vector<int> holders;         ///< ranks that send to and hear from the owner, the owner included; ascending
  std::int64_t bytes_per_line = 0;  ///< to the owner
  std::int64_t answer_bytes = 0;    ///< per line, from the owner
};

/// A block that is seen as a whole, in one replica.
struct MatrixShare {
  struct Holder {
    int rank = 0;
    BlockPart part;
  };
  int param = 0;
  int block = 0;
  int wave = 0;
  int owner = 0;
  std::vector<Holder> holders;  ///< ascending ranks, the owner among them; one: nothing travels
  bool open() const { return holders.size() > 1; }
};

struct WireBytes {
  std::int64_t reduce_scatter = 0;
  std::int64_t all_gather = 0;
  std::int64_t exchange = 0;  ///< open lines and matrices
  std::int64_t vote = 0;
  std::int64_t total() const { return reduce_scatter + all_gather + exchange + vote; }
  bool operator==(const WireBytes&) const = default;
};

/// Bytes of a partial sum of one parameter's squared gradients, and of the flags, in a rank's vote; rank 0's also has
/// room for a command to all ranks.
inline constexpr std::int64_t vote_bytes_per_param = 32;
inline constexpr std::int64_t vote_flag_bytes = 16;
inline constexpr std::int64_t vote_command_bytes = 64;

class Plan {
 public:
  /// Throws std::invalid_argument naming the parameter, the value and what was expected.
  Plan(Mesh mesh, std::vector<ParamSpec> params, PlanOptions options);

  const Mesh& mesh() const { return mesh_; }
  const std::vector<ParamSpec>& params() const { return params_; }
  const PlanOptions& options() const { return options_; }
  const RankLayout& layout(int rank) const { return layouts_[rank]; }
  std::size_t bucket_count() const { return layouts_[0].buckets.size(); }

  /// What `rank` holds of a parameter in its own memory, one part per block, one after another: a whole rectangle each
  /// in the modes where the engine shards, the rank's shard otherwise.
  std::vector<BlockPart> local_parts(int rank, int param) const;

  /// Shares by round, in the order all ranks pack them. Round k carries pass k of every block, and the block numbers of
  /// blocks with k passes.
  const std::vector<std::vector<Share>>& rounds() const { return rounds_; }

  /// Blocks that are seen as wholes, in the order of their waves. A wave is some neighbouring buckets that together
  /// have a matrix for every rank, as far as there are so many: its matrices travel in one message each way, so that
  /// all ranks have one to compute.
  const std::vector<MatrixShare>& matrices() const { return matrices_; }
  int wave_count() const { return wave_count_; }

  /// Parameters whose squared gradients `rank` reports: those it holds a part of, replicas counted on the first holder
  /// only.
  std::vector<int> voted_params(int rank) const;
  std::int64_t vote_bytes(int rank) const;
  std::int64_t figure_bytes(int rank) const;

  /// True on the one rank among replicas whose part counts.
  bool primary(int rank, int param) const;

  /// Predicted payload bytes `rank` sends in a step.
  WireBytes wire_bytes(int rank) const;

  /// A line per fact, for people and for finding the first difference between ranks.
  std::string text() const;
  std::uint64_t fingerprint() const;

 private:
  void check() const;
  void lay_out_buckets();
  void lay_out_shards();
  void find_open_lines();
  void find_matrices();
  std::vector<std::vector<int>> replica_cells(int param) const;

  Mesh mesh_;
  std::vector<ParamSpec> params_;
  PlanOptions options_;
  std::vector<RankLayout> layouts_;
  std::vector<std::vector<Share>> rounds_;
  std::vector<MatrixShare> matrices_;
  int wave_count_ = 0;
};

}  // namespace regatta::sharding
