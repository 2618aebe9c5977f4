// A function of the C interface is one call of the C++ interface: the same job by both, with every option set to
// something else in turn, tells the same and leaves the same.

#include <gtest/gtest.h>
#include <regatta.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <mutex>
#include <sstream>
#include <thread>

#include "runtime/engine/engine.h"
#include "tests/support/spmd.h"

namespace regatta {
namespace {

struct Case {
  std::vector<std::pair<const char*, const char*>> options;
  std::function<void(EngineOptions&)> set;
  const char* mesh = "dp=2";
  const char* place = "";
};

std::vector<Case> cases() {
  return {
      {{}, [](EngineOptions&) {}},
      {{{"mode", "zero1"}}, [](EngineOptions&) {}},
      {{{"mode", "zero2"}}, [](EngineOptions& o) { o.mode = Mode::zero2; }},
      {{{"mode", "sharded"}}, [](EngineOptions& o) { o.mode = Mode::sharded; }, "dp=2", "dp:0"},
      {{{"cut", "element"}}, [](EngineOptions& o) { o.cut = sharding::Cut::element; }, "dp=2,tp=1"},
      {{{"cut", "matrix"}}, [](EngineOptions& o) { o.cut = sharding::Cut::matrix; }},
      {{{"bucket_bytes", "64"}}, [](EngineOptions& o) { o.bucket_bytes = 64; }, "tp=2", "tp:1"},
      {{{"micro_batches", "3"}}, [](EngineOptions& o) { o.micro_batches = 3; }},
      {{{"micro_batches", "4"}, {"accumulation", "tree"}},
       [](EngineOptions& o) {
         o.micro_batches = 4;
         o.accumulation = Accumulation::tree;
       }},
      {{{"clip", "0.5"}}, [](EngineOptions& o) { o.clip = 0.5; }},
      {{{"non_finite", "stop"}}, [](EngineOptions& o) { o.non_finite = NonFinite::stop; }},
      {{{"loss_scale", "8"}}, [](EngineOptions& o) { o.loss_scaling.initial = 8; }},
      {{{"loss_scale", "8"}, {"loss_scale_growth_interval", "2"}},
       [](EngineOptions& o) {
         o.loss_scaling = {8, 2, 1};
       }},
      {{{"loss_scale", "8"}, {"loss_scale_growth_interval", "2"}, {"loss_scale_smallest", "6"}},
       [](EngineOptions& o) {
         o.loss_scaling = {8, 2, 6};
       }},
      {{{"momentum_dtype", "bf16"}}, [](EngineOptions& o) { o.momentum_dtype = DType::bf16; }},
      {{{"threads", "3"}}, [](EngineOptions& o) { o.threads = 3; }},
  };
}

constexpr int steps = 5, spoilt = 1;

float number(int seed, std::int64_t i) { return std::sin(static_cast<float>(i * 3 + seed * 7)); }
std::vector<float> gradient(int step, int k, int p, std::int64_t numel, double scale) {
  std::vector<float> grad(static_cast<std::size_t>(numel));
  for (std::int64_t i = 0; i < numel; ++i) grad[i] = number(100 * step + 10 * k + p, i) * static_cast<float>(scale);
  if (step == spoilt && p == 1 && numel > 0) grad[0] = INFINITY;
  return grad;
}

/// Everything that was told and left, one line each.
class Lines {
 public:
  template <class... Values>
  void add(const Values&... values) {
    text_ << std::hexfloat;
    ((text_ << values << ' '), ...) << '\n';
  }
  void add_bytes(const void* data, std::size_t count) {
    std::size_t hash = 1469598103934665603U;
    for (std::size_t i = 0; i < count; ++i) hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 1099511628211U;
    add("bytes", count, hash);
  }
  std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
};

template <class Report>
void add_figures(Lines& lines, const std::string& name, const Report& f) {
  lines.add(name, f.numel, f.grad_norm, f.update_rms, f.weight_rms, f.update_to_weight, f.smallest_line_norm,
            f.largest_line_norm, f.zero_lines, f.clamped_lines, f.non_finite_lines);
}

std::string in_cpp(const Case& job, Transport& transport) {
  Lines lines;
  EngineOptions options;
  job.set(options);
  using Settings = std::vector<std::pair<std::string, std::string>>;
  std::vector<Param> params{{"w", {6, 8}}, {"fused", {6, 4}, DType::bf16}, {"v", {7}}};
  for (Param& param : params)
    if (param.shape.size() > 1) param.placement = sharding::Placement::parse(job.place);
  params[1].grad_dtype = DType::f32;
  params[1].block_rows = {4, 2};
  params[2].group = 1;
  Engine engine(params,
                {{"matrices", make_rule("reg", Settings{{"rho", "0.3"}, {"momentum", "0.9"}}), 1},
                 {"vectors", make_rule("adamw", {}), 0.25}},
                sharding::Mesh::parse(job.mesh), transport, options);
  for (int p = 0; p < 3; ++p) {
    const ParamView view = engine.param(p);
    lines.add("param", p, view.numel, static_cast<int>(view.dtype));
    std::memset(view.data, 0x3c, static_cast<std::size_t>(view.numel * size_of(view.dtype)));
    for (const sharding::BlockPart& part : engine.plan().local_parts(transport.rank(), p))
      lines.add(part.rows.begin, part.rows.end, part.cols.begin, part.cols.end, part.run.begin, part.run.end);
  }
  engine.publish_params();
  lines.add(engine.plan().text(), engine.plan().fingerprint(), engine.state_bytes());
  const sharding::WireBytes planned = engine.plan().wire_bytes(transport.rank());
  lines.add(planned.reduce_scatter, planned.all_gather, planned.exchange, planned.vote);
  for (int step = 0; step < steps; ++step) {
    for (int k = 0; k < options.micro_batches; ++k)
      for (int p = 2; p >= 0; --p)
        engine.add_grad(
            p,
            gradient(step, static_cast<int>(engine.micro_batch_index(k)), p, engine.param(p).numel, engine.loss_scale())
                .data(),
            DType::f32);
    try {
      const StepReport r = engine.step(0.1 / (1 + step));
      lines.add("step", r.step, r.skipped_steps, r.skipped, r.groups.size(), '"' + r.culprit + '"', r.lr, r.grad_norm,
                r.clip_factor, r.loss_scale, r.bytes.reduce_scatter, r.bytes.all_gather, r.bytes.exchange,
                r.bytes.vote);
      for (const GroupReport& group : r.groups) add_figures(lines, group.name, group);
      for (const ParamReport& param : engine.param_reports()) add_figures(lines, param.name, param);
    } catch (const Error& error) {
      lines.add("error", static_cast<int>(error.code()) == static_cast<int>(Code::non_finite), error.what());
    }
    lines.add(engine.loss_scale(), engine.step_count());
  }
  for (const StatePart& part : engine.state_parts()) {
    lines.add(part.state, part.param, part.block, part.part.rows.begin, part.part.cols.end, part.part.run.begin,
              part.part.run.end, static_cast<int>(part.dtype), part.primary, part.shape.rows, part.shape.cols);
    lines.add_bytes(part.data, static_cast<std::size_t>(part.part.run.size() * size_of(part.dtype)));
  }
  for (int p = 0; p < 3; ++p)
    lines.add_bytes(engine.param(p).data,
                    static_cast<std::size_t>(engine.param(p).numel * size_of(engine.param(p).dtype)));
  return lines.text();
}

#define OK(call) ASSERT_EQ(call, REGATTA_OK) << regatta_last_error()

DType dtype_of(int number) { return number == REGATTA_BF16 ? DType::bf16 : DType::f32; }

void in_c(const Case& job, regatta_transport* transport, std::string& text) {
  Lines lines;
  regatta_engine* e = nullptr;
  int index = -1;
  OK(regatta_engine_create(transport, job.mesh, &e));
  OK(regatta_engine_add_group(e, "matrices", "reg", "rho=0.3,momentum=0.9", 1, &index));
  EXPECT_EQ(index, 0);
  OK(regatta_engine_add_group(e, "vectors", "adamw", nullptr, 0.25, &index));
  EXPECT_EQ(index, 1);
  const std::int64_t w[] = {6, 8}, fused[] = {6, 4}, v[] = {7}, blocks[] = {4, 2};
  OK(regatta_engine_add_param(e, "w", w, 2, REGATTA_F32, job.place, 0, &index));
  EXPECT_EQ(index, 0);
  OK(regatta_engine_add_param(e, "fused", fused, 2, REGATTA_BF16, job.place, 0, &index));
  EXPECT_EQ(index, 1);
  OK(regatta_engine_add_param(e, "v", v, 1, REGATTA_F32, nullptr, 1, &index));
  EXPECT_EQ(index, 2);
  OK(regatta_engine_set_grad_dtype(e, 1, REGATTA_F32));
  OK(regatta_engine_set_block_rows(e, 1, blocks, 2));
  for (const auto& [name, value] : job.options) OK(regatta_engine_set_option(e, name, value));
  OK(regatta_engine_build(e));
  std::int64_t numel[3] = {};
  void* data[3] = {};
  int dtype[3] = {}, block_count = 0, rank = 0;
  OK(regatta_transport_rank(transport, &rank));
  for (int p = 0; p < 3; ++p) {
    OK(regatta_engine_param(e, p, &data[p], &numel[p], &dtype[p]));
    lines.add("param", p, numel[p], static_cast<int>(dtype_of(dtype[p])));
    std::memset(data[p], 0x3c, static_cast<std::size_t>(numel[p] * size_of(dtype_of(dtype[p]))));
    OK(regatta_engine_param_block_count(e, p, &block_count));
    for (int b = 0; b < block_count; ++b) {
      regatta_part part;
      OK(regatta_engine_param_block(e, p, b, &part));
      lines.add(part.rows_begin, part.rows_end, part.cols_begin, part.cols_end, part.run_begin, part.run_end);
    }
  }
  OK(regatta_engine_publish_params(e));
  const char* plan = nullptr;
  std::uint64_t fingerprint = 0;
  std::int64_t state_bytes = 0, step_count = 0;
  regatta_wire_bytes planned;
  OK(regatta_engine_plan_text(e, &plan));
  OK(regatta_engine_plan_fingerprint(e, &fingerprint));
  OK(regatta_engine_state_bytes(e, &state_bytes));
  lines.add(plan, fingerprint, state_bytes);
  OK(regatta_engine_planned_bytes(e, &planned, sizeof planned));
  lines.add(planned.reduce_scatter, planned.all_gather, planned.exchange, planned.vote);
  double scale = 0;
  OK(regatta_engine_loss_scale(e, &scale));
  for (int step = 0; step < steps; ++step) {
    std::int64_t global = 0;
    for (int k = 0; regatta_engine_micro_batch_index(e, k, &global) == REGATTA_OK; ++k)
      for (int p = 2; p >= 0; --p)
        OK(regatta_engine_add_grad(e, p, gradient(step, static_cast<int>(global), p, numel[p], scale).data(), numel[p],
                                   REGATTA_F32));
    regatta_step_report r;
    const int status = regatta_engine_step(e, 0.1 / (1 + step), &r, sizeof r);
    if (status == REGATTA_OK) {
      lines.add("step", r.step, r.skipped_steps, r.skipped, r.groups, '"' + std::string(r.culprit) + '"', r.lr,
                r.grad_norm, r.clip_factor, r.loss_scale, r.reduce_scatter_bytes, r.all_gather_bytes, r.exchange_bytes,
                r.vote_bytes);
      regatta_figures figures;
      for (int g = 0; g < r.groups; ++g) {
        OK(regatta_engine_group_figures(e, g, &figures, sizeof figures));
        add_figures(lines, figures.name, figures);
      }
      for (int p = 0; p < 3; ++p) {
        OK(regatta_engine_param_figures(e, p, &figures, sizeof figures));
        add_figures(lines, figures.name, figures);
      }
    } else {
      lines.add("error", status == REGATTA_NON_FINITE, regatta_last_error());
    }
    OK(regatta_engine_loss_scale(e, &scale));
    OK(regatta_engine_step_count(e, &step_count));
    lines.add(scale, step_count);
  }
  int parts = 0;
  OK(regatta_engine_state_count(e, &parts));
  for (int i = 0; i < parts; ++i) {
    regatta_state_part part;
    OK(regatta_engine_state_part(e, i, &part, sizeof part));
    lines.add(part.state, part.param, part.block, part.part.rows_begin, part.part.cols_end, part.part.run_begin,
              part.part.run_end, static_cast<int>(dtype_of(part.dtype)), part.primary, part.rows, part.columns);
    lines.add_bytes(part.data, static_cast<std::size_t>(part.numel * size_of(dtype_of(part.dtype))));
  }
  for (int p = 0; p < 3; ++p)
    lines.add_bytes(data[p], static_cast<std::size_t>(numel[p] * size_of(dtype_of(dtype[p]))));
  OK(regatta_engine_destroy(e));
  text = lines.text();
}

TEST(CInterface, DoesWhatTheCppInterfaceDoes) {
  std::string first;
  for (const Case& job : cases()) {
    std::string of_cpp[2], of_c[2];
    testing::run_ranks(2, [&](Transport& transport) { of_cpp[transport.rank()] = in_cpp(job, transport); });
    regatta_transport* ranks[2] = {};
    OK(regatta_transport_local(2, "deadline_seconds=60", ranks));
    {
      std::jthread other([&] { in_c(job, ranks[1], of_c[1]); });
      in_c(job, ranks[0], of_c[0]);
    }
    for (int rank = 0; rank < 2; ++rank) {
      EXPECT_EQ(of_c[rank], of_cpp[rank]) << (job.options.empty() ? "" : job.options.back().first) << ", rank " << rank;
      OK(regatta_transport_destroy(ranks[rank]));
    }
  }
}

}  // namespace
}  // namespace regatta
