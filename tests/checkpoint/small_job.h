#pragma once
// A small job on any layout, ranks as threads: trains, saves, and goes on from a checkpoint; and what all its ranks
// hold together, gathered whole.

#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/checkpoint_writer.h"
#include "runtime/engine/engine.h"
#include "sharding/reshard.h"
#include "tests/checkpoint/test_folder.h"
#include "tests/support/spmd.h"

namespace regatta::testing {

struct Layout {
  std::string mesh = "dp=4";
  Mode mode = Mode::zero1;
  sharding::Cut cut = sharding::Cut::row;
  std::int64_t bucket_bytes = 25 << 20;
  std::string place;  ///< of matrices
};

class SmallJob {
 public:
  struct Shape {
    std::string name;
    std::vector<std::int64_t> shape;
    DType dtype;
    std::vector<std::int64_t> blocks;
    int group;
  };
  using Bytes = std::vector<std::byte>;
  /// Weights by name, and states by their text, whole.
  using Whole = std::map<std::string, Bytes>;
  static constexpr int global_batch = 8;  // micro-batches; only 1, 2, 4 and 8 ranks share it equally

  explicit SmallJob(DType momentum_dtype = DType::f32) : momentum_dtype_(momentum_dtype) {}

  /// On every rank of `layout`: makes an engine, goes on from `from` when that is given, makes steps up to `until`, and
  /// saves into `to` when that is given. Returns what the job then holds.
  Whole run(const Layout& layout, const std::string& from, int until,
            const std::optional<checkpoint::SaveSettings>& to = {}) {
    Whole whole;
    std::mutex mutex;
    const sharding::Mesh mesh = sharding::Mesh::parse(layout.mesh);
    run_ranks(mesh.world_size(), [&](Transport& transport) {
      EngineOptions options;
      options.mode = layout.mode;
      options.cut = layout.cut;
      options.bucket_bytes = layout.bucket_bytes;
      options.accumulation = Accumulation::tree;
      options.momentum_dtype = momentum_dtype_;
      const bool shares = layout.mode != Mode::sharded && global_batch % mesh.size("dp") == 0;
      options.micro_batches = shares ? global_batch / mesh.size("dp") : 1;
      std::vector<Group> groups{{"reg", make_rule("reg", {}), 1}, {"adamw", make_rule("adamw", {}), 0.5}};
      Engine engine(params(layout), std::move(groups), mesh, transport, options);
      int step = 0;
      if (from.empty()) {
        for (int p = 0; p < count(); ++p) put_weights(engine, transport.rank(), p, initial(p));
        engine.publish_params();
      } else {
        step = static_cast<int>(load(engine, transport.rank(), from));
      }
      for (; step < until; ++step) {
        for (int k = 0; k < options.micro_batches; ++k)
          for (int p = count() - 1; p >= 0; --p)
            add_grad(engine, transport.rank(), p, step, engine.micro_batch_index(k));
        engine.step(0.01);
      }
      if (to) save(engine, transport, *to, until);
      const std::scoped_lock lock(mutex);
      collect(engine, transport.rank(), whole);
    });
    return whole;
  }

  const std::vector<Shape>& shapes() const { return shapes_; }

  static void save(const Engine& engine, Transport& transport, const checkpoint::SaveSettings& settings, int step) {
    checkpoint::CheckpointWriter writer(settings, transport);
    checkpoint::Contents contents;
    contents.step = step;
    for (const StatePart& part : engine.state_parts())
      if (part.primary) {
        const sharding::ParamSpec& param = engine.plan().params()[static_cast<std::size_t>(part.param)];
        checkpoint::GivenPart given;
        given.key = {param.name, part.state, part.block};
        given.block = part.shape;
        given.part = part.part;
        given.dtype = part.dtype;
        given.data = part.data;
        contents.state.push_back(given);
      }
    // Whole in zero1 without tp; ranks take turns.
    Engine& live = const_cast<Engine&>(engine);
    for (int p = 0; p < static_cast<int>(engine.plan().params().size()); ++p) {
      if (p % transport.world_size() != transport.rank()) continue;
      const sharding::ParamSpec& param = engine.plan().params()[static_cast<std::size_t>(p)];
      contents.weights.push_back({param.name, param.dtype, param.shape, live.param(p).data});
    }
    writer.save(contents);
    writer.finish();
  }

 private:
  int count() const { return static_cast<int>(shapes_.size()); }

  std::vector<Param> params(const Layout& layout) const {
    std::vector<Param> params;
    for (const Shape& s : shapes_) {
      Param param{s.name, s.shape, s.dtype, DType::f32, {}, s.blocks, s.group};
      if (s.shape.size() > 1) param.placement = sharding::Placement::parse(layout.place);
      params.push_back(std::move(param));
    }
    return params;
  }

  static std::vector<float> random(std::uint64_t seed, std::int64_t numel) {
    std::mt19937_64 source(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<std::size_t>(numel));
    for (float& value : values) value = normal(source);
    return values;
  }
  static std::int64_t numel(const Shape& s) {
    std::int64_t n = 1;
    for (std::int64_t dim : s.shape) n *= dim;
    return n;
  }

  Bytes initial(int p) const {
    const Shape& s = shapes_[static_cast<std::size_t>(p)];
    const std::vector<float> values = random(100 + static_cast<std::uint64_t>(p), numel(s));
    Bytes bytes(values.size() * static_cast<std::size_t>(size_of(s.dtype)));
    if (s.dtype == DType::f32) {
      std::memcpy(bytes.data(), values.data(), bytes.size());
    } else {  // bf16 by truncation: any values will do
      for (std::size_t i = 0; i < values.size(); ++i)
        std::memcpy(&bytes[2 * i], reinterpret_cast<const char*>(&values[i]) + 2, 2);
    }
    return bytes;
  }

  /// Calls `copy(offset in the whole, offset in the rank's part, elements)` for all that `rank` holds of a parameter.
  template <class Copy>
  static void for_local(const sharding::Plan& plan, int rank, int p, const Copy& copy) {
    std::int64_t whole = 0, local = 0;
    const std::vector<sharding::BlockPart> parts = plan.local_parts(rank, p);
    const std::vector<MatrixShape>& blocks = plan.params()[static_cast<std::size_t>(p)].blocks;
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      for (const sharding::Stretch& s : sharding::stretches(parts[b], blocks[b].cols))
        copy(whole + s.in_block, local + s.in_part, s.count);
      whole += blocks[b].numel();
      local += parts[b].run.size();
    }
  }

  static void put_weights(Engine& engine, int rank, int p, const Bytes& whole) {
    const ParamView view = engine.param(p);
    const auto size = size_of(view.dtype);
    for_local(engine.plan(), rank, p, [&](std::int64_t from, std::int64_t to, std::int64_t n) {
      std::memcpy(static_cast<std::byte*>(view.data) + to * size, whole.data() + from * size,
                  static_cast<std::size_t>(n * size));
    });
  }

  void add_grad(Engine& engine, int rank, int p, int step, std::int64_t micro_batch) const {
    const std::vector<float> whole = random(static_cast<std::uint64_t>(step * 100000 + micro_batch * 100 + p),
                                            numel(shapes_[static_cast<std::size_t>(p)]));
    std::vector<float> local(static_cast<std::size_t>(engine.param(p).numel));
    for_local(engine.plan(), rank, p, [&](std::int64_t from, std::int64_t to, std::int64_t n) {
      std::memcpy(local.data() + to, whole.data() + from, static_cast<std::size_t>(n) * 4);
    });
    engine.add_grad(p, local.data(), DType::f32);
  }

  std::int64_t load(Engine& engine, int rank, const std::string& from) const {
    checkpoint::Checkpoint saved(from);
    const safetensors::Model weights = saved.weights();
    for (int p = 0; p < count(); ++p) {
      const auto entry = weights.find(shapes_[static_cast<std::size_t>(p)].name);
      Bytes whole(static_cast<std::size_t>(entry.value().tensor->bytes()));
      entry->read(whole);
      put_weights(engine, rank, p, whole);
    }
    engine.publish_params();
    for (const StatePart& part : engine.state_parts()) {
      const sharding::ParamSpec& param = engine.plan().params()[static_cast<std::size_t>(part.param)];
      Bytes values(static_cast<std::size_t>(part.part.run.size() * size_of(part.dtype)));
      saved.read({param.name, part.state, part.block}, part.shape, part.part, values.data());
      engine.load_state(part, values.data());
    }
    engine.set_step_count(saved.manifest().step);
    return saved.manifest().step;
  }

  static void place(Bytes& whole, std::int64_t numel, std::int64_t size, std::int64_t to, const void* from,
                    std::int64_t n) {
    whole.resize(static_cast<std::size_t>(numel * size), std::byte{0xA5});
    std::memcpy(whole.data() + to * size, from, static_cast<std::size_t>(n * size));
  }

  void collect(Engine& engine, int rank, Whole& whole) const {
    for (int p = 0; p < count(); ++p) {
      const Shape& s = shapes_[static_cast<std::size_t>(p)];
      const ParamView view = engine.param(p);
      const std::int64_t size = size_of(view.dtype);
      for_local(engine.plan(), rank, p, [&](std::int64_t to, std::int64_t from, std::int64_t n) {
        place(whole[s.name], numel(s), size, to, static_cast<const std::byte*>(view.data) + from * size, n);
      });
    }
    for (const StatePart& part : engine.state_parts()) {
      const sharding::ParamSpec& param = engine.plan().params()[static_cast<std::size_t>(part.param)];
      const MatrixShape block = part.shape;
      const std::int64_t size = size_of(part.dtype);
      const checkpoint::StateKey key{param.name, part.state, part.block};
      for (const sharding::Stretch& s : sharding::stretches(part.part, block.cols))
        place(whole[key.text()], block.numel(), size, s.in_block,
              static_cast<const std::byte*>(part.data) + s.in_part * size, s.count);
    }
  }

  DType momentum_dtype_;
  const std::vector<Shape> shapes_{{"embed", {10, 6}, DType::f32, {}, 1},        {"wide", {5, 12}, DType::f32, {}, 0},
                                   {"fused", {12, 8}, DType::f32, {4, 6, 2}, 0}, {"half", {14, 4}, DType::bf16, {}, 0},
                                   {"column", {13, 1}, DType::f32, {}, 0},       {"gain", {6}, DType::f32, {}, 1}};
};

}  // namespace regatta::testing
