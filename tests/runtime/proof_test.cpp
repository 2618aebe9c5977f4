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

}  // namespace
}  // namespace regatta
