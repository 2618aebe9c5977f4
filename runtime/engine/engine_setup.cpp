// Making an engine: plan, transports, memory, and what each sweep works on.

#include <algorithm>
#include <numeric>

#include "kernels/matmul.h"
#include "runtime/engine/agreement.h"
#include "runtime/engine/engine_impl.h"
#include "runtime/engine/setup.h"

namespace regatta {
namespace {

std::vector<const Rule*> rules_of(const std::vector<Param>& params, const std::vector<Group>& groups) {
  std::vector<const Rule*> rules;
  for (const Param& param : params) rules.push_back(groups[param.group].rule.get());
  return rules;
}

std::vector<int> groups_of(const std::vector<Param>& params) {
  std::vector<int> groups;
  for (const Param& param : params) groups.push_back(param.group);
  return groups;
}

}  // namespace

// Both are collective, so every rank checks its plan before any of them goes on.
std::unique_ptr<Transport> Engine::Impl::own_world(Transport& transport, const sharding::Mesh& mesh) const {
  if (mesh.world_size() != transport.world_size())
    throw Error(Code::invalid_argument, "mesh " + mesh.text() + " has " + std::to_string(mesh.world_size()) +
                                            " ranks but the transport has " + std::to_string(transport.world_size()));
  check_same_plan(plan, transport);
  std::vector<int> all(static_cast<std::size_t>(transport.world_size()));
  std::iota(all.begin(), all.end(), 0);
  return transport.split(all);
}

Engine::Impl::Impl(std::vector<Param> params_in, std::vector<Group> groups_in, const sharding::Mesh& mesh,
                   Transport& transport, EngineOptions options_in)
    : params(std::move(params_in)),
      groups(std::move(groups_in)),
      options(options_in),
      rank(transport.rank()),
      plan(make_plan(params, groups, mesh, options)),
      rules(rules_of(params, groups)),
      world(own_world(transport, mesh)),
      dp_group(world->split(reduction_group(mesh, rank, options.mode))),
      kernels(kernels::cpu_kernels()),
      pool(options.threads),
      host_arrays(kernels),
      device_side(make_device_side()),
      gradients(plan, rank, *dp_group,
                {options.micro_batches, options.accumulation == Accumulation::tree, options.mode == Mode::zero2},
                device_side ? device_side->gradient_arrays() : host_arrays),
      state(plan, rank, rules, options.momentum_dtype, options.device.get()),
      vote(plan, rank),
      works(make_works(plan, rank, rules, groups_of(params))),
      loss_scale(options.loss_scaling.initial) {
  allocate_buckets();
  bind_works();
  for (std::size_t k = 0; k < plan.rounds().size(); ++k)
    if (!device_side)
      exchanges.push_back(std::make_unique<LineExchange>(plan, static_cast<int>(k), rank, works, rules));
  make_matrix_exchanges();
  for (const Work& work : works) rounds = std::max(rounds, work.rounds());
  rounds = std::max(rounds, static_cast<int>(plan.rounds().size()));
  infos.resize(groups.size());
  own_lr.resize(groups.size());
  if (options.proof_every > 0)
    proof = std::make_unique<Proof>(plan, rank, rules, groups_of(params), options.momentum_dtype, options.proof_every,
                                    state, *world, pool);
  for (int r = 0; r < transport.world_size(); ++r) {
    const std::vector<int> voted = plan.voted_params(r);
    health_params.insert(health_params.end(), voted.begin(), voted.end());
    health_bytes.push_back(plan.figure_bytes(r));
    if (r == rank) own_health.resize(voted.size());
  }
  all_health.resize(health_params.size());
  param_health.resize(params.size());
  for (std::size_t p = 0; p < params.size(); ++p) {
    ParamReport& entry = param_reports.emplace_back();
    entry.name = params[p].name;
    entry.group = params[p].group;
    for (const MatrixShape& block : plan.params()[p].blocks) entry.numel += block.numel();
  }
}

void Engine::Impl::allocate_buckets() {
  const sharding::RankLayout& layout = plan.layout(rank);
  for (std::size_t b = 0; b < layout.buckets.size(); ++b) {
    Bucket bucket;
    const sharding::BucketLayout& from = layout.buckets[b];
    bucket.dtype = params[from.entries.front().param].dtype;
    const std::int64_t bytes = from.numel * size_of(bucket.dtype);
    if (device_side && !device_side->staged_gradients()) {
      bucket.params = device_side->arrays().allocate_shared(*dp_group, bytes);
    } else {
      bucket.params = dp_group->allocate(bytes);
      if (device_side) {
        bucket.pin = HostPin(device_side->device(), bucket.params.data(), bucket.params.bytes());
        bucket.on_device = Buffer(bytes, &device_side->device());
      }
    }
    bucket.home = bucket.on_device.data() != nullptr ? bucket.on_device.data() : bucket.params.data();
    for (std::int64_t bound : from.bounds) bucket.bounds_bytes.push_back(bound * size_of(bucket.dtype));
    bucket.label = "parameters of bucket " + std::to_string(b);
    for (const sharding::BucketEntry& entry : from.entries) {
      const sharding::ParamSpec& spec = plan.params()[entry.param];
      for (const sharding::View& view : spec.views)
        bucket.has_open_lines |= !view.passes.empty() && !view.one_sweep_rows();
      for (const std::vector<sharding::Share>& round : plan.rounds())
        for (const sharding::Share& share : round) bucket.has_open_lines |= share.param == entry.param;
      for (const sharding::MatrixShare& share : plan.matrices())
        if (share.param == entry.param) bucket.last_wave = std::max(bucket.last_wave, share.wave);
    }
    buckets.push_back(std::move(bucket));
  }
}

void Engine::Impl::bind_works() {
  const std::vector<sharding::Piece>& pieces = plan.layout(rank).pieces;
  for (std::size_t w = 0; w < works.size(); ++w) {
    Work& work = works[w];
    buckets[work.bucket].works.push_back(static_cast<int>(w));
    const std::int64_t inside = work.bucket_offset - pieces[work.piece].bucket_offset;
    for (const OptimizerState::Tensor& tensor : state.tensors(work.piece))
      work.state.push_back(tensor.data + inside * size_of(tensor.dtype));
    work.tensors.state = work.state;
    std::byte* param = element(work.bucket, work.bucket_offset);
    work.tensors.param_dtype = buckets[work.bucket].dtype;
    if (work.tensors.param_dtype == DType::f32) {
      work.tensors.weight = reinterpret_cast<float*>(param);
    } else {
      work.tensors.weight = state.master(work.piece) + inside;
      work.tensors.param = param;
    }
  }
}

void Engine::Impl::make_matrix_exchanges() {
  if (plan.wave_count() == 0) return;
  if (!kernels::has_matmul())
    throw Error(Code::invalid_argument,
                "parameter " + params[plan.matrices().front().param].name + " has rule " +
                    std::string(rules[plan.matrices().front().param]->name()) +
                    ", which multiplies matrices, but this build has no BLAS: " + kernels::matmul_name());
  std::vector<std::span<float* const>> states;
  for (std::size_t k = 0; k < plan.matrices().size(); ++k) states.push_back(state.of_matrix(static_cast<int>(k)));
  staging.resize(std::min(matrix_waves_under_way, plan.wave_count()));
  for (int wave = 0; wave < plan.wave_count(); ++wave)
    waves.push_back(std::make_unique<MatrixExchange>(plan, wave, rank, works, rules, states,
                                                     staging[wave % staging.size()], matrix_scratch));
}

void Engine::Impl::fill_master_weights() {
  if (device_side) return fill_device_master_weights();
  const std::vector<sharding::Piece>& pieces = plan.layout(rank).pieces;
  for (std::size_t p = 0; p < pieces.size(); ++p)
    if (float* master = state.master(static_cast<int>(p)))
      kernels.to_f32(element(pieces[p].bucket, pieces[p].bucket_offset), buckets[pieces[p].bucket].dtype, master,
                     pieces[p].part.run.size());
}

}  // namespace regatta
