#pragma once
// What runs the launches of kernels/cuda under test: a device, or the emulator. A program links one of the two.

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/cuda/launch_table.h"

namespace regatta::testing {

namespace cuda = kernels::cuda;

/// Functions throw std::runtime_error when the machine reports an error.
class Machine {
 public:
  explicit Machine(const cuda::LaunchTable& launches) : launches_(launches) {}
  virtual ~Machine() = default;
  virtual cuda::DeviceLimits limits() = 0;
  virtual void* allocate(std::int64_t bytes) = 0;  ///< freed with the machine; at a 256-byte boundary
  virtual void write(void* to, const void* from, std::int64_t bytes) = 0;
  virtual void read(void* to, const void* from, std::int64_t bytes) = 0;
  virtual void free_all() = 0;
  /// Waits for the launches so far.
  virtual void synchronize() = 0;

  void update_rows(const cuda::UpdateRows& a) { done(launches_.update_rows(a, nullptr), "update_rows"); }
  void update_long_rows(const cuda::RegLaunch& a) { done(launches_.update_long_rows(a, nullptr), "update_long_rows"); }
  void update_columns(const cuda::UpdateColumns& a) { done(launches_.update_columns(a, nullptr), "update_columns"); }
  void observe(const cuda::Observe& a) { done(launches_.observe(a, nullptr), "observe"); }
  void apply(const cuda::RegLaunch& a) { done(launches_.apply(a, nullptr), "apply"); }
  void adamw(const cuda::Adamw& a) { done(launches_.adamw(a, nullptr), "adamw"); }
  void finish_lines(const cuda::FinishLines& a) { done(launches_.finish_lines(a, nullptr), "finish_lines"); }
  void sum_blocks(const cuda::BlockItem* items, std::int64_t count) {
    done(launches_.sum_blocks(items, count, nullptr), "sum_blocks");
  }
  void make_steps(const cuda::MakeSteps& a) { done(launches_.make_steps(a, nullptr), "make_steps"); }
  void copy_words(const cuda::CopyItem* items, const cuda::Tile* tiles, std::int64_t tile_count) {
    done(launches_.copy_words(items, tiles, tile_count, nullptr), "copy_words");
  }
  void reduce_tree(const cuda::ReduceTree& a) { done(launches_.reduce_tree(a, nullptr), "reduce_tree"); }
  void cast(const cuda::Cast& a) { done(launches_.cast(a, nullptr), "cast"); }
  void merge_health(const cuda::MergeItem* items, std::int64_t count, const cuda::TileRange* ranges,
                    const kernels::SweepHealth* tiles, kernels::SweepHealth* results) {
    done(launches_.merge_health(items, count, ranges, tiles, results, nullptr), "merge_health");
  }
  void merge_figures(const cuda::MergeItem* items, std::int64_t count, const cuda::TileRange* ranges,
                     const cuda::TileFigures* tiles, cuda::TileFigures* results) {
    done(launches_.merge_figures(items, count, ranges, tiles, results, nullptr), "merge_figures");
  }
  void write_vote(const cuda::WriteVote& a) { done(launches_.write_vote(a, nullptr), "write_vote"); }
  void decide(const cuda::Decide& a) { done(launches_.decide(a, nullptr), "decide"); }

 private:
  void done(int code, const char* what) {
    if (code != 0) throw std::runtime_error(std::string(what) + ": " + cuda::error_text(code));
    synchronize();
  }
  const cuda::LaunchTable& launches_;
};

/// The machine of this program; null with a reason where there is none.
Machine* machine(std::string& why_not);

}  // namespace regatta::testing
