// Engines before build: groups, parameters, options.

#include <array>
#include <limits>

#include "kernels/kernels.h"
#include "runtime/c/handles.h"
#include "runtime/c/text.h"
#include "sharding/plan.h"

namespace regatta::c_api {
namespace {

regatta_engine& unbuilt(const regatta_engine* handle, const char* function) {
  regatta_engine& engine = engine_of(handle, function);
  if (engine.engine != nullptr)
    refuse(std::string(function) + ": the engine is built already; groups, parameters and options come before build");
  return engine;
}

std::string text_of(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (const std::int64_t extent : shape) text += (text.empty() ? "" : " x ") + std::to_string(extent);
  return text;
}

std::vector<std::int64_t> shape_of(const char* name, const int64_t* shape, int ndim) {
  if (ndim < 1)
    refuse("parameter " + std::string(name) + " has " + std::to_string(ndim) + " dims; expected one or more");
  std::vector<std::int64_t> extents(shape, shape + ndim);
  std::int64_t numel = 1;
  for (const std::int64_t extent : extents) {
    const bool overflows = extent > 0 && __builtin_mul_overflow(numel, extent, &numel);
    if (overflows || numel > kernels::WholeSum::max_count)
      refuse("parameter " + std::string(name) + " of shape " + text_of(extents) + " has more than " +
             std::to_string(kernels::WholeSum::max_count) + " elements");
  }
  sharding::logical_blocks(name, extents, {});  // names an extent below one
  return extents;
}

Param& param_at(regatta_engine& engine, int param, const char* function) {
  if (param < 0 || param >= static_cast<int>(engine.params.size()))
    refuse(std::string(function) + ": param is " + std::to_string(param) + "; the engine has " +
           std::to_string(engine.params.size()) + " parameters");
  return engine.params[param];
}

void set_option(EngineOptions& options, const std::string& name, const std::string& value) {
  constexpr int most = std::numeric_limits<int>::max();
  constexpr double largest = std::numeric_limits<double>::max();
  if (name == "mode") {
    options.mode = choice_of(name, value,
                             std::array{std::pair{"zero1", Mode::zero1}, std::pair{"zero2", Mode::zero2},
                                        std::pair{"sharded", Mode::sharded}});
  } else if (name == "cut") {
    options.cut =
        choice_of(name, value,
                  std::array{std::pair{"element", sharding::Cut::element}, std::pair{"row", sharding::Cut::row},
                             std::pair{"matrix", sharding::Cut::matrix}});
  } else if (name == "bucket_bytes") {
    options.bucket_bytes = number_of<std::int64_t>(name, value, 1, std::numeric_limits<std::int64_t>::max(),
                                                   "a whole number of at least 1");
  } else if (name == "micro_batches") {
    options.micro_batches = number_of(name, value, 1, most, "a whole number of at least 1");
  } else if (name == "accumulation") {
    options.accumulation =
        choice_of(name, value, std::array{std::pair{"sum", Accumulation::sum}, std::pair{"tree", Accumulation::tree}});
  } else if (name == "clip") {
    options.clip = number_of(name, value, 0.0, largest, "0 (off) or a norm above it");
  } else if (name == "non_finite") {
    options.non_finite =
        choice_of(name, value, std::array{std::pair{"skip", NonFinite::skip}, std::pair{"stop", NonFinite::stop}});
  } else if (name == "loss_scale") {
    options.loss_scaling.initial =
        number_of(name, value, std::numeric_limits<double>::min(), largest, "a number above 0");
  } else if (name == "loss_scale_growth_interval") {
    options.loss_scaling.growth_interval = number_of(name, value, 0, most, "a whole number of at least 0");
  } else if (name == "loss_scale_smallest") {
    options.loss_scaling.smallest =
        number_of(name, value, std::numeric_limits<double>::min(), largest, "a number above 0");
  } else if (name == "momentum_dtype") {
    options.momentum_dtype =
        choice_of(name, value, std::array{std::pair{"f32", DType::f32}, std::pair{"bf16", DType::bf16}});
  } else if (name == "threads") {
    options.threads = number_of(name, value, 1, 4096, "a whole number from 1 to 4096");
  } else if (name == "device_graph") {
    options.device_graph = choice_of(name, value, std::array{std::pair{"on", true}, std::pair{"off", false}});
  } else {
    refuse("there is no option '" + name +
           "'; expected one of mode, cut, bucket_bytes, micro_batches, accumulation, clip, non_finite, loss_scale, "
           "loss_scale_growth_interval, loss_scale_smallest, momentum_dtype, threads, device_graph");
  }
}

}  // namespace
}  // namespace regatta::c_api

using namespace regatta;
using namespace regatta::c_api;

int regatta_engine_create(regatta_transport* transport, const char* mesh, regatta_engine** engine) {
  return guarded([&] {
    const regatta_transport& ranks = transport_of(transport, "regatta_engine_create");
    require(mesh, "regatta_engine_create", "mesh", "text such as dp=2,tp=2");
    require(engine, "regatta_engine_create", "engine", "where to write the handle");
    auto made = std::make_unique<regatta_engine>();
    made->transport = ranks.transport;
    made->options.device = ranks.transport->options().device;
    made->mesh = sharding::Mesh::parse(mesh);
    const int world_size = ranks.transport->world_size();
    if (made->mesh.world_size() != world_size)
      refuse("mesh " + made->mesh.text() + " has " + std::to_string(made->mesh.world_size()) +
             " ranks but the transport has " + std::to_string(world_size));
    *engine = Handles<regatta_engine>::add(made.get());
    static_cast<void>(made.release());
  });
}

int regatta_engine_add_group(regatta_engine* engine, const char* name, const char* rule, const char* settings,
                             double lr_scale, int* group) {
  return guarded([&] {
    regatta_engine& handle = unbuilt(engine, "regatta_engine_add_group");
    require(name, "regatta_engine_add_group", "name", "the group's name");
    require(rule, "regatta_engine_add_group", "rule", "the name of a rule, for example reg");
    if (!std::isfinite(lr_scale))
      refuse("group " + std::string(name) + " has lr_scale " + std::to_string(lr_scale) + "; expected a finite number");
    handle.groups.push_back({name, make_rule(rule, settings_of(settings, "regatta_engine_add_group")), lr_scale});
    if (group != nullptr) *group = static_cast<int>(handle.groups.size()) - 1;
  });
}

int regatta_engine_add_param(regatta_engine* engine, const char* name, const int64_t* shape, int ndim, int dtype,
                             const char* placement, int group, int* param) {
  return guarded([&] {
    regatta_engine& handle = unbuilt(engine, "regatta_engine_add_param");
    require(name, "regatta_engine_add_param", "name", "the parameter's name");
    require(shape, "regatta_engine_add_param", "shape", "its global extents");
    if (group < 0 || group >= static_cast<int>(handle.groups.size()))
      refuse("parameter " + std::string(name) + " is in group " + std::to_string(group) + "; there are " +
             std::to_string(handle.groups.size()) + " groups");
    Param made;
    made.name = name;
    made.shape = shape_of(name, shape, ndim);
    made.dtype = dtype_of_number(dtype, "dtype of parameter " + made.name);
    made.placement = sharding::Placement::parse(placement == nullptr ? "" : placement);
    made.group = group;
    handle.params.push_back(std::move(made));
    if (param != nullptr) *param = static_cast<int>(handle.params.size()) - 1;
  });
}

int regatta_engine_set_grad_dtype(regatta_engine* engine, int param, int dtype) {
  return guarded([&] {
    Param& to = param_at(unbuilt(engine, "regatta_engine_set_grad_dtype"), param, "regatta_engine_set_grad_dtype");
    to.grad_dtype = dtype_of_number(dtype, "gradient dtype of parameter " + to.name);
  });
}

int regatta_engine_set_block_rows(regatta_engine* engine, int param, const int64_t* rows, int count) {
  return guarded([&] {
    Param& to = param_at(unbuilt(engine, "regatta_engine_set_block_rows"), param, "regatta_engine_set_block_rows");
    require(rows, "regatta_engine_set_block_rows", "rows", "the rows of each block");
    if (count < 1)
      refuse("parameter " + to.name + " is given " + std::to_string(count) + " blocks; expected one or more");
    std::vector<std::int64_t> given(rows, rows + count);
    for (const std::int64_t each : given)
      if (each > kernels::WholeSum::max_count)
        refuse("parameter " + to.name + " has a block of " + std::to_string(each) + " rows");
    sharding::logical_blocks(to.name, to.shape, given);
    to.block_rows = std::move(given);
  });
}

int regatta_engine_set_option(regatta_engine* engine, const char* name, const char* value) {
  return guarded([&] {
    regatta_engine& handle = unbuilt(engine, "regatta_engine_set_option");
    require(name, "regatta_engine_set_option", "name", "an option's name");
    require(value, "regatta_engine_set_option", "value", "its value as text");
    set_option(handle.options, name, value);
  });
}

int regatta_engine_build(regatta_engine* engine) {
  return guarded([&] {
    regatta_engine& handle = unbuilt(engine, "regatta_engine_build");
    auto built = std::make_unique<Engine>(handle.params, handle.groups, handle.mesh, *handle.transport, handle.options);
    handle.parts = built->state_parts();
    handle.plan_text = built->plan().text();
    for (const Group& group : handle.groups) handle.report.groups.push_back({.name = group.name});
    handle.engine = std::move(built);
  });
}

int regatta_engine_destroy(regatta_engine* engine) {
  return guarded([&] {
    if (engine == nullptr) return;
    regatta_engine& handle = engine_of(engine, "regatta_engine_destroy");
    Handles<regatta_engine>::remove(&handle);
    delete &handle;
  });
}
