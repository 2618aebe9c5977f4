#include "runtime/engine/setup.h"

#include <bit>
#include <cmath>

#include "kernels/kernels.h"
#include "runtime/device/device.h"
#include "runtime/error.h"

namespace regatta {
namespace {

void check_options(const EngineOptions& options, const sharding::Mesh& mesh) {
  const auto wrong = [](const std::string& sentence) { return Error(Code::invalid_argument, sentence); };
  if (options.micro_batches < 1)
    throw wrong("micro_batches is " + std::to_string(options.micro_batches) + "; expected at least 1");
  if (options.threads < 1) throw wrong("threads is " + std::to_string(options.threads) + "; expected at least 1");
  if (!(options.clip >= 0)) throw wrong("clip is " + std::to_string(options.clip) + "; expected 0 (off) or more");
  if (options.momentum_dtype == DType::f16) throw wrong("momentum dtype is f16; expected f32 or bf16");
  const LossScaling& scaling = options.loss_scaling;
  for (const auto& [name, scale] : {std::pair{"initial", scaling.initial}, std::pair{"smallest", scaling.smallest}})
    if (!(scale > 0) || std::isinf(scale))
      throw wrong(std::string("the ") + name + " loss scale is " + std::to_string(scale) +
                  "; expected a finite number above 0");
  if (scaling.growth_interval < 0)
    throw wrong("the loss scale's growth interval is " + std::to_string(scaling.growth_interval) +
                "; expected 0 (static) or more");
  if (options.device != nullptr && options.proof_every > 0)
    throw wrong("the live proof was asked for every " + std::to_string(options.proof_every) + " steps on " +
                options.device->name() + "; it runs on device cpu only, so expected 0");
  if (options.device_graph && (options.device == nullptr || mesh.world_size() > 1))
    throw wrong("a CUDA graph of the step was asked for on " +
                (options.device ? options.device->name() : std::string("the CPU")) + " with " +
                std::to_string(mesh.world_size()) + " rank(s); expected a device and one rank");
  const int dp = mesh.size("dp");
  if (options.accumulation != Accumulation::tree || options.mode == Mode::sharded || dp == 1) return;
  const bool zero2 = options.mode == Mode::zero2;
  const int inner = zero2 ? dp : options.micro_batches;  // the lower levels of the tree must be whole subtrees
  const int outer = zero2 ? options.micro_batches : dp;
  if (outer > 1 && !std::has_single_bit(static_cast<unsigned>(inner)))
    throw wrong(std::string("accumulation 'tree' gives the same bits on any number of ranks only when ") +
                (zero2 ? "the number of data-parallel ranks (mode zero2)" : "the number of micro-batches per rank") +
                " is a power of two; it is " + std::to_string(inner) + "; use accumulation 'sum' or another split");
}

}  // namespace

std::vector<int> reduction_group(const sharding::Mesh& mesh, int rank, Mode mode) {
  return mode == Mode::sharded ? std::vector<int>{rank} : mesh.group(rank, {"dp"});
}

sharding::Plan make_plan(const std::vector<Param>& params, const std::vector<Group>& groups, const sharding::Mesh& mesh,
                         const EngineOptions& options) {
  check_options(options, mesh);
  if (groups.empty())
    throw Error(Code::invalid_argument, "there are no parameter groups; expected at least one with a rule");
  for (const Group& group : groups) {
    if (group.rule == nullptr)
      throw Error(Code::invalid_argument, "group " + group.name + " has no rule; expected one, as of make_rule");
    if (!std::isfinite(group.lr_scale))
      throw Error(Code::invalid_argument, "group " + group.name + " has lr_scale " + std::to_string(group.lr_scale) +
                                              "; expected a finite number");
    if (options.device != nullptr && group.rule->device_form() == Rule::DeviceForm::none)
      throw Error(Code::invalid_argument, "group " + group.name + " has rule " + std::string(group.rule->name()) +
                                              ", which has no kernels for " + options.device->name() +
                                              "; expected reg or adamw, or device cpu");
  }
  std::vector<sharding::ParamSpec> specs;
  for (const Param& param : params) {
    if (param.group < 0 || param.group >= static_cast<int>(groups.size()))
      throw Error(Code::invalid_argument, "parameter " + param.name + " is in group " + std::to_string(param.group) +
                                              "; there are " + std::to_string(groups.size()) + " groups");
    const Group& group = groups[param.group];
    sharding::ParamSpec spec{param.name,      param.shape, param.dtype, param.grad_dtype.value_or(param.dtype),
                             param.placement, {},          {},          {}};
    try {
      spec.blocks = sharding::logical_blocks(param.name, param.shape, param.block_rows);
    } catch (const std::invalid_argument& error) {
      throw Error(Code::invalid_argument, error.what());
    }
    std::int64_t numel = 0;
    for (const MatrixShape& block : spec.blocks) numel += block.numel();
    if (numel > kernels::WholeSum::max_count)
      throw Error(Code::invalid_argument, "parameter " + param.name + " has " + std::to_string(numel) +
                                              " elements; the exact sum of its gradient's squares holds up to " +
                                              std::to_string(kernels::WholeSum::max_count));
    for (const MatrixShape& block : spec.blocks) {
      if (block.rows > kernels::LineSum::max_count || block.cols > kernels::LineSum::max_count)
        throw Error(Code::invalid_argument, "parameter " + param.name + " has a block of " +
                                                std::to_string(block.rows) + " x " + std::to_string(block.cols) +
                                                "; exact line sums hold up to " +
                                                std::to_string(kernels::LineSum::max_count) + " elements a line");
      spec.views.push_back(group.rule->view(block));
    }
    spec.note =
        "group " + group.name + ", " + group.rule->settings_text() + ", lr scale " + std::to_string(group.lr_scale);
    specs.push_back(std::move(spec));
  }
  sharding::PlanOptions plan_options;
  plan_options.cut = options.cut;
  plan_options.bucket_bytes = options.bucket_bytes;
  plan_options.sharded = options.mode == Mode::sharded;
  plan_options.reductions_per_step = options.mode == Mode::zero2 ? options.micro_batches : 1;
  plan_options.accumulates_in_f32 = options.mode != Mode::zero2 && options.micro_batches > 1;
  plan_options.figure_bytes = static_cast<std::int64_t>(sizeof(kernels::SweepHealth));
  try {
    return sharding::Plan(mesh, std::move(specs), plan_options);
  } catch (const std::invalid_argument& error) {
    throw Error(Code::invalid_argument, error.what());
  }
}

}  // namespace regatta
