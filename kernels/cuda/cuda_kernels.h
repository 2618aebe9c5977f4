#pragma once
// The kernels on a CUDA device: the formulas of kernels.h, the same bits, many tensors in one launch.
//
// Status: compiled for the architectures that the build names and proven against the CPU table on an emulator of blocks
// and threads (tests/kernels/cuda); no figure of their speed was taken here.
//
// Contract of all launches
// - A launch puts kernels on `stream` and returns: no allocation, no host synchronisation, so a step of them can be
//   captured into a CUDA graph. It returns a CUDA error code, 0 when the launch was accepted; error_text() names it.
// - Every pointer in a launch structure, and every pointer behind it, is device memory. What a launch structure holds
// by
//   value is frozen into a captured graph; what changes from step to step lies behind pointers (RegScalars and so on).
// - The work of a launch is a list of tiles, made once on the host by tiles.h and copied to the device. A block takes
// one
//   tile. Tiles of many tensors stand in one list.
// - The bits are those of kernels.h, whatever the tiles. A NaN is a NaN: which of its bits are set is not promised.
// - Figures that are plain sums (health) are added in a fixed order: the same tiles give the same bits, every time.
// - When RegScalars::skip (or AdamwScalars::skip) is set, sweeps that write state leave everything as it is and report
//   empty health; statistics of such a step mean nothing.
// - Not thread-safe per stream; different streams may be used from different threads.
//
// This header is plain C++ and includes nothing of CUDA; a build without CUDA links no_cuda.cpp, whose built() says no
// and whose launches return not_built.

#include <cstdint>
#include <string>

#include "kernels/kernels.h"

namespace regatta::kernels::cuda {

/// A cudaStream_t.
using StreamHandle = void*;

inline constexpr int not_built = -1;

/// False when this build has no CUDA.
bool built();
/// The name and meaning of what a launch returned.
std::string error_text(int code);

/// What the current device can do; tiles.h asks for it.
struct DeviceLimits {
  int compute_capability = 0;     ///< 90 for 9.0
  int largest_cluster = 1;        ///< blocks that can share their memories; 8 from 9.0 on
  std::int64_t shared_bytes = 0;  ///< most shared memory of one block
  std::int64_t multiprocessors = 0;
};
/// Asks the current device. Returns an error code.
int device_limits(DeviceLimits& limits);

/// One block's share of a launch. What `first` and `part` count is said by the maker of the tiles.
struct Tile {
  std::int32_t segment = 0;  ///< index into the launch's descriptors
  std::int32_t part = 0;
  std::int64_t first = 0;
};

/// The element types of all tensors of a launch; tensors that differ in them go into different launches.
struct Dtypes {
  DType grad = DType::f32;
  DType momentum = DType::f32;  ///< f32 or bf16; AdamW's first moment
  DType param = DType::f32;     ///< f32: no low-precision copy
};

/// Numbers of a parameter group that change from step to step.
struct RegScalars {
  double lr_rho = 0;  ///< fl64(lr * rho)
  double eps = 1e-12;
  float grad_scale = 1;
  float mu = 0.95F;
  float one_minus_mu = 0.05F;
  float decay = 1;
  std::int32_t skip = 0;
  std::int32_t padding = 0;
};

struct AdamwScalars {  ///< as in AdamwArgs
  float grad_scale = 1;
  float beta1 = 0.9F, one_minus_beta1 = 0.1F;
  float beta2 = 0.999F, one_minus_beta2 = 0.001F;
  float inverse_sqrt_correction2 = 1;
  float eps = 1e-8F;
  float step = 0;
  float decay = 1;
  std::int32_t skip = 0;
};

/// One (sub-)run of one tensor, as RegTensors. Its pointers address element `run.begin` and may have any alignment that
/// fits the element; 16-byte accesses are used where all of them are equally far from a 16-byte (8-byte for 16-bit
/// types) boundary.
struct RegSegment {
  MatrixRun run;
  const void* grad = nullptr;
  void* momentum = nullptr;
  float* weight = nullptr;
  void* param = nullptr;  ///< null unless Dtypes::param is a 16-bit type
  std::int32_t scalars = 0;
  std::int32_t pass_count = 0;          ///< apply only
  const LineFactors* passes = nullptr;  ///< earlier ones (observe) or all (apply); as in kernels.h
  double root = 0;                      ///< sqrt(max(rows, cols)) of the global block; one-sweep updates only
  LineSum* partials = nullptr;          ///< observe only: written, [statistic][part][line], see tiles.h
  std::int64_t lines = 0;               ///< observe only: lines of one part
  std::int64_t parts = 0;               ///< observe only
};

/// Common to the launches over RegSegments.
struct RegLaunch {
  const RegSegment* segments = nullptr;
  const Tile* tiles = nullptr;
  std::int64_t tile_count = 0;
  const RegScalars* scalars = nullptr;
  Dtypes dtypes;
  SweepHealth* tile_health = nullptr;  ///< written, one per block: tile_count * cluster of them
};

/// Closed rows, p = 2, one pass, in one sweep (UpdateRowsArgs): the row stays in registers, of one block or of a
/// cluster of `cluster` blocks. scale = fl64(lr_rho * root). `tile.first` is a row of the run, counted from its first.
struct UpdateRows {
  RegLaunch common;
  int cluster = 1;
};
int update_rows(const UpdateRows&, StreamHandle stream);
/// The same for rows of any length: each block sweeps its row twice, the second time mostly from the cache.
int update_long_rows(const RegLaunch&, StreamHandle stream);

/// Closed columns of whole matrices, p = 2, one pass, in one sweep: a strip of columns stays in the shared memories of
/// a cluster. `tile.first` is the first column of a strip `strip` (16 or 32) columns wide.
struct UpdateColumns {
  RegLaunch common;
  int cluster = 1;
  int strip = 32;
  std::int64_t shared_bytes = 0;  ///< of one block; tiles.h computes it
};
int update_columns(const UpdateColumns&, StreamHandle stream);

/// First sweep for lines that the one-sweep updates do not take (ObserveArgs). Writes the line sums of every part of
/// every segment, empty ones included; finish_lines() merges them.
struct Observe {
  RegLaunch common;  ///< no health
  Line line = Line::row;
  int earlier_count = 0;  ///< of RegSegment::passes; 0 updates the momentum
  bool magnitudes = false;
};
int observe(const Observe&, StreamHandle stream);

/// Last sweep (ApplyArgs), over RegSegment::pass_count passes, the last of which holds steps.
int apply(const RegLaunch&, StreamHandle stream);

struct AdamwSegment {
  std::int64_t count = 0;
  const void* grad = nullptr;
  void* moment1 = nullptr;
  float* moment2 = nullptr;
  float* weight = nullptr;
  void* param = nullptr;
  std::int64_t scalars = 0;
};
struct Adamw {
  const AdamwSegment* segments = nullptr;
  const Tile* tiles = nullptr;
  std::int64_t tile_count = 0;
  const AdamwScalars* scalars = nullptr;
  Dtypes dtypes;
  SweepHealth* tile_health = nullptr;
};
int adamw(const Adamw&, StreamHandle stream);

enum class Norm : std::uint8_t { one, two, inf };

/// Line sums that are merged for the same lines: statistic s of part p of line i is base[s * statistic_stride + p *
/// part_stride + i].
struct LineSource {
  const LineSum* base = nullptr;
  std::int64_t parts = 1;
  std::int64_t part_stride = 0;
  std::int64_t statistic_stride = 0;
};

/// Consecutive lines of one pass of one run, and what becomes of their sums.
struct FinishItem {
  std::int64_t count = 0;
  const LineSource* sources = nullptr;
  std::int32_t source_count = 0;
  std::int32_t statistics = 1;  ///< 2 with magnitudes
  LineSum* merged = nullptr;    ///< the whole sums, [statistic][line]; null if not wanted. May be a source itself.
  std::int64_t merged_stride = 0;
  float* inverse = nullptr;  ///< inverse norms; null when others finish these lines
  float* term = nullptr;     ///< what the line adds to its block's sum of squares; null unless the step is measured
  Norm norm = Norm::two;
  bool count_lines = false;  ///< into the health figures: last pass only
  std::int32_t scalars = 0;
};
struct FinishLines {
  const FinishItem* items = nullptr;
  const Tile* tiles = nullptr;
  std::int64_t tile_count = 0;
  const RegScalars* scalars = nullptr;
  SweepHealth* tile_health = nullptr;  ///< written, one per tile; null if not wanted
};
int finish_lines(const FinishLines&, StreamHandle stream);

/// The exact sum of a block's terms over this rank's lines, `largest` left zero, and its value where nobody else has
/// lines.
struct BlockItem {
  const float* terms = nullptr;
  std::int64_t count = 0;
  const LineSource* others = nullptr;  ///< what other ranks sent, one line each
  std::int32_t other_count = 0;
  std::int32_t padding = 0;
  LineSum* sum = nullptr;
  double* value = nullptr;  ///< null if another rank finishes this block
};
int sum_blocks(const BlockItem* items, std::int64_t count, StreamHandle stream);

/// Inverse norms to steps, in place or beside: step_factor(inverse, scale) with scale = lr_rho * root, or lr_rho over
/// the measured RMS when `block_sum` is there.
struct StepItem {
  std::int64_t count = 0;
  const float* inverse = nullptr;
  float* step = nullptr;
  const double* block_sum = nullptr;
  double numel = 0;  ///< fl64(fl64(rows) * fl64(cols)) of the global block
  double root = 0;
  std::int64_t scalars = 0;
};
struct MakeSteps {
  const StepItem* items = nullptr;
  const Tile* tiles = nullptr;
  std::int64_t tile_count = 0;
  const RegScalars* scalars = nullptr;
};
int make_steps(const MakeSteps&, StreamHandle stream);

/// Copies of 4-byte words: packs partials and answers of an exchange into its send buffer and unpacks what came, in the
/// layout of any side (all parts of which are multiples of 4 bytes). Sources and destinations must not overlap.
struct CopyItem {
  const void* from = nullptr;
  void* to = nullptr;
  std::int64_t words = 0;
};
int copy_words(const CopyItem* items, const Tile* tiles, std::int64_t tile_count, StreamHandle stream);

/// The figures of a gradient's elements.
struct TileFigures {
  WholeSum squares;
  std::int64_t non_finite = 0;
};

/// As ReduceTreeArgs; at most `most_pieces` pieces.
struct ReduceSegment {
  std::int64_t count = 0;
  const void* const* pieces = nullptr;
  std::int64_t piece_count = 0;
  float* out = nullptr;
};
inline constexpr int most_pieces = 1023;
struct ReduceTree {
  const ReduceSegment* segments = nullptr;
  const Tile* tiles = nullptr;
  std::int64_t tile_count = 0;
  DType dtype = DType::f32;
  TileFigures* tile_figures = nullptr;  ///< written, one per tile; null if not wanted
};
int reduce_tree(const ReduceTree&, StreamHandle stream);

struct CastSegment {
  std::int64_t count = 0;
  const void* from = nullptr;
  void* to = nullptr;
};
struct Cast {
  const CastSegment* segments = nullptr;
  const Tile* tiles = nullptr;
  std::int64_t tile_count = 0;
  DType from = DType::f32;
  DType to = DType::f32;
  bool add = false;  ///< to = to + from instead of to = from; requires to == f32
};
int cast(const Cast&, StreamHandle stream);

/// Figures of consecutive tiles.
struct TileRange {
  std::int64_t begin = 0, end = 0;
};
/// Several ranges of tiles that belong to one result.
struct MergeItem {
  std::int64_t first_range = 0, range_count = 0;
};
/// results[i] = the figures of item i's tiles, added in a fixed order. Overwrites.
int merge_health(const MergeItem* items, std::int64_t count, const TileRange* ranges, const SweepHealth* tiles,
                 SweepHealth* results, StreamHandle stream);
int merge_figures(const MergeItem* items, std::int64_t count, const TileRange* ranges, const TileFigures* tiles,
                  TileFigures* results, StreamHandle stream);

/// A rank's part of the vote on a step's gradients, from the figures of all parameters: `sums[places[p]]` gets those of
/// parameter p, unless places[p] is negative.
struct VoteFlags {
  std::int64_t culprit = -1;  ///< first parameter with a non-finite gradient
  std::int64_t non_finite = 0;
};
struct WriteVote {
  const TileFigures* figures = nullptr;
  const std::int32_t* places = nullptr;
  std::int64_t params = 0;
  VoteFlags* flags = nullptr;
  WholeSum* sums = nullptr;
};
int write_vote(const WriteVote&, StreamHandle stream);

/// From the parts of all ranks: writes `skip` and `grad_scale` (the clip factor over the loss scale) of every group's
/// numbers. The clip factor is min(1, clip / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ has it.
struct DecideNumbers {
  double clip = 0;  ///< 0: none
  double loss_scale = 1;
};
struct Decide {
  const VoteFlags* const* flags = nullptr;  ///< by rank
  std::int64_t ranks = 0;
  const WholeSum* const* parts = nullptr;  ///< of parameter p: from first_part[p] to first_part[p + 1]
  const std::int64_t* first_part = nullptr;
  std::int64_t params = 0;
  double* squares = nullptr;  ///< room for one per parameter
  const DecideNumbers* numbers = nullptr;
  RegScalars* reg = nullptr;
  AdamwScalars* adamw = nullptr;
  std::int64_t groups = 0;
};
int decide(const Decide&, StreamHandle stream);

}  // namespace regatta::kernels::cuda
