// Wrong calls of the engine: every call, every wrong form. Each is refused by a sentence that names what was wrong, and
// the job is as it was.

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "runtime/engine/setup.h"
#include "tests/support/job_run.h"
#include "tests/support/usual_job.h"

namespace regatta {
namespace {

using sharding::Mesh;
using sharding::Placement;

constexpr double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();

void expect_refused(const std::function<void()>& call, const std::string& text) {
  try {
    call();
    ADD_FAILURE() << "taken; expected a refusal with '" << text << "'";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::invalid_argument) << error.what();
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what() << "; expected '" << text << "'";
  }
}

struct Description {
  std::vector<Param> params{{"a", {6, 4}}, {"b", {5}}};
  std::vector<Group> groups{{"all", make_rule("reg", {}), 1}};
  Mesh mesh;
  EngineOptions options;
};

struct Wrong {
  const char* text;
  std::function<void(Description&)> make;
};

TEST(Refusal, EveryWrongDescription) {
  const std::vector<Wrong> cases{
      {"micro_batches is 0; expected at least 1", [](Description& d) { d.options.micro_batches = 0; }},
      {"micro_batches is -1", [](Description& d) { d.options.micro_batches = -1; }},
      {"threads is 0; expected at least 1", [](Description& d) { d.options.threads = 0; }},
      {"threads is -2", [](Description& d) { d.options.threads = -2; }},
      {"clip is -1", [](Description& d) { d.options.clip = -1; }},
      {"clip is nan", [](Description& d) { d.options.clip = nan; }},
      {"clip is -nan", [](Description& d) { d.options.clip = -nan; }},
      {"momentum dtype is f16; expected f32 or bf16", [](Description& d) { d.options.momentum_dtype = DType::f16; }},
      {"the initial loss scale is 0", [](Description& d) { d.options.loss_scaling.initial = 0; }},
      {"the initial loss scale is -4", [](Description& d) { d.options.loss_scaling.initial = -4; }},
      {"the initial loss scale is nan", [](Description& d) { d.options.loss_scaling.initial = nan; }},
      {"the initial loss scale is inf", [](Description& d) { d.options.loss_scaling.initial = inf; }},
      {"the smallest loss scale is 0", [](Description& d) { d.options.loss_scaling.smallest = 0; }},
      {"the smallest loss scale is -1", [](Description& d) { d.options.loss_scaling.smallest = -1; }},
      {"the smallest loss scale is nan", [](Description& d) { d.options.loss_scaling.smallest = nan; }},
      {"the loss scale's growth interval is -1", [](Description& d) { d.options.loss_scaling.growth_interval = -1; }},
      {"a CUDA graph of the step was asked for on the CPU", [](Description& d) { d.options.device_graph = true; }},
      {"bucket_bytes", [](Description& d) { d.options.bucket_bytes = 0; }},
      {"bucket_bytes", [](Description& d) { d.options.bucket_bytes = -1; }},
      {"there are no parameter groups", [](Description& d) { d.groups.clear(); }},
      {"group all has no rule", [](Description& d) { d.groups[0].rule = nullptr; }},
      {"group all has lr_scale nan", [](Description& d) { d.groups[0].lr_scale = nan; }},
      {"group all has lr_scale inf", [](Description& d) { d.groups[0].lr_scale = inf; }},
      {"there are no parameters", [](Description& d) { d.params.clear(); }},
      {"parameter b is in group -1; there are 1 groups", [](Description& d) { d.params[1].group = -1; }},
      {"parameter b is in group 1; there are 1 groups", [](Description& d) { d.params[1].group = 1; }},
      {"parameter a appears twice", [](Description& d) { d.params[1].name = "a"; }},
      {"parameter a", [](Description& d) { d.params[0].shape = {}; }},
      {"parameter a",
       [](Description& d) {
         d.params[0].shape = {0, 4};
       }},
      {"parameter a",
       [](Description& d) {
         d.params[0].shape = {6, -4};
       }},
      {"has blocks of 5 rows in all; expected 6",
       [](Description& d) {
         d.params[0].block_rows = {3, 2};
       }},
      {"has blocks of 7 rows in all; expected 6",
       [](Description& d) {
         d.params[0].block_rows = {3, 4};
       }},
      {"parameter a has a block of 0 rows",
       [](Description& d) {
         d.params[0].block_rows = {6, 0};
       }},
      {"parameter a has a block of -1 rows",
       [](Description& d) {
         d.params[0].block_rows = {7, -1};
       }},
      {"placed over axis pp", [](Description& d) { d.params[0].placement = Placement::parse("pp:0"); }},
      {"dp", [](Description& d) { d.params[0].placement = Placement::parse("dp:0"); }},
      {"mesh dp=2 has 2 ranks but the transport has 1",
       [](Description& d) {
         d.mesh = Mesh({{"dp", 2}});
       }},
  };
  testing::run_ranks(1, [&](Transport& transport) {
    for (const Wrong& wrong : cases) {
      SCOPED_TRACE(wrong.text);
      Description d;
      wrong.make(d);
      expect_refused([&] { Engine(d.params, d.groups, d.mesh, transport, d.options); }, wrong.text);
    }
    const Description right;
    Engine engine(right.params, right.groups, right.mesh, transport, right.options);  // and the transport is as it was
    engine.publish_params();
    EXPECT_EQ(engine.step(0.1).step, 1);
  });
}

// The exact sums hold so many elements and no more; nothing is allocated for a plan.
TEST(Refusal, AsManyElementsAsTheSumsHold) {
  const auto plan = [](std::vector<std::int64_t> shape, const char* rule) {
    make_plan({{"p", std::move(shape)}}, {{"all", make_rule(rule, {}), 1}}, Mesh(), {});
  };
  constexpr std::int64_t line = kernels::LineSum::max_count, whole = kernels::WholeSum::max_count;
  for (const char* rule : {"reg", "adamw", "row_norm"}) {
    plan({2, line}, rule);
    plan({line, 2}, rule);
    plan({line}, rule);
    for (const std::vector<std::int64_t>& shape : {std::vector<std::int64_t>{2, line + 1}, {line + 1, 2}, {line + 1}})
      expect_refused([&] { plan(shape, rule); }, "exact line sums hold up to " + std::to_string(line));
    plan({65535, 65537}, rule);
    ASSERT_EQ(65535 * std::int64_t{65537}, whole);
    expect_refused([&] { plan({65536, 65536}, rule); }, "has 4294967296 elements");
  }
}

// When a global batch may be shared so that the lower levels of the tree are whole subtrees.
TEST(Refusal, TreesThatWouldDependOnTheNumberOfRanks) {
  for (const Mode mode : {Mode::zero1, Mode::zero2, Mode::sharded})
    for (int dp = 1; dp <= 9; ++dp)
      for (int micro_batches = 1; micro_batches <= 9; ++micro_batches)
        for (const Accumulation accumulation : {Accumulation::sum, Accumulation::tree}) {
          EngineOptions options;
          options.mode = mode;
          options.accumulation = accumulation;
          options.micro_batches = micro_batches;
          const auto make = [&] {
            make_plan({{"p", {6, 4}}}, {{"all", make_rule("reg", {}), 1}}, Mesh({{"dp", dp}}), options);
          };
          SCOPED_TRACE(std::to_string(static_cast<int>(mode)) + ": " + std::to_string(dp) + " ranks, " +
                       std::to_string(micro_batches) + " micro-batches");
          const int inner = mode == Mode::zero2 ? dp : micro_batches, outer = mode == Mode::zero2 ? micro_batches : dp;
          const bool power = inner == 1 || inner == 2 || inner == 4 || inner == 8;
          if (accumulation == Accumulation::sum || mode == Mode::sharded || dp == 1 || outer == 1 || power)
            make();
          else
            expect_refused(make, "is a power of two; it is " + std::to_string(inner));
        }
}

// A twin makes the same steps and nothing wrong: the same bits.
TEST(Refusal, WrongCallsBetweenStepsChangeNothing) {
  testing::WholeJob job = testing::usual_job(31);
  testing::run_ranks(2, [&](Transport& transport) {
    EngineOptions options = job.options;
    options.micro_batches = 2;
    options.loss_scaling = {8, 2, 1};
    const auto make = [&] {
      auto engine = std::make_unique<Engine>(job.params, job.groups, Mesh({{"dp", 2}}), transport, options);
      for (int p = 0; p < std::ssize(job.params); ++p) {
        const ParamView view = engine->param(p);
        std::memset(view.data, 0, static_cast<std::size_t>(view.numel * size_of(view.dtype)));
      }
      engine->publish_params();
      return engine;
    };
    const auto engine = make(), twin = make();
    const int count = static_cast<int>(job.params.size());
    const std::vector<float> numbers(400, 0.25F);
    Command command;
    command.kind = Command::Kind::set;
    command.fields = Command::lr_given;
    command.lr = nan;
    const auto wrong_calls = [&] {
      for (const int index : {-1, count, count + 7, std::numeric_limits<int>::max(), std::numeric_limits<int>::min()}) {
        const std::string text = "got parameter " + std::to_string(index) + "; there are " + std::to_string(count);
        expect_refused([&] { engine->add_grad(index, numbers.data(), DType::f32); }, "add_grad " + text);
        expect_refused([&] { engine->param(index); }, text);
        expect_refused([&] { engine->write_param(index, numbers.data()); }, text);
        float to[400];
        expect_refused([&] { engine->read_param(index, to); }, text);
      }
      for (const int k : {-1, 2})
        expect_refused([&] { engine->micro_batch_index(k); }, "micro-batch " + std::to_string(k));
      for (const double lr : {nan, inf, -inf}) expect_refused([&] { engine->step(lr); }, "lr is");
      expect_refused([&] { engine->set_step_count(-1); }, "step is -1");
      expect_refused([&] { engine->apply(command); }, "lr is nan");
      expect_refused([&] { engine->changes_of(command); }, "lr is nan");
      expect_refused([&] { engine->post(command); }, transport.rank() == 0 ? "lr is nan" : "only rank 0 can");
    };
    for (int step = 0; step < 3; ++step) {
      wrong_calls();
      for (int p = count - 1; p >= 0; --p) {
        for (int k = 0; k < 2; ++k)
          for (Engine* each : {engine.get(), twin.get()}) each->add_grad(p, numbers.data() + step + k, DType::f32);
        expect_refused([&] { engine->add_grad(p, numbers.data(), DType::f32); },
                       "parameter " + job.params[p].name + " got more than 2 gradients in one step");
        if (p == 2) wrong_calls();
      }
      const StepReport report = engine->step(0.1), expected = twin->step(0.1);
      EXPECT_EQ(report.grad_norm, expected.grad_norm);
      EXPECT_EQ(report.step, step + 1);
    }
    for (int p = 0; p < count; ++p) {
      const ParamView a = engine->param(p), b = twin->param(p);
      EXPECT_EQ(std::memcmp(a.data, b.data, static_cast<std::size_t>(a.numel * size_of(a.dtype))), 0);
    }
    EXPECT_EQ(engine->loss_scale(), twin->loss_scale());
  });
}

// A gradient of another type than announced, wherever it would travel as it is.
TEST(Refusal, GradientsOfAnotherType) {
  for (const Mode mode : {Mode::zero1, Mode::zero2})
    for (const int micro_batches : {1, 2})
      for (const DType announced : {DType::f32, DType::bf16, DType::f16})
        for (const DType given : {DType::f32, DType::bf16, DType::f16})
          testing::run_ranks(1, [&](Transport& transport) {
            EngineOptions options;
            options.mode = mode;
            options.micro_batches = micro_batches;
            Param param{"a", {6, 4}};
            param.grad_dtype = announced;
            Engine engine({param}, {{"all", make_rule("reg", {}), 1}}, Mesh(), transport, options);
            engine.publish_params();
            const std::vector<float> zeros(24);
            const auto add = [&] { engine.add_grad(0, zeros.data(), given); };
            if (given == announced || (mode == Mode::zero1 && micro_batches > 1)) return add();
            expect_refused(add, "parameter a got a gradient of " + std::string(name_of(given)) + "; expected " +
                                    std::string(name_of(announced)));
          });
}

// Of replicas that differ, the first parameter and the first rank are named, whichever element it is, and all hear it.
TEST(Refusal, EveryReplicaThatDiffers) {
  const testing::WholeJob job = testing::usual_job(32);
  for (const char* axis : {"dp", "tp"})
    for (int param = 0; param < std::ssize(job.params); ++param)
      for (const bool last : {false, true}) {
        const int rank = 1 + (param + (last ? 1 : 0)) % 2;
        std::atomic<int> refused = 0;
        testing::run_ranks(3, [&](Transport& transport) {
          Engine engine(job.params, job.groups, Mesh({{axis, 3}}), transport, {});
          for (int p = 0; p < std::ssize(job.params); ++p) {
            const ParamView view = engine.param(p);
            std::vector<std::byte> values(static_cast<std::size_t>(view.numel * size_of(view.dtype)), std::byte{0x3c});
            // A later parameter differs on an earlier rank.
            if ((p == param && transport.rank() == rank) || (p == param + 1 && transport.rank() == 1))
              (last ? values.back() : values.front()) = std::byte{0x3d};
            engine.write_param(p, values.data());
          }
          try {
            engine.publish_params();
          } catch (const Error& error) {
            EXPECT_EQ(error.code(), Code::invalid_argument);
            EXPECT_NE(std::string(error.what())
                          .find("initial values of parameter " + job.params[param].name +
                                " differ between ranks 0 and " + std::to_string(rank)),
                      std::string::npos)
                << error.what();
            ++refused;
          }
        });
        EXPECT_EQ(refused, 3) << job.params[param].name;
      }
}

// Ranks that do not say the same: the first line that differs, of the first rank that differs.
TEST(Refusal, EveryDifferenceBetweenRanks) {
  const std::vector<Wrong> cases{
      {"parameter c", [](Description& d) { d.params[1].name = "c"; }},
      {"parameter b 7", [](Description& d) { d.params[1].shape = {7}; }},
      {"parameter b", [](Description& d) { d.params[1].dtype = DType::bf16; }},
      {"gradient bf16", [](Description& d) { d.params[1].grad_dtype = DType::bf16; }},
      {"parameter a",
       [](Description& d) {
         d.params[0].block_rows = {4, 2};
       }},
      {"parameter a", [](Description& d) { d.params[0].placement = Placement::parse("tp:0"); }},
      {"group all",
       [](Description& d) {
         d.groups.push_back({"more", d.groups[0].rule, 1}), d.params[1].group = 1;
       }},
      {"group each", [](Description& d) { d.groups[0].name = "each"; }},
      {"lr scale 2", [](Description& d) { d.groups[0].lr_scale = 2; }},
      {"adamw", [](Description& d) { d.groups[0].rule = make_rule("adamw", {}); }},
      {"rho=0.3",
       [](Description& d) {
         d.groups[0].rule = make_rule("reg", std::vector<std::pair<std::string, std::string>>{{"rho", "0.3"}});
       }},
      {"", [](Description& d) { d.options.cut = sharding::Cut::element; }},
      {"", [](Description& d) { d.options.bucket_bytes = 64; }},
      {"", [](Description& d) { d.options.mode = Mode::sharded; }},
      {"",
       [](Description& d) {
         d.mesh = Mesh({{"dp", 1}, {"tp", 3}});
       }},
      {"rank 0 has 'parameter b", [](Description& d) { d.params.pop_back(); }},
      {"parameter c",
       [](Description& d) {
         d.params.push_back({"c", {2}});
       }},
  };
  int different = 0;  // now the last rank, now the one in the middle
  for (const Wrong& wrong : cases) {
    SCOPED_TRACE(wrong.text);
    different = different == 2 ? 1 : 2;
    std::atomic<int> refused = 0;
    const auto body = [&](Transport& transport) {
      Description d;
      d.mesh = Mesh({{"dp", 3}, {"tp", 1}});
      if (transport.rank() == different) wrong.make(d);
      try {
        Engine(d.params, d.groups, d.mesh, transport, d.options);
      } catch (const Error& error) {
        const std::string text = error.what();
        EXPECT_NE(text.find("ranks disagree on what to train: rank 0 has '"), std::string::npos) << text;
        EXPECT_NE(text.find("', rank " + std::to_string(different) + " has '"), std::string::npos) << text;
        EXPECT_NE(text.find(wrong.text), std::string::npos) << text;
        EXPECT_EQ(error.code(), Code::invalid_argument);
        ++refused;
      }
    };
    testing::run_ranks(3, body);
    EXPECT_EQ(refused, 3) << "every rank learns it";
  }
}

}  // namespace
}  // namespace regatta
