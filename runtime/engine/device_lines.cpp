#include "runtime/engine/device_lines.h"

#include <algorithm>

namespace regatta {

namespace cuda = kernels::cuda;
using kernels::LineSum;

DeviceLines::DeviceLines(const Inputs& inputs, Device& device, DeviceArena& arena, DeviceHealth& health)
    : device_(device),
      arena_(arena),
      health_(health),
      plan_(inputs.plan),
      rank_(inputs.rank),
      momentum_dtype_(inputs.momentum_dtype),
      scalars_(inputs.scalars),
      direct_(inputs.direct) {
  allocate_works(inputs);
  std::size_t rounds = plan_.rounds().size();
  for (const LineWork& work : works_) rounds = std::max(rounds, static_cast<std::size_t>(work.work->rounds()));
  rounds_.resize(rounds);
  for (int round = 0; round < static_cast<int>(rounds); ++round) {
    make_observe(round);
    make_finish(round);
    make_exchange(round);
  }
}

void DeviceLines::allocate_works(const Inputs& inputs) {
  for (const Work* work : inputs.works) {
    LineWork& made = works_.emplace_back();
    made.work = work;
    made.rule = inputs.rule_of_param[work->param];
    std::vector<kernels::LineFactors> factors;
    for (const PassLines& lines : work->passes) {
      const cuda::ObserveTiles tiles = cuda::observe_tiles({&work->tensors.run, 1}, lines.line);
      std::int64_t closed = 0;
      for (const Range& range : lines.closed) closed += range.size();
      Pass pass;
      pass.parts = tiles.parts[0];
      pass.partials = arena_.make<LineSum>(tiles.partials(0, lines.stats_per_line));
      if (closed < lines.count) pass.merged = arena_.make<LineSum>(lines.count * lines.stats_per_line);
      pass.inverse = arena_.make<float>(lines.count);
      factors.push_back({lines.line, pass.inverse});
      made.passes.push_back(pass);
    }
    made.factors = arena_.place(factors);
    if (!work->view.block_scale) continue;
    made.terms = arena_.make<float>(work->passes.back().count);
    made.block_sum = arena_.make<LineSum>(1);
    made.block_value = arena_.make<double>(1);
  }
}

// One launch for all works alike in element types, line, number of earlier passes and statistics.
void DeviceLines::make_observe(int round) {
  std::vector<std::size_t> left;
  for (std::size_t w = 0; w < works_.size(); ++w)
    if (round < std::ssize(works_[w].passes)) left.push_back(w);
  while (!left.empty()) {
    const Work& first = *works_[left.front()].work;
    const cuda::Dtypes dtypes = dtypes_of(first, momentum_dtype_);
    const PassLines& lines = first.passes[round];
    std::vector<cuda::RegSegment> segments;
    std::vector<MatrixRun> runs;
    std::vector<std::size_t> others;
    for (const std::size_t w : left) {
      const LineWork& made = works_[w];
      const PassLines& its = made.work->passes[round];
      if (!same(dtypes_of(*made.work, momentum_dtype_), dtypes) || its.line != lines.line ||
          its.stats_per_line != lines.stats_per_line) {
        others.push_back(w);
        continue;
      }
      cuda::RegSegment segment = reg_segment(*made.work);
      segment.passes = made.factors;
      segment.partials = made.passes[round].partials;
      segment.parts = made.passes[round].parts;
      segments.push_back(segment);
      runs.push_back(segment.run);
    }
    const cuda::ObserveTiles tiles = cuda::observe_tiles(runs, lines.line);
    for (std::size_t i = 0; i < segments.size(); ++i) segments[i].lines = tiles.lines[i];
    const cuda::Observe launch{
        {arena_.place(segments), arena_.place(tiles.tiles), std::ssize(tiles.tiles), scalars_, dtypes, nullptr},
        lines.line,
        round,
        lines.stats_per_line > 1};
    rounds_[round].observe.push_back({"the first sweep over open lines", [this, launch](StreamHandle stream) {
                                        return device_.kernels().observe(launch, stream);
                                      }});
    left = std::move(others);
  }
}

cuda::FinishItem DeviceLines::finish_item(const LineWork& made, int pass, std::int64_t offset,
                                          std::int64_t count) const {
  const PassLines& lines = made.work->passes[pass];
  const bool last = pass + 1 == std::ssize(made.passes);
  cuda::FinishItem item;
  item.count = count;
  item.statistics = lines.stats_per_line;
  item.inverse = made.passes[pass].inverse + offset;
  item.term = last && made.terms != nullptr ? made.terms + offset : nullptr;
  item.norm = made.rule->device_norm();
  item.count_lines = last;
  item.scalars = made.work->group;
  return item;
}

// Merges the parts of what this rank saw; lines that only it holds are finished, the others' sums kept to be sent.
void DeviceLines::make_finish(int round) {
  std::vector<cuda::FinishItem> items;
  std::vector<cuda::BlockItem> blocks;
  std::vector<int> params;
  for (LineWork& made : works_) {
    const Work& work = *made.work;
    if (round < std::ssize(made.passes)) {
      const PassLines& lines = work.passes[round];
      const Pass& pass = made.passes[round];
      const auto source_at = [&](std::int64_t offset) {
        return arena_.place(
            std::vector<cuda::LineSource>{{pass.partials + offset, pass.parts, lines.count, lines.count * pass.parts}});
      };
      if (pass.merged != nullptr) {
        cuda::FinishItem item;
        item.count = lines.count;
        item.sources = source_at(0);
        item.source_count = 1;
        item.statistics = lines.stats_per_line;
        item.merged = pass.merged;
        item.merged_stride = lines.count;
        item.scalars = work.group;
        items.push_back(item);
        params.push_back(-1);
      }
      for (const Range& range : lines.closed) {
        const std::int64_t offset = range.begin - lines.first;
        cuda::FinishItem item = finish_item(made, round, offset, range.size());
        item.sources = source_at(offset);
        item.source_count = 1;
        items.push_back(item);
        params.push_back(counted(work));
      }
    } else if (round + 1 == work.rounds() && made.block_sum != nullptr) {
      blocks.push_back({made.terms, work.passes.back().count, nullptr, 0, 0, made.block_sum,
                        work.block_closed ? made.block_value : nullptr});
    }
  }
  add_finish(rounds_[round].observe, items, params);
  if (blocks.empty()) return;
  const cuda::BlockItem* const placed = arena_.place(blocks);
  rounds_[round].observe.push_back(
      {"the sums of blocks", [this, placed, count = std::ssize(blocks)](StreamHandle stream) {
         return device_.kernels().sum_blocks(placed, count, stream);
       }});
}

void DeviceLines::add_finish(std::vector<DeviceLaunch>& to, const std::vector<cuda::FinishItem>& items,
                             const std::vector<int>& params) {
  if (items.empty()) return;
  std::vector<std::int64_t> counts;
  for (const cuda::FinishItem& item : items) counts.push_back(item.count);
  const std::vector<cuda::Tile> tiles = cuda::line_tiles(counts);
  const std::int64_t first_block = health_.add(tiles, params);
  cuda::FinishLines launch{arena_.place(items), arena_.place(tiles), std::ssize(tiles), scalars_, nullptr};
  to.push_back({"the finishing of lines", [this, launch, first_block](StreamHandle stream) mutable {
                  launch.tile_health = health_.blocks(first_block);
                  return device_.kernels().finish_lines(launch, stream);
                }});
}

void DeviceLines::add_copies(std::vector<DeviceLaunch>& to, const std::vector<cuda::CopyItem>& items) {
  if (items.empty()) return;
  std::vector<std::int64_t> words;
  for (const cuda::CopyItem& item : items) words.push_back(item.words);
  const std::vector<cuda::Tile> tiles = cuda::word_tiles(words);
  const auto* placed = arena_.place(items);
  const auto* placed_tiles = arena_.place(tiles);
  to.push_back({"the packing of lines", [this, placed, placed_tiles, count = std::ssize(tiles)](StreamHandle stream) {
                  return device_.kernels().copy_words(placed, placed_tiles, count, stream);
                }});
}

void DeviceLines::observe(int round, StreamHandle stream) {
  if (round < std::ssize(rounds_)) run_all(device_, rounds_[round].observe, stream);
}

// Steps from the last pass's inverse norms, and the last sweep.
std::vector<DeviceLaunch> DeviceLines::apply_launches(std::span<const std::size_t> chosen) {
  std::vector<DeviceLaunch> launches;
  if (chosen.empty()) return launches;
  std::vector<cuda::StepItem> steps;
  std::vector<std::int64_t> counts;
  for (const std::size_t w : chosen) {
    const LineWork& made = works_[w];
    const Work& work = *made.work;
    cuda::StepItem item;
    item.count = work.passes.back().count;
    item.inverse = made.passes.back().inverse;
    item.step = made.passes.back().inverse;
    item.block_sum = made.block_value;
    item.numel = static_cast<double>(work.shape.rows) * static_cast<double>(work.shape.cols);
    item.root = reg_segment(work).root;
    item.scalars = work.group;
    steps.push_back(item);
    counts.push_back(item.count);
  }
  const std::vector<cuda::Tile> step_tiles = cuda::line_tiles(counts);
  const cuda::MakeSteps make{arena_.place(steps), arena_.place(step_tiles), std::ssize(step_tiles), scalars_};
  launches.push_back(
      {"the steps of lines", [this, make](StreamHandle stream) { return device_.kernels().make_steps(make, stream); }});

  std::vector<std::size_t> left(chosen.begin(), chosen.end());
  while (!left.empty()) {
    const cuda::Dtypes dtypes = dtypes_of(*works_[left.front()].work, momentum_dtype_);
    std::vector<cuda::RegSegment> segments;
    std::vector<int> params;
    std::vector<std::size_t> others;
    counts.clear();
    for (const std::size_t w : left) {
      const LineWork& made = works_[w];
      if (!same(dtypes_of(*made.work, momentum_dtype_), dtypes)) {
        others.push_back(w);
        continue;
      }
      cuda::RegSegment segment = reg_segment(*made.work);
      segment.passes = made.factors;
      segment.pass_count = static_cast<int>(made.passes.size());
      segments.push_back(segment);
      params.push_back(counted(*made.work));
      counts.push_back(segment.run.numel());
    }
    const std::vector<cuda::Tile> tiles = cuda::flat_tiles(counts);
    const std::int64_t first_block = health_.add(tiles, params);
    cuda::RegLaunch launch{arena_.place(segments), arena_.place(tiles), std::ssize(tiles), scalars_, dtypes, nullptr};
    launches.push_back({"the last sweep over open lines", [this, launch, first_block](StreamHandle stream) mutable {
                          launch.tile_health = health_.blocks(first_block);
                          return device_.kernels().apply(launch, stream);
                        }});
    left = std::move(others);
  }
  return launches;
}

}  // namespace regatta
