// StepTimes: every phase is measured where it is spent, in seconds. A rank or a message is made late; that the waiting
// shows is asked again until it does, so a busy machine cannot fail this, and a phase that never shows it does.

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include "runtime/engine/engine.h"
#include "runtime/stopwatch.h"
#include "tests/support/spmd.h"

namespace regatta {
namespace {

using namespace std::chrono_literals;

constexpr auto pause = 15ms;
constexpr double shows = 0.010;                   // of it
constexpr int least_tries = 4, most_tries = 200;  // several, so that what is not forgotten adds up

/// Messages whose label begins so arrive late at one rank.
class LateMessage : public TransportFaults {
 public:
  LateMessage(int rank, std::string label) : rank_(rank), label_(std::move(label)) {}
  void arrived(int root_rank, std::string_view label, std::span<std::byte>) override {
    if (root_rank == rank_ && label.starts_with(label_)) std::this_thread::sleep_for(pause);
  }

 private:
  int rank_;
  std::string label_;
};

struct Late {
  Mode mode = Mode::zero1;
  int before_gradients = -1, before_step = -1;  // a rank that is late there
  TransportFaults* faults = nullptr;
};

/// Makes steps on two ranks until `shown` says that both ranks' times show it.
void expect_shown(const Late& late, const std::function<bool(const StepTimes&, int rank)>& shown) {
  TransportOptions transport_options = testing::test_transport_options();
  transport_options.faults = late.faults;
  std::atomic<bool> seen = false;
  testing::run_ranks(
      2,
      [&](Transport& transport) {
        EngineOptions options;
        options.mode = late.mode;
        Param tall{"tall", {16, 4}};  // columns over both ranks
        if (late.mode == Mode::sharded) tall.placement = sharding::Placement::parse("dp:0");
        Engine engine({tall}, {{"reg", make_rule("reg", {}), 1}}, sharding::Mesh({{"dp", 2}}), transport, options);
        engine.publish_params();
        const std::vector<float> grad(64, 1.0F);
        std::string answer = "no";
        for (int i = 0; i < least_tries || (i < most_tries && answer == "no"); ++i) {
          transport.barrier("together");
          Stopwatch watch;
          if (late.before_gradients == transport.rank()) std::this_thread::sleep_for(pause);
          engine.add_grad(0, grad.data(), DType::f32);
          if (late.before_step == transport.rank()) std::this_thread::sleep_for(pause);
          const StepTimes times = engine.step(0.01).times;
          const double all = watch.lap();
          // Nothing takes longer than all of it.
          for (const double part : {times.step_seconds, times.grad_comm_seconds, times.gather_comm_seconds})
            EXPECT_LE(part, all * 1.001 + 1e-6);
          EXPECT_LE(times.wait_grad_seconds + times.vote_seconds + times.sweep_seconds + times.wait_exchange_seconds +
                        times.wait_gather_seconds,
                    times.step_seconds * 1.001 + 1e-9);
          bool all_show = true;
          for (const std::string& shows_it :
               transport.gather_strings(shown(times, transport.rank()) ? "1" : "0", "seen"))
            all_show = all_show && shows_it == "1";
          if (all_show) answer = "yes";
        }
        if (answer == "yes") seen = true;
      },
      transport_options);
  EXPECT_TRUE(seen) << "in " << most_tries << " steps";
}

TEST(Times, OfGradientsThatComeLate) {
  expect_shown({.before_gradients = 1}, [](const StepTimes& times, int rank) {
    return rank == 1 || (times.wait_grad_seconds > shows && times.grad_comm_seconds > shows &&
                         times.grad_overlap() < 0.9 && times.step_seconds > shows);
  });
}

TEST(Times, OfGradientsBehindTheTrainersWork) {  // they are on their way before the step
  expect_shown({.before_step = 0},
               [](const StepTimes& times, int rank) { return rank == 1 || times.grad_overlap() > 0.5; });
}

TEST(Times, OfTheVote) {
  expect_shown({.mode = Mode::sharded, .before_step = 1},
               [](const StepTimes& times, int rank) { return rank == 1 || times.vote_seconds > shows; });
}

TEST(Times, OfLinesOnTheirWay) {
  for (const char* label : {"partial line sums", "finished lines"})
    for (const int late_rank : {0, 1}) {
      LateMessage faults(late_rank, label);
      expect_shown({.faults = &faults}, [&](const StepTimes& times, int rank) {
        return rank != late_rank || times.wait_exchange_seconds > shows;
      });
    }
}

TEST(Times, OfParametersOnTheirWay) {  // rank 1 hears late of its lines, and so is late with its parameters
  LateMessage faults(1, "finished lines");
  expect_shown({.faults = &faults}, [](const StepTimes& times, int rank) {
    return rank == 1 || (times.wait_gather_seconds > shows && times.gather_comm_seconds > shows);
  });
}

TEST(Times, OfTheSweeps) {
  /// AdamW that takes its time.
  class Slow : public Rule {
   public:
    std::string_view name() const override { return "slow"; }
    std::string settings_text() const override { return "slow"; }
    sharding::View view(MatrixShape) const override { return sharding::View::elements(); }
    std::vector<StateSpec> state(DType) const override { return {}; }
    void update(const RunTensors&, MatrixShape, const StepInfo&, DType, ThreadPool&,
                kernels::SweepHealth&) const override {
      std::this_thread::sleep_for(pause);
    }
  };
  testing::run_ranks(1, [](Transport& transport) {
    Engine engine({{"v", {64}}}, {{"slow", std::make_shared<Slow>(), 1}}, sharding::Mesh(), transport, {});
    engine.publish_params();
    const StepTimes times = engine.step(0.01).times;
    EXPECT_GT(times.sweep_seconds, shows);
    EXPECT_GT(times.step_seconds, shows);
  });
}

}  // namespace
}  // namespace regatta
