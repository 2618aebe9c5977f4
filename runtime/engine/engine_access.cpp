// The engine as the trainer sees it, but for the step.

#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "runtime/engine/agreement.h"
#include "runtime/engine/engine_impl.h"

namespace regatta {
namespace {

void check_index(int index, std::size_t count, const char* call) {
  if (index < 0 || index >= static_cast<int>(count))
    throw Error(Code::invalid_argument,
                std::string(call) + " got parameter " + std::to_string(index) + "; there are " + std::to_string(count));
}

}  // namespace

Engine::Engine(std::vector<Param> params, std::vector<Group> groups, const sharding::Mesh& mesh, Transport& transport,
               EngineOptions options)
    : impl_(std::make_unique<Impl>(std::move(params), std::move(groups), mesh, transport, options)) {
  impl_->counted = impl_->sent_bytes();
}

Engine::~Engine() = default;

ParamView Engine::param(int index) {
  check_index(index, impl_->params.size(), "param");
  const sharding::ParamLocation& at = impl_->plan.layout(impl_->rank).params[index];
  return {impl_->element(at.bucket, at.offset), at.numel, impl_->params[index].dtype};
}

void Engine::read_param(int index, void* to) {
  const ParamView from = param(index);
  const std::int64_t bytes = from.numel * size_of(from.dtype);
  if (impl_->device_side) return impl_->device_side->read(to, from.data, bytes);
  if (bytes > 0) std::memcpy(to, from.data, static_cast<std::size_t>(bytes));
}

void Engine::write_param(int index, const void* from) {
  const ParamView to = param(index);
  const std::int64_t bytes = to.numel * size_of(to.dtype);
  if (impl_->device_side) return impl_->device_side->write(to.data, from, bytes);
  if (bytes > 0) std::memcpy(to.data, from, static_cast<std::size_t>(bytes));
}

void Engine::use_stream(void* stream) {
  if (!impl_->device_side) return;
  impl_->device_side->use_stream(stream);
  for (Transport* transport : {impl_->world.get(), impl_->dp_group.get()}) transport->follow(stream);
}

void Engine::publish_params() {
  std::vector<std::uint64_t> hashes;
  std::vector<std::byte> on_host;
  for (int p = 0; p < static_cast<int>(impl_->params.size()); ++p) {
    const ParamView values = param(p);
    const auto bytes = static_cast<std::size_t>(values.numel * size_of(values.dtype));
    if (impl_->device_side) on_host.resize(std::max(on_host.size(), bytes));
    if (impl_->device_side) read_param(p, on_host.data());
    hashes.push_back(XXH3_64bits(impl_->device_side ? on_host.data() : values.data, bytes));
  }
  check_same_values(impl_->plan, hashes, *impl_->world);
  impl_->fill_master_weights();
}

void Engine::add_grad(int index, const void* grad, DType dtype) {
  check_index(index, impl_->params.size(), "add_grad");
  if (impl_->device_side && impl_->device_side->staged_gradients())
    grad = impl_->device_side->on_host(grad, param(index).numel * size_of(dtype));
  impl_->gradients.add(index, grad, dtype);
}

std::int64_t Engine::micro_batch_index(int k) const {
  if (k < 0 || k >= impl_->options.micro_batches)
    throw Error(Code::invalid_argument, "micro_batch_index got micro-batch " + std::to_string(k) + "; a step has " +
                                            std::to_string(impl_->options.micro_batches));
  const std::int64_t dp = impl_->plan.mesh().size("dp"), me = impl_->plan.mesh().coordinate(impl_->rank, "dp");
  return impl_->options.mode == Mode::zero2 ? k * dp + me : me * impl_->options.micro_batches + k;
}

double Engine::loss_scale() const { return impl_->loss_scale; }
std::span<const ParamReport> Engine::param_reports() const { return impl_->param_reports; }

std::int64_t Engine::step_count() const { return impl_->step_count; }
void Engine::set_step_count(std::int64_t step) {
  if (step < 0)
    throw Error(Code::invalid_argument, "set_step_count: step is " + std::to_string(step) + "; expected 0 or more");
  impl_->step_count = step;
}
const sharding::Plan& Engine::plan() const { return impl_->plan; }
const EngineOptions& Engine::options() const { return impl_->options; }
std::int64_t Engine::state_bytes() const { return impl_->state.bytes(); }

std::vector<StatePart> Engine::state_parts() const {
  std::vector<StatePart> parts;
  const std::vector<sharding::Piece>& pieces = impl_->plan.layout(impl_->rank).pieces;
  impl_->mirror_state();
  const auto host = [&](const void* at) -> const void* {
    if (!impl_->device_side) return at;
    return impl_->state_mirror.data() + (static_cast<const std::byte*>(at) - impl_->state.memory().data());
  };
  for (std::size_t p = 0; p < pieces.size(); ++p) {
    const bool primary = impl_->plan.primary(impl_->rank, pieces[p].param);
    const MatrixShape shape = impl_->plan.params()[pieces[p].param].blocks[pieces[p].block];
    for (const OptimizerState::Tensor& tensor : impl_->state.tensors(static_cast<int>(p)))
      parts.push_back({tensor.name, pieces[p].param, pieces[p].block, pieces[p].part, host(tensor.data), tensor.dtype,
                       primary, shape});
    if (float* master = impl_->state.master(static_cast<int>(p)))
      parts.push_back(
          {"master", pieces[p].param, pieces[p].block, pieces[p].part, host(master), DType::f32, primary, shape});
  }
  const std::vector<sharding::MatrixShare>& matrices = impl_->plan.matrices();
  for (std::size_t k = 0; k < matrices.size(); ++k) {
    const sharding::MatrixShare& share = matrices[k];
    if (share.owner != impl_->rank) continue;
    const std::vector<StateSpec> states = matrix_states(*impl_->rules[share.param], impl_->options.momentum_dtype);
    for (std::size_t s = 0; s < states.size(); ++s) {
      const MatrixShape shape = state_shape(states[s].extent, impl_->plan.params()[share.param].blocks[share.block]);
      parts.push_back({states[s].name,
                       share.param,
                       share.block,
                       {{0, shape.rows}, {0, shape.cols}, {0, shape.numel()}},
                       impl_->state.of_matrix(static_cast<int>(k))[s],
                       states[s].dtype,
                       impl_->plan.primary(impl_->rank, share.param),
                       shape});
    }
  }
  return parts;
}

EngineProgress Engine::progress() const {
  EngineProgress progress{impl_->step_count,
                          impl_->skipped_steps,
                          impl_->loss_scale,
                          impl_->finite_steps,
                          impl_->commanded_lr,
                          impl_->options.clip,
                          {}};
  for (std::size_t g = 0; g < impl_->groups.size(); ++g)
    progress.groups.push_back({impl_->groups[g].name, settings_of(*impl_->groups[g].rule), impl_->own_lr[g]});
  return progress;
}

void Engine::restore(const EngineProgress& progress) {
  std::vector<Group> changed = impl_->groups;
  if (progress.groups.size() != changed.size())
    throw Error(Code::invalid_argument, "progress of " + std::to_string(progress.groups.size()) +
                                            " groups was given to an engine of " + std::to_string(changed.size()));
  for (std::size_t g = 0; g < changed.size(); ++g) {
    if (progress.groups[g].name != changed[g].name)
      throw Error(Code::invalid_argument,
                  "progress of the group \"" + progress.groups[g].name + "\" was given to \"" + changed[g].name + "\"");
    if (progress.groups[g].rule != settings_of(*changed[g].rule))
      changed[g].rule = changed_rule(*changed[g].rule, progress.groups[g].rule);
  }
  // All fits: from here on the engine changes.
  for (std::size_t g = 0; g < changed.size(); ++g) impl_->own_lr[g] = progress.groups[g].own_lr;
  impl_->groups.swap(changed);
  impl_->refresh_rules();
  impl_->step_count = progress.steps;
  impl_->skipped_steps = progress.skipped_steps;
  impl_->loss_scale = progress.loss_scale;
  impl_->finite_steps = progress.finite_steps;
  impl_->commanded_lr = progress.commanded_lr;
  impl_->options.clip = progress.clip;
}

void Engine::load_state(const StatePart& part, const void* data) {
  const std::int64_t bytes = part.part.run.size() * size_of(part.dtype);
  if (impl_->device_side) return impl_->device_side->write(impl_->device_state(part), data, bytes);
  std::memcpy(const_cast<void*>(part.data), data, static_cast<std::size_t>(bytes));
}

}  // namespace regatta
