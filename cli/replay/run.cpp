#include "cli/replay/run.h"

#include <algorithm>
#include <cstring>

#include "kernels/kernels.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/device/buffer.h"
#include "runtime/device/device.h"
#include "runtime/engine/setup.h"
#include "runtime/error.h"
#include "runtime/transport/transport.h"
#include "sharding/reshard.h"

namespace regatta::cli {
namespace {

using sharding::BlockPart;

// A parameter's blocks stacked by rows are one row-major matrix, so a block begins where the rows before it end.
std::int64_t block_begin(const sharding::ParamSpec& spec, std::size_t block) {
  std::int64_t begin = 0;
  for (std::size_t b = 0; b < block; ++b) begin += spec.blocks[b].numel();
  return begin;
}

// Calls copy(element of the whole tensor, element of the part, count).
template <class F>
void for_each_stretch(const sharding::ParamSpec& spec, std::size_t block, const BlockPart& part, F copy) {
  for (const sharding::Stretch& s : sharding::stretches(part, spec.blocks[block].cols))
    copy(block_begin(spec, block) + s.in_block, s.in_part, s.count);
}

std::vector<Param> params_of(const ReplayCase& recorded, const ReplayOptions& options) {
  std::vector<Param> params;
  for (std::size_t p = 0; p < recorded.names.size(); ++p) {
    const std::string& name = recorded.names[p];
    const WholeTensor& whole = recorded.params.at(name);
    Param param{name, whole.shape, whole.dtype, {}, options.placement_of[p], options.blocks_of[p], options.group_of[p]};
    if (!recorded.gradients.empty()) param.grad_dtype = recorded.gradients[0].at(name).dtype;
    params.push_back(std::move(param));
  }
  return params;
}

class Rank {
 public:
  Rank(const ReplayCase& recorded, const ReplayOptions& options, Transport& transport)
      : recorded_(recorded),
        options_(options),
        transport_(transport),
        engine_(params_of(recorded, options), options.groups, options.mesh, transport, options.engine) {}

  ReplayResult run() {
    fill_params();
    engine_.publish_params();
    fill_state();
    engine_.set_step_count(recorded_.step);
    ReplayResult result;
    for (int k = 0; k < options_.steps; ++k) {
      for (std::size_t p = 0; p < recorded_.names.size(); ++p) add_gradient(k, static_cast<int>(p));
      result.last = engine_.step(options_.lr);
      check_bytes(result);
    }
    result.step = engine_.step_count();
    result.state_bytes = engine_.state_bytes();
    gather_flags(result);
    gather(result);
    return result;
  }

 private:
  const sharding::ParamSpec& spec(int p) const { return engine_.plan().params()[p]; }

  // The parameter with the blocks that a state of it has: stacked by rows, too.
  sharding::ParamSpec spec_of_state(int p, const std::string& name) const {
    sharding::ParamSpec of_state = spec(p);
    for (const StateSpec& state : options_.groups[options_.group_of[p]].rule->state(options_.engine.momentum_dtype))
      if (state.name == name)
        for (MatrixShape& block : of_state.blocks) block = state_shape(state.extent, block);
    return of_state;
  }

  // Copies this rank's local part of a whole tensor, element by element as `take` says.
  template <class F>
  void for_each_local(int p, F copy) const {
    const std::vector<BlockPart> parts = engine_.plan().local_parts(transport_.rank(), p);
    std::int64_t local = 0;
    for (std::size_t b = 0; b < parts.size(); ++b) {
      for_each_stretch(spec(p), b, parts[b], [&](std::int64_t whole, std::int64_t in_part, std::int64_t count) {
        copy(whole, local + in_part, count);
      });
      local += parts[b].run.size();
    }
  }

  void fill_params() {
    for (std::size_t p = 0; p < recorded_.names.size(); ++p) {
      const WholeTensor& whole = recorded_.params.at(recorded_.names[p]);
      const std::int64_t size = size_of(whole.dtype);
      std::vector<std::byte> values(engine_.param(static_cast<int>(p)).numel * size);
      for_each_local(static_cast<int>(p), [&](std::int64_t from, std::int64_t to, std::int64_t count) {
        std::memcpy(values.data() + to * size, whole.values.data() + from * size, count * size);
      });
      engine_.write_param(static_cast<int>(p), values.data());
    }
  }

  void fill_state() {
    for (const auto& [state, tensors] : recorded_.states)
      for (const auto& [name, whole] : tensors) {
        bool known = false;
        for (const StatePart& part : engine_.state_parts()) {
          if (part.state != state || recorded_.names[part.param] != name) continue;
          known = true;
          if (part.dtype != whole.dtype)
            throw Error(Code::invalid_argument, "tensor state." + state + "." + name + " is " +
                                                    std::string(name_of(whole.dtype)) + "; this run keeps it in " +
                                                    std::string(name_of(part.dtype)));
          const std::int64_t size = size_of(whole.dtype);
          std::vector<std::byte> values(part.part.run.size() * size);
          const sharding::ParamSpec of_state = spec_of_state(part.param, state);
          for_each_stretch(of_state, part.block, part.part,
                           [&](std::int64_t from, std::int64_t to, std::int64_t count) {
                             std::memcpy(values.data() + to * size, whole.values.data() + from * size, count * size);
                           });
          engine_.load_state(part, values.data());
        }
        check_known(state, name, known);
      }
  }

  // A rank may hold no part of a parameter, but some rank must.
  void check_known(const std::string& state, const std::string& name, bool known) {
    bool anywhere = false;
    for (const std::string& answer : transport_.gather_strings(known ? "1" : "0", "known state"))
      anywhere |= answer == "1";
    if (!anywhere)
      throw Error(Code::invalid_argument,
                  "tensor state." + state + "." + name + " names a state that the rule of " + name + " does not keep");
  }

  // Element i comes from dp rank i mod dp; the others give -0, which leaves every value as it is, so that the real
  // reduction runs and every mesh sees exactly the recorded gradient.
  void add_gradient(int k, int p) {
    const WholeTensor& whole = recorded_.gradients[k].at(recorded_.names[p]);
    const std::int64_t size = size_of(whole.dtype);
    const bool shared = options_.engine.mode != Mode::sharded;
    const std::int64_t dp = options_.mesh.size("dp"), me = options_.mesh.coordinate(transport_.rank(), "dp");
    gradient_.assign(engine_.param(p).numel * size, std::byte{0});
    for_each_local(p, [&](std::int64_t from, std::int64_t to, std::int64_t count) {
      std::memcpy(gradient_.data() + to * size, whole.values.data() + from * size, count * size);
      if (!shared || dp == 1) return;
      for (std::int64_t i = 0; i < count; ++i)
        if ((from + i) % dp != me) {
          std::memset(gradient_.data() + (to + i) * size, 0, size);
          gradient_[(to + i) * size + size - 1] = std::byte{0x80};
        }
    });
    engine_.add_grad(p, on_device(gradient_), whole.dtype);
  }

  // The same bytes where the engine expects them.
  const void* on_device(const std::vector<std::byte>& values) {
    Device* const device = options_.engine.device.get();
    if (device == nullptr) return values.data();
    const auto bytes = static_cast<std::int64_t>(values.size());
    if (device_gradient_.bytes() < bytes) device_gradient_ = Buffer(bytes, device);
    device->copy(device_gradient_.data(), values.data(), bytes, nullptr);
    device->synchronize(nullptr);
    return device_gradient_.data();
  }

  void check_bytes(ReplayResult& result) const {
    result.planned = engine_.plan().wire_bytes(transport_.rank());
    const StepBytes& bytes = result.last.bytes;
    result.counted = {bytes.reduce_scatter, bytes.all_gather, bytes.exchange, bytes.vote};
    if (!result.last.skipped && result.counted != result.planned) result.bytes_as_planned = false;
  }

  void gather_flags(ReplayResult& result) {
    for (const std::string& answer : transport_.gather_strings(result.bytes_as_planned ? "1" : "0", "byte counts"))
      result.bytes_as_planned &= answer == "1";
  }

  // Everybody sends what it holds, replicas included; rank 0 puts the whole together and refuses replicas that differ.
  void gather(ReplayResult& result) {
    for (std::size_t p = 0; p < recorded_.names.size(); ++p) {
      const ParamView view = engine_.param(static_cast<int>(p));
      std::string mine(view.numel * size_of(view.dtype), '\0');
      engine_.read_param(static_cast<int>(p), mine.data());
      const std::vector<std::string> all = transport_.gather_strings(mine, "result of a parameter");
      if (transport_.rank() != 0) continue;
      Whole whole(spec(static_cast<int>(p)), view.dtype);
      for (int r = 0; r < transport_.world_size(); ++r) {
        std::int64_t local = 0;
        const std::vector<BlockPart> parts = engine_.plan().local_parts(r, static_cast<int>(p));
        for (std::size_t b = 0; b < parts.size(); ++b) {
          whole.put(b, parts[b], all[r].data() + local * size_of(view.dtype), "param." + recorded_.names[p], r);
          local += parts[b].run.size();
        }
      }
      result.tensors["param." + recorded_.names[p]] = whole.finish(recorded_.params.at(recorded_.names[p]).shape);
    }
    gather_states(result);
  }

  // Each rank's parts of a state say themselves what they are parts of.
  void gather_states(ReplayResult& result) {
    struct Header {
      std::int64_t block;
      BlockPart part;
      MatrixShape shape;
    };
    const std::vector<StatePart> mine = engine_.state_parts();
    for (std::size_t p = 0; p < recorded_.names.size(); ++p) {
      std::vector<StateSpec> states = options_.groups[options_.group_of[p]].rule->state(options_.engine.momentum_dtype);
      if (spec(static_cast<int>(p)).dtype != DType::f32) states.push_back({"master", DType::f32});
      for (const StateSpec& state : states) {
        std::string values;
        for (const StatePart& part : mine) {
          if (part.param != static_cast<int>(p) || part.state != state.name) continue;
          const Header header{part.block, part.part, part.shape};
          values.append(reinterpret_cast<const char*>(&header), sizeof header);
          values.append(static_cast<const char*>(part.data), part.part.run.size() * size_of(part.dtype));
        }
        const std::vector<std::string> all = transport_.gather_strings(values, "result of a state");
        if (transport_.rank() != 0) continue;
        const sharding::ParamSpec of_state = spec_of_state(static_cast<int>(p), state.name);
        Whole whole(of_state, state.dtype);
        const std::string name = "state." + state.name + "." + recorded_.names[p];
        for (int r = 0; r < transport_.world_size(); ++r)
          for (std::size_t at = 0; at < all[r].size();) {
            Header header{};
            std::memcpy(&header, all[r].data() + at, sizeof header);
            at += sizeof header;
            whole.put(header.block, header.part, all[r].data() + at, name, r);
            at += header.part.run.size() * size_of(state.dtype);
          }
        std::int64_t rows = 0;
        for (const MatrixShape& block : of_state.blocks) rows += block.rows;
        result.tensors[name] = whole.finish(state.extent == StateExtent::elements
                                                ? recorded_.params.at(recorded_.names[p]).shape
                                                : std::vector<std::int64_t>{rows, of_state.blocks.front().cols});
      }
    }
  }

  // A whole tensor put together from parts.
  class Whole {
   public:
    Whole(const sharding::ParamSpec& spec, DType dtype) : spec_(spec), size_(size_of(dtype)) {
      std::int64_t numel = 0;
      for (const MatrixShape& block : spec.blocks) numel += block.numel();
      tensor_.dtype = dtype;
      tensor_.values.resize(numel * size_);
      filled_.resize(numel);
    }
    void put(std::size_t block, const BlockPart& part, const char* values, const std::string& name, int rank) {
      for_each_stretch(spec_, block, part, [&](std::int64_t to, std::int64_t from, std::int64_t count) {
        // Replicas may be cut at other places, so what is there already is compared element by element.
        for (std::int64_t i = 0; i < count; ++i)
          if (filled_[to + i] &&
              std::memcmp(tensor_.values.data() + (to + i) * size_, values + (from + i) * size_, size_) != 0)
            throw Error(Code::transport, "rank " + std::to_string(rank) + " holds other bits of " + name +
                                             " than a rank before it; replicas must agree");
        std::memcpy(tensor_.values.data() + to * size_, values + from * size_, count * size_);
        std::fill_n(filled_.begin() + to, count, true);
      });
    }
    WholeTensor finish(const std::vector<std::int64_t>& shape) {
      if (std::find(filled_.begin(), filled_.end(), false) != filled_.end())
        throw Error(Code::transport, "no rank holds some elements of parameter " + spec_.name);
      tensor_.shape = shape;
      return std::move(tensor_);
    }

   private:
    const sharding::ParamSpec& spec_;
    std::int64_t size_;
    WholeTensor tensor_;
    std::vector<bool> filled_;
  };

  const ReplayCase& recorded_;
  const ReplayOptions& options_;
  Transport& transport_;
  Engine engine_;
  std::vector<std::byte> gradient_;
  Buffer device_gradient_;
};

}  // namespace

void check_replay(const ReplayCase& recorded, const ReplayOptions& options) {
  make_plan(params_of(recorded, options), options.groups, options.mesh, options.engine);
}

ReplayResult replay(const ReplayCase& recorded, const ReplayOptions& options, Transport& transport) {
  return Rank(recorded, options, transport).run();
}

}  // namespace regatta::cli
