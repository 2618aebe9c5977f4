// Statistics of lines, their finishing, and the last sweep, against the CPU table and the arithmetic of kernels.h.

#include "kernels/cuda/tiles.h"
#include "tests/kernels/cuda/device_case.h"

namespace regatta::testing {
namespace {

using kernels::cpu_kernels;

const MatrixRun shapes[] = {
    whole(1, 1),    whole(1, 700),   whole(40, 1),           whole(9, 16),     whole(5, 3000),
    whole(37, 131), {9, 50, 75, 76}, {9, 50, 3, 21},         {9, 50, 33, 401}, {30, 2100, 2000, 60001},
    {3, 5, 7, 7},   whole(3, 4097),  {4, 9001, 8000, 30000}, whole(700, 260),  {900, 132, 131, 118001}};

std::vector<float> random_factors(Random& random, std::int64_t count) {
  std::vector<float> factors(count);
  for (float& factor : factors) factor = std::exp2(static_cast<float>(random() % 1000) * 0.01F - 5);
  return factors;
}

// A broken row now and then: it must not leak into columns that the run does not have in that row.
std::vector<float> row_factors(Random& random, std::int64_t count) {
  std::vector<float> factors = random_factors(random, count);
  if (count > 0 && random() % 4 == 0) factors[random() % 2 == 0 ? 0 : count - 1] = std::nanf("");
  return factors;
}

// Factors of a run's lines, on both sides.
struct Factors {
  std::vector<float> row, col;
  float* device_row;
  float* device_col;
  Factors(Machine& machine, Random& random, const MatrixRun& run)
      : row(row_factors(random, run.empty() ? 0 : run.touched_rows().size())),
        col(random_factors(random, run.cols)),
        device_row(to_machine(machine, row)),
        device_col(to_machine(machine, col)) {}
  std::vector<LineFactors> of(const std::vector<Line>& lines, bool device) const {
    std::vector<LineFactors> passes;
    for (Line line : lines)
      passes.push_back(
          {line, line == Line::row ? (device ? device_row : row.data()) : (device ? device_col : col.data())});
    return passes;
  }
};

void check_observe(Machine& machine, Random& random, std::vector<RegRun> runs, const cuda::Dtypes& d,
                   const std::vector<Line>& earlier, Line line, bool magnitudes) {
  const std::vector<cuda::RegScalars> scalars = two_groups();
  const int kinds = magnitudes ? 2 : 1;
  std::vector<MatrixRun> run_shapes;
  for (const RegRun& run : runs) run_shapes.push_back(run.run);
  const cuda::ObserveTiles tiles = cuda::observe_tiles(run_shapes, line);
  std::vector<cuda::RegSegment> segments;
  std::vector<cuda::FinishItem> items;
  std::vector<Factors> factors;
  std::vector<std::vector<LineFactors>> passes;
  std::vector<LineSum*> merged;
  std::vector<float*> inverse, terms;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const int group = static_cast<int>(i % 2);
    factors.emplace_back(machine, random, runs[i].run);
    cuda::RegSegment segment = runs[i].upload(machine, group);
    segment.passes = to_machine(machine, factors.back().of(earlier, true));
    segment.lines = tiles.lines[i];
    segment.parts = tiles.parts[i];
    segment.partials = static_cast<LineSum*>(machine.allocate(tiles.partials(i, kinds) * sizeof(LineSum)));
    segments.push_back(segment);
    const std::int64_t lines = tiles.lines[i];
    merged.push_back(static_cast<LineSum*>(machine.allocate(lines * kinds * sizeof(LineSum))));
    inverse.push_back(static_cast<float*>(machine.allocate(lines * 4)));
    terms.push_back(static_cast<float*>(machine.allocate(lines * 4)));
    cuda::FinishItem item;
    item.count = lines;
    item.sources = to_machine(
        machine, std::vector<cuda::LineSource>{{segment.partials, segment.parts, lines, lines * segment.parts}});
    item.source_count = 1;
    item.statistics = kinds;
    item.merged = merged.back();
    item.merged_stride = lines;
    item.inverse = inverse.back();
    item.term = terms.back();
    item.norm = magnitudes ? cuda::Norm::one : i % 3 == 0 ? cuda::Norm::inf : cuda::Norm::two;
    item.count_lines = true;
    item.scalars = group;
    items.push_back(item);
    passes.push_back(factors.back().of(earlier, false));
  }

  const auto count = static_cast<std::int64_t>(tiles.tiles.size());
  const auto* device_scalars = to_machine(machine, scalars);
  machine.observe({{to_machine(machine, segments), to_machine(machine, tiles.tiles), count, device_scalars, d, nullptr},
                   line,
                   static_cast<int>(earlier.size()),
                   magnitudes});
  const std::vector<cuda::Tile> finish_tiles = cuda::line_tiles(tiles.lines);
  auto* blocks = static_cast<kernels::SweepHealth*>(
      machine.allocate(static_cast<std::int64_t>(finish_tiles.size() * sizeof(kernels::SweepHealth))));
  machine.finish_lines({to_machine(machine, items), to_machine(machine, finish_tiles),
                        static_cast<std::int64_t>(finish_tiles.size()), device_scalars, blocks});
  const auto health = merged_health(machine, cuda::blocks_of_segments(finish_tiles, runs.size()), blocks);
  for (std::size_t k = 0; k < runs.size(); ++k) {
    const std::string what = std::string(line == Line::row ? "rows of " : "columns of ") + text(runs[k].run) +
                             " after " + std::to_string(earlier.size()) + " passes";
    const cuda::RegScalars& s = scalars[k % 2];
    RegRun again = runs[k];
    const std::int64_t n = tiles.lines[k];
    std::vector<LineSum> want(n * kinds);
    if (!runs[k].run.empty())
      cpu_kernels().reg_observe({again.tensors(s), passes[k].data(), static_cast<int>(earlier.size()), line,
                                 want.data(), magnitudes ? want.data() + n : nullptr});
    runs[k].expect(machine, again, what);
    EXPECT_TRUE(from_machine(machine, merged[k], n * kinds) == want) << what;
    const std::vector<float> inverses = from_machine(machine, inverse[k], n), term = from_machine(machine, terms[k], n);
    kernels::SweepHealth expected_health;
    for (std::int64_t l = 0; l < n; ++l) {
      const double norm = items[k].norm == cuda::Norm::one   ? kernels::value(want[n + l])
                          : items[k].norm == cuda::Norm::two ? std::sqrt(kernels::value(want[l]))
                                                             : static_cast<double>(want[l].largest);
      const float expected_inverse = kernels::inverse_norm(norm, s.eps);
      kernels::count_line(expected_health, norm, s.eps);
      const double factor = expected_inverse;
      const auto expected_term = static_cast<float>(kernels::value(want[l]) * factor * factor);
      if (std::isnan(expected_inverse)) {
        ASSERT_TRUE(std::isnan(inverses[l]) && std::isnan(term[l])) << what;
      } else {
        ASSERT_EQ(inverses[l], expected_inverse) << what << ' ' << l;
        ASSERT_EQ(term[l], expected_term) << what << ' ' << l;
      }
    }
    expect_same_lines(health[k], expected_health, what);
  }
  machine.free_all();
}

TEST_F(CudaKernels, ObserveAndFinish) {
  const std::vector<std::vector<Line>> earlier_passes = {
      {}, {Line::row}, {Line::column}, {Line::column, Line::row, Line::column}};
  int shift = -1, turn = 0;
  for (const cuda::Dtypes& d : dtype_cases)
    for (const std::vector<Line>& earlier : earlier_passes)
      for (const Line line : {Line::row, Line::column}) {
        std::vector<RegRun> runs;
        for (const MatrixRun& shape : shapes) {
          if (++turn % 2 == 0) runs.emplace_back(random_, shape, d, shift);
          shift = shift == 4 ? -1 : shift + 1;
        }
        check_observe(*machine_, random_, runs, d, earlier, line, turn % 3 == 0);
      }
}

TEST_F(CudaKernels, ObserveOverHugeRangesAndNonFinite) {
  for (const bool magnitudes : {false, true})
    for (const Line line : {Line::row, Line::column}) {
      std::vector<RegRun> runs;
      for (const double spread : {40.0, 120.0})
        runs.emplace_back(random_, MatrixRun{40, 300, 111, 11311}, cuda::Dtypes{}, 0, spread);
      runs.emplace_back(random_, whole(20, 64), cuda::Dtypes{}, 0, 40);
      runs.back().momentum.set(700, std::numeric_limits<float>::infinity());
      runs.back().momentum.set(3, std::numeric_limits<float>::quiet_NaN());
      runs.emplace_back(random_, whole(20, 64), cuda::Dtypes{}, 0, 1);
      for (std::int64_t i = 0; i < 20 * 64; ++i) {
        runs.back().momentum.set(i, i % 64 == 5 || i / 64 == 7 ? 0 : i % 3 == 0 ? 3e38F : 1e-45F);
        runs.back().grad.set(i, i % 64 == 5 || i / 64 == 7 ? 0 : runs.back().grad[i]);
      }
      for (const std::vector<Line>& earlier : std::vector<std::vector<Line>>{{}, {line}})
        check_observe(*machine_, random_, runs, {}, earlier, line, magnitudes);
    }
}

TEST_F(CudaKernels, ApplyAnyPasses) {
  const std::vector<std::vector<Line>> pass_lists = {{Line::row},
                                                     {Line::column},
                                                     {Line::column, Line::row},
                                                     {Line::row, Line::column},
                                                     {Line::row, Line::column, Line::row}};
  int shift = -1, turn = 0;
  for (const cuda::Dtypes& d : dtype_cases)
    for (const std::vector<Line>& passes : pass_lists) {
      std::vector<cuda::RegScalars> scalars = two_groups();
      scalars.push_back(scalars[0]);
      scalars[2].skip = 1;
      std::vector<RegRun> runs;
      std::vector<cuda::RegSegment> segments;
      std::vector<Factors> factors;
      std::vector<std::int64_t> counts;
      for (const MatrixRun& shape : shapes) {
        if (++turn % 2 == 0) continue;
        runs.emplace_back(random_, shape, d, shift);
        shift = shift == 4 ? -1 : shift + 1;
      }
      for (std::size_t i = 0; i < runs.size(); ++i) {
        factors.emplace_back(*machine_, random_, runs[i].run);
        segments.push_back(runs[i].upload(*machine_, static_cast<int>(i % 3)));
        segments[i].grad = nullptr;  // not read here
        segments[i].passes = to_machine(*machine_, factors[i].of(passes, true));
        segments[i].pass_count = static_cast<int>(passes.size());
        counts.push_back(runs[i].run.numel());
      }
      const std::vector<cuda::Tile> tiles = cuda::flat_tiles(counts);
      auto* blocks = static_cast<kernels::SweepHealth*>(
          machine_->allocate(static_cast<std::int64_t>(tiles.size() * sizeof(kernels::SweepHealth))));
      machine_->apply({to_machine(*machine_, segments), to_machine(*machine_, tiles),
                       static_cast<std::int64_t>(tiles.size()), to_machine(*machine_, scalars), d, blocks});
      const auto health = merged_health(*machine_, cuda::blocks_of_segments(tiles, runs.size()), blocks);
      for (std::size_t i = 0; i < runs.size(); ++i) {
        RegRun expected = runs[i];
        kernels::SweepHealth expected_health;
        const std::vector<LineFactors> host = factors[i].of(passes, false);
        if (i % 3 != 2 && !runs[i].run.empty())
          cpu_kernels().reg_apply(
              {expected.tensors(scalars[i % 3]), host.data(), static_cast<int>(host.size()), &expected_health});
        const std::string what = "apply to " + text(runs[i].run);
        runs[i].expect(*machine_, expected, what);
        expect_close_sums(health[i], expected_health, what);
      }
      machine_->free_all();
    }
}

// Three ranks hold parts of the same lines; the first owns them. Everything an exchange needs, on the device.
TEST_F(CudaKernels, PackMergeAndAnswer) {
  constexpr std::int64_t lines = 600, ranks = 3;
  const std::vector<cuda::RegScalars> scalars = two_groups();
  std::vector<std::vector<LineSum>> held(ranks);
  std::vector<LineSum> whole_sums(2 * lines), block_parts(ranks);
  std::vector<LineSum*> device_held;
  std::normal_distribution<double> normal;
  for (int r = 0; r < ranks; ++r) {
    held[r].resize(2 * lines);
    for (std::int64_t i = 0; i < 2 * lines; ++i) {
      for (int k = 0; k < 3; ++k) kernels::add(held[r][i], std::exp2(20 * normal(random_)));
      kernels::merge(whole_sums[i], held[r][i]);
    }
    for (int k = 0; k < 40; ++k) kernels::add(block_parts[r], static_cast<float>(std::exp2(5 * normal(random_))));
    device_held.push_back(to_machine(*machine_, held[r]));
  }
  // Ranks 1 and 2 pack lines [100, 500): each statistic of them, one after the other.
  constexpr std::int64_t first = 100, count = 400, words = count * 6;
  LineSum* inbox[2];
  std::vector<cuda::CopyItem> copies;
  std::vector<std::int64_t> word_counts;
  for (int r = 1; r < ranks; ++r) {
    inbox[r - 1] = static_cast<LineSum*>(machine_->allocate(2 * count * sizeof(LineSum)));
    for (int s = 0; s < 2; ++s) {
      copies.push_back({device_held[r] + s * lines + first, inbox[r - 1] + s * count, words});
      word_counts.push_back(words);
    }
  }
  std::vector<cuda::Tile> tiles = cuda::word_tiles(word_counts);
  machine_->copy_words(to_machine(*machine_, copies), to_machine(*machine_, tiles),
                       static_cast<std::int64_t>(tiles.size()));
  // The owner merges its own and theirs.
  cuda::FinishItem item;
  item.count = count;
  item.sources = to_machine(
      *machine_, std::vector<cuda::LineSource>{
                     {device_held[0] + first, 1, 0, lines}, {inbox[0], 1, 0, count}, {inbox[1], 1, 0, count}});
  item.source_count = 3;
  item.statistics = 2;
  item.merged = device_held[0] + first;
  item.merged_stride = lines;
  item.inverse = static_cast<float*>(machine_->allocate(count * 4));
  item.term = static_cast<float*>(machine_->allocate(count * 4));
  tiles = cuda::line_tiles(std::vector<std::int64_t>{count});
  machine_->finish_lines({to_machine(*machine_, std::vector<cuda::FinishItem>{item}), to_machine(*machine_, tiles),
                          static_cast<std::int64_t>(tiles.size()), to_machine(*machine_, scalars), nullptr});
  const std::vector<LineSum> merged = from_machine(*machine_, device_held[0], 2 * lines);
  std::vector<float> inverse = from_machine(*machine_, item.inverse, count);
  LineSum expected_block;
  for (std::int64_t i = 0; i < count; ++i) {
    ASSERT_EQ(merged[first + i], whole_sums[first + i]);
    ASSERT_EQ(merged[lines + first + i], whole_sums[lines + first + i]);
    ASSERT_EQ(inverse[i], kernels::inverse_norm(std::sqrt(kernels::value(whole_sums[first + i])), 1e-12));
    const double factor = inverse[i];
    kernels::add(expected_block, static_cast<float>(kernels::value(whole_sums[first + i]) * factor * factor));
  }
  EXPECT_EQ(merged[first - 1], held[0][first - 1]);

  // The block's sum, with what two other ranks found, and the steps it gives.
  LineSum all = expected_block;
  std::vector<cuda::LineSource> others;
  for (int r = 1; r < ranks; ++r) {
    others.push_back({to_machine(*machine_, std::vector<LineSum>{block_parts[r]}), 1, 0, 0});
    kernels::merge(all, block_parts[r]);
  }
  auto* sums = static_cast<LineSum*>(machine_->allocate(2 * sizeof(LineSum)));
  auto* value = static_cast<double*>(machine_->allocate(8));
  machine_->sum_blocks(
      to_machine(*machine_, std::vector<cuda::BlockItem>{{item.term, count, nullptr, 0, 0, sums, nullptr},
                                                         {item.term, count, to_machine(*machine_, others), 2, 0,
                                                          sums + 1, value}}),
      2);
  EXPECT_EQ(from_machine(*machine_, sums, 2), (std::vector<LineSum>{expected_block, all}));
  EXPECT_EQ(from_machine(*machine_, value, 1)[0], kernels::value(all));
  auto* steps = static_cast<float*>(machine_->allocate(2 * count * 4));
  const double numel = 400.0 * 1000.0;
  tiles = cuda::line_tiles(std::vector<std::int64_t>{count, count});
  machine_->make_steps(
      {to_machine(*machine_, std::vector<cuda::StepItem>{{count, item.inverse, steps, value, numel, 0, 0},
                                                         {count, item.inverse, steps + count, nullptr, 0, 30.5, 1}}),
       to_machine(*machine_, tiles), static_cast<std::int64_t>(tiles.size()), to_machine(*machine_, scalars)});
  const std::vector<float> got = from_machine(*machine_, steps, 2 * count);
  const double measured = scalars[0].lr_rho / std::sqrt(kernels::value(all) / numel);
  for (std::int64_t i = 0; i < count; ++i) {
    ASSERT_EQ(got[i], kernels::step_factor(inverse[i], measured));
    ASSERT_EQ(got[count + i], kernels::step_factor(inverse[i], scalars[1].lr_rho * 30.5));
  }
}

}  // namespace
}  // namespace regatta::testing
