// The one-sweep updates and AdamW against the CPU table.

#include <map>

#include "kernels/cuda/tiles.h"
#include "tests/kernels/cuda/device_case.h"

namespace regatta::testing {
namespace {

using kernels::cpu_kernels;

void cpu_update_rows(RegRun& run, const cuda::RegScalars& s, double root, kernels::SweepHealth& health) {
  cpu_kernels().reg_update_rows({run.tensors(s), s.lr_rho * root, s.eps, &health});
}

void check_update_rows(Machine& machine, std::vector<RegRun> runs, const cuda::Dtypes& dtypes,
                       const cuda::DeviceLimits& limits, const std::vector<cuda::RegScalars>& scalars) {
  std::vector<cuda::RegSegment> segments;
  std::vector<MatrixRun> shapes;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    segments.push_back(runs[i].upload(machine, static_cast<int>(i % scalars.size())));
    segments.back().root = std::sqrt(static_cast<double>(std::max(runs[i].run.rows, runs[i].run.cols)));
    shapes.push_back(runs[i].run);
  }
  const auto* device_segments = to_machine(machine, segments);
  const auto* device_scalars = to_machine(machine, scalars);
  std::vector<kernels::SweepHealth> health(runs.size());
  for (const cuda::RowTiles& launch : cuda::update_rows_tiles(shapes, limits)) {
    const int cluster = std::max(launch.cluster, 1);
    const auto tiles = static_cast<std::int64_t>(launch.tiles.size());
    auto* blocks = static_cast<kernels::SweepHealth*>(machine.allocate(tiles * cluster * sizeof(kernels::SweepHealth)));
    const cuda::RegLaunch common{device_segments, to_machine(machine, launch.tiles), tiles, device_scalars, dtypes,
                                 blocks};
    if (launch.cluster == 0) {
      machine.update_long_rows(common);
    } else {
      machine.update_rows({common, launch.cluster});
    }
    const auto parts = merged_health(machine, cuda::blocks_of_segments(launch.tiles, runs.size(), cluster), blocks);
    for (std::size_t i = 0; i < runs.size(); ++i) health[i].add(parts[i]);
  }
  for (std::size_t i = 0; i < runs.size(); ++i) {
    RegRun expected = runs[i];
    kernels::SweepHealth expected_health;
    const cuda::RegScalars& s = scalars[i % scalars.size()];
    if (s.skip == 0) cpu_update_rows(expected, s, segments[i].root, expected_health);
    const std::string what = "rows " + text(runs[i].run);
    runs[i].expect(machine, expected, what);
    expect_same_lines(health[i], expected_health, what);
    expect_close_sums(health[i], expected_health, what);
  }
}

TEST_F(CudaKernels, UpdateRowsOfManyShapes) {
  const std::int64_t widths[] = {1, 2, 3, 5, 31, 64, 127, 500, 512, 513, 515, 1000, 1024, 1027, 2048, 2049, 4095, 4096};
  int shift = -1;
  for (const cuda::Dtypes& d : dtype_cases) {
    std::vector<RegRun> runs;
    for (const std::int64_t cols : widths) {
      runs.emplace_back(random_, whole(static_cast<std::int64_t>(1 + random_() % 9), cols), d, shift);
      shift = shift == 4 ? -1 : shift + 1;
    }
    runs.emplace_back(random_, MatrixRun{20, 33, 5 * 33, 16 * 33}, d, 3);
    runs.emplace_back(random_, MatrixRun{20, 33, 99, 99}, d, 3);
    check_update_rows(*machine_, runs, d, machine_->limits(), two_groups());
    machine_->free_all();
  }
}

TEST_F(CudaKernels, UpdateLongRowsByClustersAndWithout) {
  cuda::DeviceLimits limits = machine_->limits();
  for (const int largest : {limits.largest_cluster, 1}) {
    limits.largest_cluster = std::min(limits.largest_cluster, largest);
    int shift = 0;
    for (const cuda::Dtypes& d : {dtype_cases[0], dtype_cases[4]}) {
      std::vector<RegRun> runs;
      for (const std::int64_t cols : {4097, 8192, 11008, 16385, 32767, 40001})
        runs.emplace_back(random_, whole(2, cols), d, shift++ % 4);
      check_update_rows(*machine_, runs, d, limits, two_groups());
      machine_->free_all();
    }
  }
}

// Zero rows, rows below eps, subnormals, rows 2^40 apart, overflow, Inf and NaN.
TEST_F(CudaKernels, UpdateRowsOfHugeRangesAndBrokenRows) {
  const double scales[] = {1, 0, 0x1p60, 0x1p-60, 0x1p-130, 0x1p-20, 1e-14, 0x1p-141, 0x1p100};
  std::vector<RegRun> runs;
  for (const std::int64_t cols : {70, 1500, 5000}) {
    RegRun run(random_, whole(18, cols), {}, 1, 30);
    for (std::int64_t i = 0; i < run.run.numel(); ++i) {
      const double scale = scales[i / cols % 9];
      run.grad.set(i, static_cast<float>(run.grad[i] * scale));
      run.momentum.set(i, static_cast<float>(run.momentum[i] * scale));
    }
    run.momentum.set(2 * cols + 3, std::numeric_limits<float>::infinity());
    run.grad.set(5 * cols + cols - 1, std::numeric_limits<float>::quiet_NaN());
    runs.push_back(run);
  }
  check_update_rows(*machine_, runs, {}, machine_->limits(), two_groups());
}

TEST_F(CudaKernels, SkippedUpdatesLeaveEverything) {
  std::vector<cuda::RegScalars> scalars = two_groups();
  scalars[1].skip = 1;
  std::vector<RegRun> runs;
  for (const std::int64_t cols : {100, 101, 5000, 5001, 40000, 40001})
    runs.emplace_back(random_, whole(3, cols), cuda::Dtypes{}, 0);
  check_update_rows(*machine_, runs, {}, machine_->limits(), scalars);
}

void check_update_columns(Machine& machine, std::vector<RegRun> runs, const cuda::Dtypes& d,
                          const cuda::DeviceLimits& limits, const std::vector<cuda::RegScalars>& scalars) {
  std::vector<cuda::RegSegment> segments;
  std::vector<MatrixRun> shapes;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    segments.push_back(runs[i].upload(machine, static_cast<int>(i % scalars.size())));
    segments.back().root = std::sqrt(static_cast<double>(std::max(runs[i].run.rows, runs[i].run.cols)));
    shapes.push_back(runs[i].run);
  }
  const auto* device_segments = to_machine(machine, segments);
  const auto* device_scalars = to_machine(machine, scalars);
  std::vector<kernels::SweepHealth> health(runs.size());
  for (const cuda::ColumnTiles& launch : cuda::update_columns_tiles(shapes, d.momentum, limits)) {
    const auto tiles = static_cast<std::int64_t>(launch.tiles.size());
    auto* blocks =
        static_cast<kernels::SweepHealth*>(machine.allocate(tiles * launch.cluster * sizeof(kernels::SweepHealth)));
    machine.update_columns({{device_segments, to_machine(machine, launch.tiles), tiles, device_scalars, d, blocks},
                            launch.cluster,
                            launch.strip,
                            launch.shared_bytes});
    const auto parts =
        merged_health(machine, cuda::blocks_of_segments(launch.tiles, runs.size(), launch.cluster), blocks);
    for (std::size_t i = 0; i < runs.size(); ++i) health[i].add(parts[i]);
  }
  for (std::size_t i = 0; i < runs.size(); ++i) {
    RegRun expected = runs[i];
    kernels::SweepHealth expected_health;
    const cuda::RegScalars& s = scalars[i % scalars.size()];
    if (s.skip == 0) {
      std::vector<LineSum> sums(runs[i].run.cols);
      cpu_kernels().reg_observe({expected.tensors(s), nullptr, 0, Line::column, sums.data(), nullptr});
      std::vector<float> steps;
      for (const LineSum& sum : sums) {
        const double norm = std::sqrt(kernels::value(sum));
        kernels::count_line(expected_health, norm, s.eps);
        steps.push_back(kernels::step_factor(kernels::inverse_norm(norm, s.eps), s.lr_rho * segments[i].root));
      }
      const LineFactors last{Line::column, steps.data()};
      cpu_kernels().reg_apply({expected.tensors(s), &last, 1, &expected_health});
    }
    const std::string what = "columns " + text(runs[i].run);
    runs[i].expect(machine, expected, what);
    expect_same_lines(health[i], expected_health, what);
    expect_close_sums(health[i], expected_health, what);
  }
}

// Lines whose elements are of one size for some hundred places and then of another, so that threads, warps and blocks
// of a cluster have different bins for the same line.
void scale_stretches(Random& random, RegRun& run, std::int64_t rows, std::int64_t cols) {
  std::map<std::pair<std::int64_t, std::int64_t>, float> scales;
  for (std::int64_t i = 0; i < run.run.numel(); ++i) {
    const auto [at, added] = scales.try_emplace({i / run.run.cols / rows, i % run.run.cols / cols}, 0.0F);
    if (added) at->second = random() % 4 == 0 ? 0 : std::ldexp(1.0F, static_cast<int>(random() % 200) - 100);
    run.grad.set(i, run.grad[i] * at->second);
    run.momentum.set(i, run.momentum[i] * at->second);
  }
}

TEST_F(CudaKernels, UpdateLinesWhoseSizeChangesOnTheWay) {
  cuda::DeviceLimits limits = machine_->limits();
  std::vector<RegRun> rows, columns;
  for (const std::int64_t cols : {900, 4000, 16385, 32768, 40001}) {
    rows.emplace_back(random_, whole(5, cols), cuda::Dtypes{}, 0);
    scale_stretches(random_, rows.back(), 1, 300);
  }
  check_update_rows(*machine_, rows, {}, limits, two_groups());
  limits.shared_bytes = 2048 + 4 * 512 * 16;
  for (const std::int64_t count : {40, 900, 3000}) {
    columns.emplace_back(random_, whole(count, 40), cuda::Dtypes{}, 0);
    scale_stretches(random_, columns.back(), 70, 3);
    if (!cuda::fits_update_columns(columns.back().run, DType::f32, limits)) columns.pop_back();
  }
  check_update_columns(*machine_, columns, {}, limits, two_groups());
}

TEST_F(CudaKernels, UpdateColumnsOfManyShapes) {
  int shift = 0;
  for (const cuda::Dtypes& d : dtype_cases) {
    std::vector<RegRun> runs;
    for (const auto& [rows, cols] :
         std::vector<std::pair<int, int>>{{1, 1}, {5, 3}, {70, 32}, {129, 36}, {64, 33}, {300, 20}, {1000, 7}}) {
      runs.emplace_back(random_, whole(rows, cols), d, shift);
      shift = shift == 3 ? -1 : shift + 1;
    }
    check_update_columns(*machine_, runs, d, machine_->limits(), two_groups());
    machine_->free_all();
  }
}

TEST_F(CudaKernels, UpdateColumnsByClusters) {
  cuda::DeviceLimits limits = machine_->limits();
  if (limits.largest_cluster < 8) GTEST_SKIP() << "this device has no clusters of 8 blocks";
  // Little shared memory, so that few rows ask for a cluster or a narrow strip.
  limits.shared_bytes = 2048 + 4 * 512 * 16;
  for (const cuda::Dtypes& d : {dtype_cases[0], dtype_cases[4]}) {
    const std::int64_t per_block = d.momentum == DType::f32 ? 512 : 768;
    std::vector<RegRun> runs;
    for (const std::int64_t rows : {per_block * 2 - 5, per_block * 7 + 1, per_block * 8 + 1, per_block * 16}) {
      runs.emplace_back(random_, whole(rows, 40), d, 0);
      ASSERT_TRUE(cuda::fits_update_columns(runs.back().run, d.momentum, limits));
    }
    EXPECT_FALSE(cuda::fits_update_columns(whole(per_block * 16 + 1, 40), d.momentum, limits));
    runs[1].momentum.set(40 * 3 + 7, std::numeric_limits<float>::infinity());
    std::vector<cuda::RegScalars> scalars = two_groups();
    check_update_columns(*machine_, runs, d, limits, scalars);
    scalars[0].skip = 1;
    check_update_columns(*machine_, runs, d, limits, scalars);
    machine_->free_all();
  }
}

TEST_F(CudaKernels, Adamw) {
  std::vector<cuda::AdamwScalars> scalars(2);
  scalars[0].grad_scale = 0.7F;
  scalars[0].step = 1e-3F;
  scalars[0].inverse_sqrt_correction2 = 4.5F;
  scalars[0].decay = 0.999F;
  scalars[1].step = 0.1F;
  scalars[1].skip = 1;
  int shift = -1;
  for (const cuda::Dtypes& d : dtype_cases) {
    struct Tensor {
      Array grad, first, second, weight, param;
    };
    std::vector<Tensor> tensors;
    std::vector<cuda::AdamwSegment> segments;
    std::vector<std::int64_t> counts = {1, 3, 130, 4096, 8191, 8192, 20001, 77};
    for (const std::int64_t count : counts) {
      const auto place = [&] { return shift >= 0 ? shift : static_cast<int>(random_() % 5); };
      Tensor t{Array(d.grad, count, place()), Array(d.momentum, count, place()), Array(DType::f32, count, place()),
               Array(DType::f32, count, place()), Array(d.param, count, place())};
      shift = shift == 4 ? -1 : shift + 1;
      t.grad.fill(random_, 10);
      t.first.fill(random_, 10);
      t.second.fill(random_, 10);
      t.weight.fill(random_, 2);
      for (std::int64_t i = 0; i < count; ++i) t.second.set(i, std::fabs(t.second[i]));
      for (Array* a : {&t.grad, &t.first, &t.second, &t.weight, &t.param}) a->upload(*machine_);
      segments.push_back({count, t.grad.on_device(), t.first.on_device(), static_cast<float*>(t.second.on_device()),
                          static_cast<float*>(t.weight.on_device()),
                          d.param == DType::f32 ? nullptr : t.param.on_device(), count == 77});
      tensors.push_back(std::move(t));
    }
    const std::vector<cuda::Tile> tiles = cuda::flat_tiles(counts);
    auto* blocks = static_cast<kernels::SweepHealth*>(
        machine_->allocate(static_cast<std::int64_t>(tiles.size() * sizeof(kernels::SweepHealth))));
    machine_->adamw({to_machine(*machine_, segments), to_machine(*machine_, tiles),
                     static_cast<std::int64_t>(tiles.size()), to_machine(*machine_, scalars), d, blocks});
    const auto health = merged_health(*machine_, cuda::blocks_of_segments(tiles, counts.size()), blocks);
    for (std::size_t i = 0; i < counts.size(); ++i) {
      Tensor expected = tensors[i];
      kernels::SweepHealth expected_health;
      const cuda::AdamwScalars& s = scalars[segments[i].scalars];
      if (s.skip == 0)
        cpu_kernels().adamw({counts[i], expected.grad.data(), d.grad, expected.first.data(), d.momentum,
                             expected.second.floats(), expected.weight.floats(),
                             d.param == DType::f32 ? nullptr : expected.param.data(), d.param, s.grad_scale, s.beta1,
                             s.one_minus_beta1, s.beta2, s.one_minus_beta2, s.inverse_sqrt_correction2, s.eps, s.step,
                             s.decay, &expected_health});
      const std::string what = "adamw of " + std::to_string(counts[i]);
      tensors[i].first.expect(*machine_, expected.first, what + ", first moment");
      tensors[i].second.expect(*machine_, expected.second, what + ", second moment");
      tensors[i].weight.expect(*machine_, expected.weight, what + ", weight");
      tensors[i].param.expect(*machine_, expected.param, what + ", parameter");
      expect_close_sums(health[i], expected_health, what);
    }
    machine_->free_all();
  }
}

}  // namespace
}  // namespace regatta::testing
