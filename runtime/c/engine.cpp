// Engines after build: parameters, steps, state, plan.

#include "runtime/engine/engine.h"

#include "runtime/c/handles.h"
#include "runtime/c/structs.h"
#include "runtime/c/text.h"

namespace regatta::c_api {
namespace {

regatta_engine& built(const regatta_engine* handle, const char* function) {
  regatta_engine& engine = engine_of(handle, function);
  if (engine.engine == nullptr) refuse(std::string(function) + ": the engine is not built yet; call build first");
  return engine;
}

int index_in(int index, std::size_t count, const char* function, const char* name, const char* things) {
  if (index < 0 || index >= static_cast<int>(count))
    refuse(std::string(function) + ": " + name + " is " + std::to_string(index) + "; the engine has " +
           std::to_string(count) + " " + things);
  return index;
}

template <class Struct>
void check_room(const Struct* to, std::size_t room, const char* function) {
  require(to, function, "the struct", "where to write it");
  if (room < sizeof(Struct))
    refuse(std::string(function) + ": the struct has room for " + std::to_string(room) + " bytes; expected sizeof, " +
           std::to_string(sizeof(Struct)));
}

template <class Struct>
void hand_over(const Struct& from, Struct* to, std::size_t room, const char* function) {
  check_room(to, room, function);
  *to = from;
}

void check_values(const std::string& what, std::int64_t numel, std::int64_t expected, const void* data) {
  if (numel != expected)
    refuse(what + " has " + std::to_string(numel) + " elements; expected " + std::to_string(expected));
  if (data == nullptr && expected > 0) refuse(what + " is NULL; expected " + std::to_string(expected) + " elements");
}

}  // namespace
}  // namespace regatta::c_api

using namespace regatta;
using namespace regatta::c_api;

int regatta_engine_param(regatta_engine* engine, int param, void** data, int64_t* numel, int* dtype) {
  return guarded([&] {
    const char* me = "regatta_engine_param";
    regatta_engine& handle = built(engine, me);
    require(data, me, "data", "where to write the pointer");
    const ParamView view = handle.engine->param(index_in(param, handle.params.size(), me, "param", "parameters"));
    *data = view.data;
    if (numel != nullptr) *numel = view.numel;
    if (dtype != nullptr) *dtype = number_of_dtype(view.dtype);
  });
}

int regatta_engine_param_block_count(regatta_engine* engine, int param, int* count) {
  return guarded([&] {
    const char* me = "regatta_engine_param_block_count";
    regatta_engine& handle = built(engine, me);
    require(count, me, "count", "where to write it");
    index_in(param, handle.params.size(), me, "param", "parameters");
    *count = static_cast<int>(handle.engine->plan().params()[param].blocks.size());
  });
}

int regatta_engine_param_block(regatta_engine* engine, int param, int block, regatta_part* part) {
  return guarded([&] {
    const char* me = "regatta_engine_param_block";
    regatta_engine& handle = built(engine, me);
    require(part, me, "part", "where to write it");
    index_in(param, handle.params.size(), me, "param", "parameters");
    const std::vector<sharding::BlockPart> parts = handle.engine->plan().local_parts(handle.transport->rank(), param);
    if (block < 0 || block >= static_cast<int>(parts.size()))
      refuse(std::string(me) + ": block is " + std::to_string(block) + "; parameter " + handle.params[param].name +
             " has " + std::to_string(parts.size()));
    *part = part_of(parts[block]);
  });
}

int regatta_engine_use_stream(regatta_engine* engine, void* stream) {
  return guarded([&] { built(engine, "regatta_engine_use_stream").engine->use_stream(stream); });
}

int regatta_engine_publish_params(regatta_engine* engine) {
  return guarded([&] {
    regatta_engine& handle = built(engine, "regatta_engine_publish_params");
    handle.engine->publish_params();
    handle.published = true;
  });
}

int regatta_engine_add_grad(regatta_engine* engine, int param, const void* grad, int64_t numel, int dtype) {
  return guarded([&] {
    const char* me = "regatta_engine_add_grad";
    regatta_engine& handle = built(engine, me);
    index_in(param, handle.params.size(), me, "param", "parameters");
    const std::string what = "the gradient of parameter " + handle.params[param].name;
    check_values(what, numel, handle.engine->param(param).numel, grad);
    handle.engine->add_grad(param, grad, dtype_of_number(dtype, "dtype of " + what));
  });
}

int regatta_engine_micro_batch_index(regatta_engine* engine, int k, int64_t* index) {
  return guarded([&] {
    const char* me = "regatta_engine_micro_batch_index";
    regatta_engine& handle = built(engine, me);
    require(index, me, "index", "where to write it");
    if (k < 0 || k >= handle.options.micro_batches)
      refuse(std::string(me) + ": k is " + std::to_string(k) + "; a step has " +
             std::to_string(handle.options.micro_batches) + " micro-batches");
    *index = handle.engine->micro_batch_index(k);
  });
}

int regatta_engine_loss_scale(regatta_engine* engine, double* scale) {
  return guarded([&] {
    regatta_engine& handle = built(engine, "regatta_engine_loss_scale");
    require(scale, "regatta_engine_loss_scale", "scale", "where to write it");
    *scale = handle.engine->loss_scale();
  });
}

int regatta_engine_step(regatta_engine* engine, double lr, regatta_step_report* report, size_t report_bytes) {
  return guarded([&] {
    const char* me = "regatta_engine_step";
    regatta_engine& handle = built(engine, me);
    if (!handle.published)
      refuse(std::string(me) + ": the parameters have no values yet; write them and call publish_params first");
    if (report != nullptr) check_room(report, report_bytes, me);
    handle.report = handle.engine->step(lr);
    if (report != nullptr) *report = report_of(handle.report);
  });
}

int regatta_engine_group_figures(regatta_engine* engine, int group, regatta_figures* figures, size_t figures_bytes) {
  return guarded([&] {
    const char* me = "regatta_engine_group_figures";
    regatta_engine& handle = built(engine, me);
    const GroupReport& from = handle.report.groups[index_in(group, handle.groups.size(), me, "group", "groups")];
    hand_over(figures_of(from, handle.groups[group].name), figures, figures_bytes, me);
  });
}

int regatta_engine_param_figures(regatta_engine* engine, int param, regatta_figures* figures, size_t figures_bytes) {
  return guarded([&] {
    const char* me = "regatta_engine_param_figures";
    regatta_engine& handle = built(engine, me);
    index_in(param, handle.params.size(), me, "param", "parameters");
    const ParamReport& from = handle.engine->param_reports()[param];
    hand_over(figures_of(from, handle.params[param].name), figures, figures_bytes, me);
  });
}

int regatta_engine_state_count(regatta_engine* engine, int* count) {
  return guarded([&] {
    regatta_engine& handle = built(engine, "regatta_engine_state_count");
    require(count, "regatta_engine_state_count", "count", "where to write it");
    if (handle.options.device) handle.parts = handle.engine->state_parts();
    *count = static_cast<int>(handle.parts.size());
  });
}

int regatta_engine_state_part(regatta_engine* engine, int index, regatta_state_part* part, size_t part_bytes) {
  return guarded([&] {
    const char* me = "regatta_engine_state_part";
    const regatta_engine& handle = built(engine, me);
    const StatePart& from = handle.parts[index_in(index, handle.parts.size(), me, "index", "parts of state")];
    hand_over(state_part_of(from), part, part_bytes, me);
  });
}

int regatta_engine_load_state(regatta_engine* engine, int index, const void* data, int64_t numel, int dtype) {
  return guarded([&] {
    const char* me = "regatta_engine_load_state";
    regatta_engine& handle = built(engine, me);
    const StatePart& to = handle.parts[index_in(index, handle.parts.size(), me, "index", "parts of state")];
    const std::string what = "state " + to.state + " of parameter " + handle.params[to.param].name;
    check_values(what, numel, to.part.run.size(), data);
    const DType given = dtype_of_number(dtype, "dtype of " + what);
    if (given != to.dtype)
      refuse(what + " is given as " + std::string(name_of(given)) + "; expected " + std::string(name_of(to.dtype)));
    handle.engine->load_state(to, data);
  });
}

int regatta_engine_state_bytes(regatta_engine* engine, int64_t* bytes) {
  return guarded([&] {
    regatta_engine& handle = built(engine, "regatta_engine_state_bytes");
    require(bytes, "regatta_engine_state_bytes", "bytes", "where to write it");
    *bytes = handle.engine->state_bytes();
  });
}

int regatta_engine_step_count(regatta_engine* engine, int64_t* step) {
  return guarded([&] {
    regatta_engine& handle = built(engine, "regatta_engine_step_count");
    require(step, "regatta_engine_step_count", "step", "where to write it");
    *step = handle.engine->step_count();
  });
}

int regatta_engine_set_step_count(regatta_engine* engine, int64_t step) {
  return guarded([&] {
    regatta_engine& handle = built(engine, "regatta_engine_set_step_count");
    if (step < 0) refuse("regatta_engine_set_step_count: step is " + std::to_string(step) + "; expected 0 or more");
    handle.engine->set_step_count(step);
  });
}

int regatta_engine_planned_bytes(regatta_engine* engine, regatta_wire_bytes* bytes, size_t bytes_bytes) {
  return guarded([&] {
    const char* me = "regatta_engine_planned_bytes";
    regatta_engine& handle = built(engine, me);
    hand_over(wire_bytes_of(handle.engine->plan().wire_bytes(handle.transport->rank())), bytes, bytes_bytes, me);
  });
}

int regatta_engine_plan_text(regatta_engine* engine, const char** text) {
  return guarded([&] {
    regatta_engine& handle = built(engine, "regatta_engine_plan_text");
    require(text, "regatta_engine_plan_text", "text", "where to write the pointer");
    *text = handle.plan_text.c_str();
  });
}

int regatta_engine_plan_fingerprint(regatta_engine* engine, uint64_t* fingerprint) {
  return guarded([&] {
    regatta_engine& handle = built(engine, "regatta_engine_plan_fingerprint");
    require(fingerprint, "regatta_engine_plan_fingerprint", "fingerprint", "where to write it");
    *fingerprint = handle.engine->plan().fingerprint();
  });
}
