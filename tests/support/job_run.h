#pragma once
// Runs a WholeJob on an engine in some layout, on the CPU or a device, and holds every step of every rank against what
// it must tell and leave behind.

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/kernels.h"
#include "runtime/device/buffer.h"
#include "runtime/transport/transport.h"
#include "sharding/reshard.h"
#include "tests/support/spmd.h"
#include "tests/support/whole_job.h"

namespace regatta::testing {

struct JobLayout {
  std::string mesh = "dp=1";
  Mode mode = Mode::zero1;
  sharding::Cut cut = sharding::Cut::row;
  std::int64_t bucket_bytes = 25 << 20;
  Accumulation accumulation = Accumulation::sum;
  std::string place;  ///< of matrices
  int threads = 1;
  int move_before = -1;  ///< a step before which everything moves to a new engine

  std::string text() const {
    static constexpr const char* modes[] = {"zero1", "zero2", "sharded"};
    return mesh + " " + modes[static_cast<int>(mode)] + " cut " + std::to_string(static_cast<int>(cut)) + " bucket " +
           std::to_string(bucket_bytes) + (accumulation == Accumulation::tree ? " tree" : " sum") + " place '" + place +
           "' threads " + std::to_string(threads) + " moved before " + std::to_string(move_before);
  }
};

/// The bits of a job's end: parameters and states, whole, by name.
using JobBits = std::map<std::string, std::vector<std::byte>>;

class JobRun {
 public:
  JobRun(const WholeJob& job, JobLayout layout, std::function<std::shared_ptr<Device>()> device = nullptr,
         bool graph = false)
      : job_(job),
        layout_(std::move(layout)),
        device_(std::move(device)),
        graph_(graph),
        expected_(WholeJobModel(job).run()) {}

  /// Checks on the way; at the end all bits against `same`, when that is given.
  JobBits run(const JobBits* same = nullptr) {
    const sharding::Mesh mesh = sharding::Mesh::parse(layout_.mesh);
    run_ranks(mesh.world_size(), [&](Transport& transport) { rank(transport, same); });
    return bits_;
  }

  /// One rank of it, over any transport.
  void rank(Transport& transport, const JobBits* same) {
    one_rank(sharding::Mesh::parse(layout_.mesh), transport, same);
  }

 private:
  std::unique_ptr<Engine> make(const sharding::Mesh& mesh, Transport& transport,
                               const std::shared_ptr<Device>& device) {
    std::vector<Param> params = job_.params;
    for (Param& param : params)
      if (param.shape.size() > 1) param.placement = sharding::Placement::parse(layout_.place);
    EngineOptions options = job_.options;
    options.mode = layout_.mode;
    options.cut = layout_.cut;
    options.bucket_bytes = layout_.bucket_bytes;
    options.accumulation = layout_.accumulation;
    options.threads = layout_.threads;
    options.micro_batches = layout_.mode == Mode::sharded ? job_.global_batch : job_.global_batch / mesh.size("dp");
    options.device = device;
    options.device_graph = graph_;
    return std::make_unique<Engine>(std::move(params), job_.groups, mesh, transport, options);
  }

  /// Calls body(element of the whole parameter, element of this rank's, count).
  template <class Body>
  static void for_each_local(const Engine& engine, int rank, int p, const Body& body) {
    std::int64_t whole = 0, local = 0;
    const std::vector<sharding::BlockPart> parts = engine.plan().local_parts(rank, p);
    for (std::size_t b = 0; b < parts.size(); ++b) {
      const MatrixShape block = engine.plan().params()[p].blocks[b];
      for (const sharding::Stretch& s : sharding::stretches(parts[b], block.cols))
        body(whole + s.in_block, local + s.in_part, s.count);
      whole += block.numel();
      local += parts[b].run.size();
    }
  }

  std::vector<std::byte> local_of(const Engine& engine, int rank, int p, const std::vector<float>& whole, DType dtype,
                                  std::int64_t numel) const {
    std::vector<float> local(static_cast<std::size_t>(numel));
    for_each_local(engine, rank, p, [&](std::int64_t from, std::int64_t to, std::int64_t count) {
      std::copy_n(whole.begin() + from, count, local.begin() + to);
    });
    std::vector<std::byte> bytes(static_cast<std::size_t>(numel * size_of(dtype)));
    kernels::cpu_kernels().from_f32(local.data(), bytes.data(), dtype, numel);
    return bytes;
  }

  void one_rank(const sharding::Mesh& mesh, Transport& transport, const JobBits* same) {
    SCOPED_TRACE("rank " + std::to_string(transport.rank()) + " of " + layout_.text());
    const std::shared_ptr<Device> device = device_ ? device_() : transport.options().device;
    std::unique_ptr<Engine> engine = make(mesh, transport, device);
    const int rank = transport.rank(), count = static_cast<int>(job_.params.size());
    for (int p = 0; p < count; ++p) {
      std::vector<float> whole(static_cast<std::size_t>(job_.numel(p)));
      for (std::int64_t i = 0; i < std::ssize(whole); ++i) whole[i] = job_.initial(p, i);
      const ParamView view = engine->param(p);
      engine->write_param(p, local_of(*engine, rank, p, whole, view.dtype, view.numel).data());
    }
    engine->publish_params();
    engine->publish_params();   // twice is once
    bool tells_params = false;  // this engine has made a step
    std::vector<Buffer> on_device(static_cast<std::size_t>(count));
    for (int step = 0; step < job_.steps; ++step) {
      if (step == layout_.move_before) {
        engine = moved(*engine, mesh, transport, device);
        tells_params = false;
      }
      EXPECT_EQ(engine->loss_scale(), expected_[step].loss_scale);
      for (int k = 0; k < engine->options().micro_batches; ++k) {
        const int global = layout_.mode == Mode::sharded ? k : static_cast<int>(engine->micro_batch_index(k));
        // In another order each time, as a trainer's parameters may come.
        for (int turn = 0; turn < count; ++turn) {
          const int p = static_cast<int>((job_.random(step, 333, global) + count - turn) % count);
          std::vector<float> grad = job_.gradient(step, global, p);
          if (grad.empty()) continue;
          for (float& x : grad) x *= static_cast<float>(engine->loss_scale());
          const DType dtype = job_.params[p].grad_dtype.value_or(job_.params[p].dtype);
          const std::vector<std::byte> bytes = local_of(*engine, rank, p, grad, dtype, engine->param(p).numel);
          const void* at = bytes.data();
          if (device && !bytes.empty()) {
            if (on_device[p].data() == nullptr) on_device[p] = Buffer(std::ssize(bytes), device.get());
            device->copy(on_device[p].data(), bytes.data(), std::ssize(bytes), nullptr);
            at = on_device[p].data();
          }
          engine->add_grad(p, at, dtype);
        }
      }
      const auto command = job_.commands.find(step);
      if (command != job_.commands.end() && rank == 0) engine->post(command->second);
      const StepReport report = engine->step(job_.lr(step));
      SCOPED_TRACE("step " + std::to_string(step));
      tells_params |= !report.skipped;
      check(*engine, transport, report, expected_[step], tells_params);
      EXPECT_EQ(std::memcmp(&report.command, command == job_.commands.end() ? &no_command_ : &command->second,
                            sizeof(Command)),
                0);
      EXPECT_EQ(engine->loss_scale(), expected_[step].loss_scale_after);
    }
    finish(*engine, rank, same);
  }

  std::unique_ptr<Engine> moved(Engine& from, const sharding::Mesh& mesh, Transport& transport,
                                const std::shared_ptr<Device>& device) {
    std::unique_ptr<Engine> to = make(mesh, transport, device);
    for (int p = 0; p < std::ssize(job_.params); ++p) {
      const ParamView view = from.param(p);
      std::vector<std::byte> values(static_cast<std::size_t>(view.numel * size_of(view.dtype)));
      from.read_param(p, values.data());
      to->write_param(p, values.data());
    }
    to->publish_params();
    const std::vector<StatePart> parts = from.state_parts(), places = to->state_parts();
    EXPECT_EQ(parts.size(), places.size());
    for (std::size_t i = 0; i < parts.size(); ++i) to->load_state(places[i], parts[i].data);
    to->restore(from.progress());
    return to;
  }

  static void near(double got, double expected, double tolerance, const char* what) {
    EXPECT_NEAR(got, expected, tolerance + 1e-12) << what;
  }

  template <class Report>
  static void check_figures(const Report& got, const WholeFigures& expected, const std::string& name) {
    SCOPED_TRACE(name);
    EXPECT_EQ(got.name, name);
    EXPECT_EQ(got.numel, expected.numel);
    EXPECT_EQ(got.grad_norm, expected.grad_norm);
    // A weight that hardly changes is rounded more than it changes.
    const double rounding = 2e-5 * expected.update_rms + 1.3e-7 * expected.weight_rms;
    const double ratio = expected.weight_rms > 0 ? expected.update_rms / expected.weight_rms : 0;
    near(got.update_rms, expected.update_rms, rounding, "update_rms");
    near(got.weight_rms, expected.weight_rms, 1e-5 * expected.weight_rms, "weight_rms");
    near(got.update_to_weight, ratio, 4e-5 * ratio + 1.3e-7, "update_to_weight");
    near(got.smallest_line_norm, expected.smallest, 1e-5 * expected.smallest, "smallest_line_norm");
    near(got.largest_line_norm, expected.largest, 1e-5 * expected.largest, "largest_line_norm");
    EXPECT_EQ(got.zero_lines, expected.zero_lines);
    EXPECT_EQ(got.clamped_lines, expected.clamped_lines);
    EXPECT_EQ(got.non_finite_lines, 0);
  }

  void check(Engine& engine, const Transport& transport, const StepReport& got, const WholeStep& expected,
             bool tells_params) const {
    EXPECT_EQ(got.skipped, expected.skipped);
    EXPECT_EQ(got.culprit, expected.culprit);
    EXPECT_EQ(got.step, expected.step);
    EXPECT_EQ(engine.step_count(), expected.step);
    EXPECT_EQ(got.skipped_steps, expected.skipped_steps);
    EXPECT_EQ(got.lr, expected.lr);
    EXPECT_EQ(got.grad_norm, expected.grad_norm);
    EXPECT_EQ(got.clip_factor, expected.clip_factor);
    EXPECT_EQ(got.loss_scale, expected.loss_scale);
    ASSERT_EQ(got.groups.size(), job_.groups.size());
    for (std::size_t g = 0; g < got.groups.size(); ++g) {
      EXPECT_EQ(got.groups[g].lr, expected.group_lr[g]);
      EXPECT_EQ(got.groups[g].numel, expected.groups[g].numel);
      if (!expected.skipped) check_figures(got.groups[g], expected.groups[g], job_.groups[g].name);
    }
    if (tells_params) {
      ASSERT_EQ(engine.param_reports().size(), job_.params.size());
      for (std::size_t p = 0; p < job_.params.size(); ++p) {
        EXPECT_EQ(engine.param_reports()[p].group, job_.params[p].group);
        check_figures(engine.param_reports()[p], expected.params[p], job_.params[p].name);
      }
    }
    check_bytes(engine.plan(), transport, got);
    check_times(got.times);
    for (int p = 0; p < std::ssize(job_.params); ++p) check_weights(engine, transport.rank(), p, expected.weights[p]);
  }

  // What a step sends is what the plan says; a skipped one ends with the vote, or, where only the device knows that it
  // is skipped, before the figures.
  static void check_bytes(const sharding::Plan& plan, const Transport& transport, const StepReport& got) {
    const int rank = transport.rank();
    sharding::WireBytes planned = plan.wire_bytes(rank);
    if (got.skipped) {
      planned.vote = plan.vote_bytes(rank) * (plan.mesh().world_size() - 1);
      if (!transport.runs_on_stream()) planned.all_gather = planned.exchange = 0;
    }
    EXPECT_EQ(got.bytes.reduce_scatter, planned.reduce_scatter);
    EXPECT_EQ(got.bytes.all_gather, planned.all_gather);
    EXPECT_EQ(got.bytes.exchange, planned.exchange);
    EXPECT_EQ(got.bytes.vote, planned.vote);
    EXPECT_EQ(got.bytes.total(), planned.total());
  }

  static void check_times(const StepTimes& times) {
    for (const double each :
         {times.wait_grad_seconds, times.vote_seconds, times.sweep_seconds, times.wait_exchange_seconds,
          times.wait_gather_seconds, times.grad_comm_seconds, times.gather_comm_seconds, times.grad_overlap()})
      EXPECT_GE(each, 0);
    EXPECT_LE(times.wait_grad_seconds + times.vote_seconds + times.sweep_seconds + times.wait_exchange_seconds +
                  times.wait_gather_seconds,
              times.step_seconds * (1 + 1e-9));
    EXPECT_LE(times.grad_overlap(), 1);
  }

  void check_weights(Engine& engine, int rank, int p, const std::vector<double>& expected) const {
    const ParamView view = engine.param(p);
    std::vector<std::byte> values(static_cast<std::size_t>(view.numel * size_of(view.dtype)));
    engine.read_param(p, values.data());
    std::vector<float> got(static_cast<std::size_t>(view.numel));
    kernels::cpu_kernels().to_f32(values.data(), view.dtype, got.data(), view.numel);
    double worst = 0;
    const double rounding = view.dtype == DType::f32 ? 0 : view.dtype == DType::bf16 ? 0x1p-8 : 0x1p-11;
    for_each_local(engine, rank, p, [&](std::int64_t whole, std::int64_t local, std::int64_t count) {
      for (std::int64_t i = 0; i < count; ++i)
        worst = std::max(worst,
                         std::fabs(got[local + i] - expected[whole + i]) - rounding * std::fabs(expected[whole + i]));
    });
    EXPECT_LT(worst, 4e-6) << job_.params[p].name;
  }

  // The bits of this rank's part of everything: those of one rank, or what the first run is made of.
  void finish(Engine& engine, int rank, const JobBits* same) {
    JobBits mine;
    const auto take = [&](const std::string& name, std::int64_t numel, std::int64_t size, const std::byte* values,
                          const auto& for_each) {
      const std::vector<std::byte>* expected = nullptr;
      if (same != nullptr) {
        ASSERT_TRUE(same->contains(name)) << name;
        expected = &same->at(name);
        ASSERT_EQ(std::ssize(*expected), numel * size) << name;
      }
      std::vector<std::byte>& to = mine.try_emplace(name, static_cast<std::size_t>(numel * size)).first->second;
      bool equal = true;
      for_each([&](std::int64_t whole, std::int64_t local, std::int64_t count) {
        std::memcpy(to.data() + whole * size, values + local * size, static_cast<std::size_t>(count * size));
        if (expected) equal &= std::memcmp(expected->data() + whole * size, values + local * size, count * size) == 0;
      });
      EXPECT_TRUE(equal) << name << " has other bits";
    };
    for (int p = 0; p < std::ssize(job_.params); ++p) {
      const ParamView view = engine.param(p);
      std::vector<std::byte> values(static_cast<std::size_t>(view.numel * size_of(view.dtype)));
      engine.read_param(p, values.data());
      take(job_.params[p].name, job_.numel(p), size_of(view.dtype), values.data(),
           [&](const auto& body) { for_each_local(engine, rank, p, body); });
    }
    for (const StatePart& part : engine.state_parts()) {
      if (part.state == "master") check_master(engine, part);
      take(part.state + " of " + job_.params[part.param].name + " block " + std::to_string(part.block),
           part.shape.numel(), size_of(part.dtype), static_cast<const std::byte*>(part.data), [&](const auto& body) {
             for (const sharding::Stretch& s : sharding::stretches(part.part, part.shape.cols))
               body(s.in_block, s.in_part, s.count);
           });
    }
    if (rank == 0) bits_ = std::move(mine);
  }

  // Master weights carry what the narrow parameters cannot.
  void check_master(const Engine& engine, const StatePart& part) const {
    std::int64_t begin = 0;
    for (int b = 0; b < part.block; ++b) begin += engine.plan().params()[part.param].blocks[b].numel();
    double worst = 0;
    for (const sharding::Stretch& s : sharding::stretches(part.part, part.shape.cols))
      for (std::int64_t i = 0; i < s.count; ++i)
        worst = std::max(worst, std::fabs(static_cast<const float*>(part.data)[s.in_part + i] -
                                          expected_.back().weights[part.param][begin + s.in_block + i]));
    EXPECT_LT(worst, 4e-6) << "master weights of " << job_.params[part.param].name;
  }

  const WholeJob& job_;
  JobLayout layout_;
  std::function<std::shared_ptr<Device>()> device_;
  bool graph_;
  std::vector<WholeStep> expected_;
  JobBits bits_;
  const Command no_command_{};
};

}  // namespace regatta::testing
