#include "runtime/engine/device_sweep.h"

namespace regatta {

namespace cuda = kernels::cuda;

namespace {

using Works = std::vector<const Work*>;

// Takes the works that are alike in element types with the first one out of `left`.
Works take_alike(Works& left, DType momentum_dtype) {
  const cuda::Dtypes dtypes = dtypes_of(*left.front(), momentum_dtype);
  Works alike, others;
  for (const Work* work : left) (same(dtypes_of(*work, momentum_dtype), dtypes) ? alike : others).push_back(work);
  left = std::move(others);
  return alike;
}

struct Segments {
  std::vector<cuda::RegSegment> segments;
  std::vector<MatrixRun> runs;
  std::vector<int> params;
  explicit Segments(std::span<const Work* const> works) {
    for (const Work* work : works) {
      segments.push_back(reg_segment(*work));
      runs.push_back(work->tensors.run);
      params.push_back(work->primary ? work->param : -1);
    }
  }
};

}  // namespace

DeviceSweep::DeviceSweep(const Inputs& inputs, Device& device)
    : device_(device),
      limits_(device.limits()),
      rule_of_param_(inputs.rule_of_param),
      rule_of_group_(inputs.rule_of_group),
      momentum_dtype_(inputs.momentum_dtype),
      one_stage_(inputs.one_stage),
      arena_(device),
      health_(device, inputs.plan.params().size()) {
  const auto groups = static_cast<std::int64_t>(rule_of_group_.size());
  const std::int64_t bytes = groups * static_cast<std::int64_t>(sizeof(cuda::RegScalars) + sizeof(cuda::AdamwScalars));
  scalars_host_ = Buffer::pinned(bytes, device);
  scalars_ = Buffer(bytes, &device);

  stages_.resize(one_stage_ ? 1 : inputs.plan.bucket_count());
  std::vector<Works> elements(stages_.size()), rows(stages_.size()), columns(stages_.size());
  DeviceLines::Inputs open{inputs.plan,          inputs.rank,     {},
                           inputs.rule_of_param, momentum_dtype_, scalars_.as<cuda::RegScalars>(),
                           inputs.direct};
  for (const Work& work : inputs.works) {
    const std::size_t stage = one_stage_ ? 0 : static_cast<std::size_t>(work.bucket);
    if (work.view.kind == sharding::View::Kind::elements) {
      elements[stage].push_back(&work);
    } else if (work.one_sweep) {
      rows[stage].push_back(&work);
    } else if (in_one_sweep(work)) {
      columns[stage].push_back(&work);
    } else {
      open.works.push_back(&work);
    }
  }
  lines_ = std::make_unique<DeviceLines>(open, device_, arena_, health_);
  for (std::size_t s = 0; s < stages_.size(); ++s) {
    while (!elements[s].empty()) add_elements(stages_[s], take_alike(elements[s], momentum_dtype_));
    while (!rows[s].empty()) {
      const cuda::Dtypes dtypes = dtypes_of(*rows[s].front(), momentum_dtype_);
      add_rows(stages_[s], take_alike(rows[s], momentum_dtype_), dtypes);
    }
    while (!columns[s].empty()) {
      const cuda::Dtypes dtypes = dtypes_of(*columns[s].front(), momentum_dtype_);
      add_columns(stages_[s], take_alike(columns[s], momentum_dtype_), dtypes);
    }
    stages_[s].apply = lines_->apply([&](int bucket) { return one_stage_ || bucket == static_cast<int>(s); });
  }
  health_.allocate();
}

// Columns of a whole matrix that nobody else holds a part of, when a strip of them fits on chip.
bool DeviceSweep::in_one_sweep(const Work& work) const {
  if (work.passes.size() != 1 || work.view.block_scale || work.passes[0].line != Line::column) return false;
  const PassLines& lines = work.passes[0];
  if (rule_of_param_[work.param]->device_norm() != cuda::Norm::two || lines.closed.size() != 1 ||
      lines.closed[0].size() != lines.count)
    return false;
  return cuda::fits_update_columns(work.tensors.run, momentum_dtype_, limits_);
}

void DeviceSweep::add_elements(Stage& stage, std::span<const Work* const> works) {
  std::vector<cuda::AdamwSegment> segments;
  std::vector<std::int64_t> counts;
  std::vector<int> params;
  for (const Work* work : works) {
    const RunTensors& t = work->tensors;
    segments.push_back(
        {t.run.numel(), t.grad, work->state[0], static_cast<float*>(work->state[1]), t.weight, t.param, work->group});
    counts.push_back(t.run.numel());
    params.push_back(work->primary ? work->param : -1);
  }
  const std::vector<cuda::Tile> tiles = cuda::flat_tiles(counts);
  const std::int64_t first_block = health_.add(tiles, params);
  cuda::Adamw launch{arena_.place(segments),
                     arena_.place(tiles),
                     std::ssize(tiles),
                     adamw_scalars(),
                     dtypes_of(*works.front(), momentum_dtype_),
                     nullptr};
  stage.update.push_back({"AdamW's sweep", [this, launch, first_block](StreamHandle stream) mutable {
                            launch.tile_health = health_.blocks(first_block);
                            return device_.kernels().adamw(launch, stream);
                          }});
}

void DeviceSweep::add_rows(Stage& stage, std::span<const Work* const> works, const cuda::Dtypes& dtypes) {
  const Segments all(works);
  const auto* segments = arena_.place(all.segments);
  for (const cuda::RowTiles& rows : cuda::update_rows_tiles(all.runs, limits_)) {
    const int cluster = rows.cluster;
    const std::int64_t first_block = health_.add(rows.tiles, all.params, cluster == 0 ? 1 : cluster);
    cuda::RegLaunch launch{
        segments, arena_.place(rows.tiles), std::ssize(rows.tiles), scalars_.as<cuda::RegScalars>(), dtypes, nullptr};
    stage.update.push_back(
        {"the sweep over closed rows", [this, launch, first_block, cluster](StreamHandle stream) mutable {
           launch.tile_health = health_.blocks(first_block);
           if (cluster == 0) return device_.kernels().update_long_rows(launch, stream);
           return device_.kernels().update_rows({launch, cluster}, stream);
         }});
  }
}

void DeviceSweep::add_columns(Stage& stage, std::span<const Work* const> works, const cuda::Dtypes& dtypes) {
  const Segments all(works);
  const auto* segments = arena_.place(all.segments);
  for (const cuda::ColumnTiles& columns : cuda::update_columns_tiles(all.runs, momentum_dtype_, limits_)) {
    const std::int64_t first_block = health_.add(columns.tiles, all.params, columns.cluster);
    cuda::UpdateColumns launch{{segments, arena_.place(columns.tiles), std::ssize(columns.tiles),
                                scalars_.as<cuda::RegScalars>(), dtypes, nullptr},
                               columns.cluster,
                               columns.strip,
                               columns.shared_bytes};
    stage.update.push_back({"the sweep over closed columns", [this, launch, first_block](StreamHandle stream) mutable {
                              launch.common.tile_health = health_.blocks(first_block);
                              return device_.kernels().update_columns(launch, stream);
                            }});
  }
}

void DeviceSweep::begin(std::span<const StepInfo> infos) {
  for (Stage& stage : stages_) stage.updated = stage.applied = false;
  auto* const reg = scalars_host_.as<cuda::RegScalars>();
  auto* const adamw = reinterpret_cast<cuda::AdamwScalars*>(reg + rule_of_group_.size());
  for (std::size_t g = 0; g < rule_of_group_.size(); ++g) {
    reg[g] = rule_of_group_[g]->reg_scalars(infos[g]);
    adamw[g] = rule_of_group_[g]->adamw_scalars(infos[g]);
  }
}

void DeviceSweep::send_numbers(StreamHandle stream) {
  device_.copy(scalars_.data(), scalars_host_.data(), scalars_.bytes(), stream);
}

void DeviceSweep::run_alone(StreamHandle stream) {
  for (int round = 0; round < lines_->rounds(); ++round) lines_->observe(round, stream);
  run_all(device_, stages_[0].update, stream);
  run_all(device_, stages_[0].apply, stream);
}

void DeviceSweep::update(int bucket, StreamHandle stream) {
  Stage& stage = stage_of(bucket);
  if (!std::exchange(stage.updated, true)) run_all(device_, stage.update, stream);
}

void DeviceSweep::apply(int bucket, StreamHandle stream) {
  Stage& stage = stage_of(bucket);
  if (!std::exchange(stage.applied, true)) run_all(device_, stage.apply, stream);
}

}  // namespace regatta
