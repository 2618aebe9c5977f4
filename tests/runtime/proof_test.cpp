// The live proof: silent when all is well in every layout, loud when one number on the wire is not what was sent.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <mutex>
#include <set>

#include "kernels/matmul.h"
#include "runtime/engine/engine.h"
#include "runtime/error.h"
#include "tests/support/spmd.h"

namespace regatta {
namespace {

using sharding::Mesh;
using sharding::Placement;

std::vector<Param> params(bool split_over_tp) {
  const auto at = [&](const char* text) { return split_over_tp ? Placement::parse(text) : Placement(); };
  return {{"wide", {6, 40}, DType::f32, {}, at("tp:1"), {}, 0},
          {"tall", {50, 7}, DType::bf16, DType::bf16, at("tp:0"), {}, 0},
          {"fused", {24, 16}, DType::f32, {}, at("tp:0"), {8, 4, 12}, 0},
          {"bias", {33}, DType::f32, {}, {}, {}, 1}};
}

std::vector<Group> groups(const char* p, const char* passes) {
  return {{"reg", make_rule("reg", std::vector<std::pair<std::string, std::string>>{{"p", p}, {"passes", passes}}), 1},
          {"adamw", make_rule("adamw", {}), 0.5}};
}

struct Outcome {
  std::set<int> params, ranks;
  std::int64_t proofs = 0, compared = 0, differing = 0;
};

Outcome train(const std::string& mesh_text, const EngineOptions& options, const std::vector<Group>& groups,
              TransportFaults* faults = nullptr) {
  const Mesh mesh = Mesh::parse(mesh_text);
  TransportOptions transport_options = testing::test_transport_options();
  transport_options.faults = faults;
  Outcome outcome;
  std::mutex mutex;
  testing::run_ranks(
      mesh.world_size(),
      [&](Transport& transport) {
        Engine engine(params(mesh.size("tp") > 1), groups, mesh, transport, options);
        for (int i = 0; i < 4; ++i) {
          const ParamView view = engine.param(i);
          std::memset(view.data, 0, static_cast<std::size_t>(view.numel * size_of(view.dtype)));
        }
        engine.publish_params();
        for (int step = 0; step < 12; ++step) {
          for (int i = 0; i < 4; ++i) {
            const ParamView view = engine.param(i);
            std::vector<float> grad(static_cast<std::size_t>(view.numel));
            // The bias is replicated over tp: its gradient must be, too.
            const int salt = i == 3 ? mesh.coordinate(transport.rank(), "dp") : transport.rank();
            for (std::size_t k = 0; k < grad.size(); ++k)
              grad[k] = std::sin(static_cast<float>(k * 3 + step * 17 + i * 5 + salt));
            if (view.dtype == DType::f32) {
              engine.add_grad(i, grad.data(), DType::f32);
            } else {
              std::vector<std::uint16_t> narrow(grad.size());
              for (std::size_t k = 0; k < grad.size(); ++k) {
                std::uint32_t bits;
                std::memcpy(&bits, &grad[k], sizeof bits);
                narrow[k] = static_cast<std::uint16_t>(bits >> 16);
              }
              engine.add_grad(i, narrow.data(), DType::bf16);
            }
          }
          const StepReport report = engine.step(0.01);
          ASSERT_EQ(report.proof.has_value(), (step + 1) % options.proof_every == 0);
          if (!report.proof) continue;
          const std::lock_guard lock(mutex);
          outcome.params.insert(report.proof->param);
          outcome.ranks.insert(report.proof->rank);
          if (transport.rank() != 0) continue;
          ++outcome.proofs;
          outcome.compared += report.proof->compared;
          outcome.differing += report.proof->differing;
        }
      },
      transport_options);
  return outcome;
}

TEST(Proof, IsSilentInEveryLayout) {
  for (const char* mesh : {"dp=1", "dp=3", "tp=2", "dp=2,tp=2"}) {
    for (const auto& [p, passes] : {std::pair{"2", "1"}, {"2", "3"}, {"1", "2"}, {"inf", "1"}}) {
      EngineOptions options;
      options.proof_every = 1;
      options.proof_stops = true;
      options.cut = sharding::Cut::element;
      options.bucket_bytes = 1000;
      options.clip = 0.5;
      const Outcome outcome = train(mesh, options, groups(p, passes));
      EXPECT_EQ(outcome.differing, 0) << mesh << ", p " << p << ", passes " << passes;
      EXPECT_EQ(outcome.proofs, 12);
      EXPECT_GT(outcome.compared, 12 * 33);
      EXPECT_EQ(outcome.params.size(), 4U) << "not all parameters were drawn in 12 steps";
    }
  }
}

TEST(Proof, IsSilentForRulesThatSeeWholeMatrices) {
  if (!kernels::has_matmul()) GTEST_SKIP() << "no BLAS in this build";
  for (const char* mesh : {"dp=3", "dp=2,tp=2"}) {
    for (const char* rule : {"muon", "adamuon", "trasmuon", "namo", "namo_d", "centred_row_norm"}) {
      EngineOptions options;
      options.proof_every = 1;
      options.proof_stops = true;
      options.cut = sharding::Cut::element;
      options.bucket_bytes = 1000;
      const Outcome outcome =
          train(mesh, options, {{rule, make_rule(rule, {}), 1}, {"adamw", make_rule("adamw", {}), 0.5}});
      EXPECT_EQ(outcome.differing, 0) << rule << " on " << mesh;
      EXPECT_EQ(outcome.params.size(), 4U);
    }
  }
}

/// Flips a bit of the second byte of the first update that an owner sends to rank 1.
class WrongUpdate : public TransportFaults {
 public:
  void arrived(int root_rank, std::string_view label, std::span<std::byte> bytes) override {
    if (root_rank == 1 && label.starts_with("updates from matrix owners") && bytes.size() > 1) bytes[1] ^= std::byte{1};
  }
};

TEST(Proof, SeesOneWrongBitOfAnUpdate) {
  if (!kernels::has_matmul()) GTEST_SKIP() << "no BLAS in this build";
  EngineOptions options;
  options.proof_every = 1;
  WrongUpdate faults;
  const std::vector<Group> muon{{"muon", make_rule("muon", {}), 1}, {"adamw", make_rule("adamw", {}), 0.5}};
  EXPECT_GT(train("dp=2", options, muon, &faults).differing, 0);
}

TEST(Proof, ComesWhenAskedFor) {
  EngineOptions options;
  options.proof_every = 5;
  EXPECT_EQ(train("dp=2", options, groups("2", "1")).proofs, 2);
}

/// Flips the last bit of the first norm that comes back to rank 1.
class WrongNorm : public TransportFaults {
 public:
  void arrived(int root_rank, std::string_view label, std::span<std::byte> bytes) override {
    if (root_rank == 1 && label.starts_with("finished lines") && !bytes.empty()) bytes[0] ^= std::byte{1};
  }
};

TEST(Proof, SeesOneWrongBitOfOneNorm) {
  EngineOptions options;
  options.proof_every = 1;
  WrongNorm faults;
  EXPECT_GT(train("dp=2", options, groups("2", "1"), &faults).differing, 0);
  options.proof_stops = true;
  try {
    train("dp=2", options, groups("2", "1"), &faults);
    ADD_FAILURE() << "the job went on";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::device);
    EXPECT_NE(std::string(error.what()).find("differ from the same step computed on one rank"), std::string::npos)
        << error.what();
  }
}

// What one proof of `param` compares: its weights and everything its rule keeps of it.
std::int64_t numbers_of(const sharding::Plan& plan, int param, const Rule& rule) {
  std::int64_t count = 0;
  for (const MatrixShape& block : plan.params()[param].blocks) {
    count += block.numel();
    for (const StateSpec& state : rule.state(DType::f32)) count += state_shape(state.extent, block).numel();
  }
  return count;
}

TEST(Proof, EveryRankProvesEveryParameterAndAllHearTheSame) {
  std::set<std::pair<int, int>> drawn;
  std::mutex mutex;
  testing::run_ranks(4, [&](Transport& transport) {
    EngineOptions options;
    options.proof_every = 1;
    options.bucket_bytes = 200;
    options.cut = sharding::Cut::element;
    std::vector<Param> all{{"w", {5, 6}}, {"v", {9}}, {"x", {7, 3}}};
    all[1].group = 1;
    const std::vector<Group> rules{{"reg", make_rule("reg", {}), 1}, {"adamw", make_rule("adamw", {}), 1}};
    Engine engine(all, rules, Mesh({{"dp", 4}}), transport, options);
    engine.publish_params();
    std::vector<float> grad(30);
    for (int step = 0; step < 100; ++step) {
      for (std::size_t i = 0; i < grad.size(); ++i) grad[i] = std::sin(static_cast<float>(i + 7 * step));
      for (int p = 2; p >= 0; --p) engine.add_grad(p, grad.data() + transport.rank() % 2, DType::f32);
      const StepReport report = engine.step(0.01);
      ASSERT_TRUE(report.proof);
      const ProofReport& proof = *report.proof;
      EXPECT_EQ(proof.differing, 0);
      EXPECT_EQ(proof.compared, numbers_of(engine.plan(), proof.param, *rules[all[proof.param].group].rule));
      // Its messages are its own.
      const sharding::WireBytes planned = engine.plan().wire_bytes(transport.rank());
      EXPECT_EQ(report.bytes.total(), planned.total());
      EXPECT_EQ(report.bytes.exchange, planned.exchange);
      if (step % 10 == 0) {
        const std::string told = std::to_string(proof.param) + " " + std::to_string(proof.rank);
        for (const std::string& other : transport.gather_strings(told, "what was drawn")) EXPECT_EQ(other, told);
      }
      const std::scoped_lock lock(mutex);
      drawn.insert({proof.param, proof.rank});
    }
  });
  EXPECT_EQ(drawn.size(), 12U) << "in 100 steps every rank computes every parameter";
}

TEST(Proof, ComparesTheSmallStatesOfMatricesToo) {
  if (!kernels::has_matmul()) GTEST_SKIP() << "no BLAS in this build";
  for (const char* rule : {"muon", "adamuon", "normuon", "namo", "namo_d", "trasmuon"}) {
    const auto made = make_rule(rule, {});
    testing::run_ranks(2, [&](Transport& transport) {
      EngineOptions options;
      options.proof_every = 1;
      Engine engine({{"w", {6, 8}}}, {{rule, made, 1}}, Mesh({{"dp", 2}}), transport, options);
      engine.publish_params();
      std::vector<float> grad(48);
      for (int step = 0; step < 3; ++step) {
        for (std::size_t i = 0; i < grad.size(); ++i) grad[i] = std::sin(static_cast<float>(i * i + 3 * step));
        engine.add_grad(0, grad.data(), DType::f32);
        const StepReport report = engine.step(0.01);
        EXPECT_EQ(report.proof->compared, numbers_of(engine.plan(), 0, *made)) << rule;
        EXPECT_EQ(report.proof->differing, 0) << rule;
      }
    });
  }
}

/// AdamW that gets one number of one array wrong in every run but those that begin a parameter.
class Wrong : public Rule {
 public:
  enum class Where { first, last };
  Wrong(int array, Where where) : array_(array), where_(where) {}
  std::string_view name() const override { return "wrong"; }
  std::string settings_text() const override { return "wrong"; }
  sharding::View view(MatrixShape block) const override { return right_->view(block); }
  std::vector<StateSpec> state(DType momentum_dtype) const override { return right_->state(momentum_dtype); }
  void update(const RunTensors& run, MatrixShape block, const StepInfo& info, DType momentum_dtype, ThreadPool& pool,
              kernels::SweepHealth& health) const override {
    right_->update(run, block, info, momentum_dtype, pool, health);
    if (run.run.begin == 0) return;
    float* const values = array_ < 2 ? static_cast<float*>(run.state[array_]) : run.weight;
    values[where_ == Where::first ? 0 : run.run.numel() - 1] += 0.5F;
  }

 private:
  const std::shared_ptr<const Rule> right_ = make_rule("adamw", {});
  int array_;
  Where where_;
};

TEST(Proof, CountsEveryNumberThatDiffersInEveryArray) {
  for (int array = 0; array < 3; ++array)
    for (const Wrong::Where where : {Wrong::Where::first, Wrong::Where::last}) {
      const auto rule = std::make_shared<Wrong>(array, where);
      testing::run_ranks(3, [&](Transport& transport) {
        EngineOptions options;
        options.proof_every = 1;
        options.cut = sharding::Cut::element;
        Engine engine({{"a", {96}}, {"b", {4, 24}}}, {{"wrong", rule, 1}}, Mesh({{"dp", 3}}), transport, options);
        engine.publish_params();
        std::int64_t pieces[2] = {};
        for (int rank = 0; rank < 3; ++rank)
          for (const sharding::Piece& piece : engine.plan().layout(rank).pieces)
            pieces[piece.param] += piece.part.run.begin > 0 ? 1 : 0;
        EXPECT_GE(pieces[0] + pieces[1], 2);
        const std::vector<float> grad(96, 1.0F);
        std::set<int> seen;
        for (int step = 0; step < 12; ++step) {
          for (const int p : {1, 0}) engine.add_grad(p, grad.data(), DType::f32);
          const StepReport report = engine.step(0.01);
          seen.insert(report.proof->param);
          EXPECT_EQ(report.proof->differing, pieces[report.proof->param])
              << "array " << array << ", rank " << transport.rank() << ", step " << step;
        }
        EXPECT_EQ(seen.size(), 2U);
      });
    }
}

// Steps that are skipped prove nothing and are not counted; the one that stops the job is named by its number.
TEST(Proof, IsDueByStepsThatWereMade) {
  const std::vector<float> fine(96, 1.0F), bad(96, std::numeric_limits<float>::infinity());
  for (const bool wrong : {false, true}) {
    const std::shared_ptr<const Rule> rule =
        wrong ? std::make_shared<Wrong>(2, Wrong::Where::first) : make_rule("adamw", {});
    std::vector<int> proven;
    std::string stopped;
    try {
      testing::run_ranks(2, [&](Transport& transport) {
        EngineOptions options;
        options.proof_every = 3;
        options.proof_stops = wrong;
        options.cut = sharding::Cut::element;
        Engine engine({{"alone", {96}}}, {{"all", rule, 1}}, Mesh({{"dp", 2}}), transport, options);
        engine.publish_params();
        for (int turn = 1; turn <= 10; ++turn) {
          engine.add_grad(0, turn == 2 || turn == 5 ? bad.data() : fine.data(), DType::f32);
          const StepReport report = engine.step(0.01);
          if (report.proof && transport.rank() == 0) proven.push_back(turn);
        }
      });
    } catch (const Error& error) {
      stopped = error.what();
    }
    if (wrong) {
      EXPECT_EQ(stopped, "step 3: 1 numbers of alone differ from the same step computed on one rank");
      EXPECT_TRUE(proven.empty());
    } else {
      EXPECT_EQ(stopped, "");
      EXPECT_EQ(proven, (std::vector<int>{4, 8}));  // steps 3 and 6
    }
  }
}

}  // namespace
}  // namespace regatta
