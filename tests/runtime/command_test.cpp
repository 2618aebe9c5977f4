// Commands that change settings in the middle of a job, against runs that had the settings all along: the same bits.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <random>

#include "runtime/engine/engine.h"
#include "runtime/transport/transport.h"
#include "tests/support/spmd.h"

namespace regatta {
namespace {

using sharding::Mesh;
using Weights = std::vector<std::vector<float>>;

constexpr int ranks = 4;
// Several buckets, cut inside rows, so that lines are split between ranks and exchanged.
const std::vector<std::pair<std::vector<std::int64_t>, int>> model{{{10, 6}, 1}, {{5, 12}, 0}, {{14, 4}, 0}, {{6}, 1}};

std::vector<float> values(std::uint64_t seed, std::int64_t numel) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(numel));
  for (float& value : values) value = normal(random);
  return values;
}

std::vector<Param> params() {
  std::vector<Param> params;
  for (const auto& [shape, group] : model)
    params.push_back({"p" + std::to_string(params.size()), shape, DType::f32, {}, {}, {}, group});
  return params;
}

std::vector<Group> usual_groups() {
  return {{"matrices", make_rule("reg", {}), 1}, {"rest", make_rule("adamw", {}), 0.5}};
}

EngineOptions engine_options(double clip) {
  EngineOptions options;
  options.cut = sharding::Cut::element;
  options.clip = clip;
  options.bucket_bytes = 256;
  return options;
}

void make_step(Engine& engine, int step, double lr, StepReport* report = nullptr) {
  for (int p = static_cast<int>(model.size()) - 1; p >= 0; --p)
    engine.add_grad(p, values(1000 * step + 10 * engine.micro_batch_index(0) + p, engine.param(p).numel).data(),
                    DType::f32);
  const StepReport made = engine.step(lr);
  if (report) *report = made;
}

void put(Engine& engine, const Weights& weights) {
  for (std::size_t p = 0; p < weights.size(); ++p)
    std::memcpy(engine.param(static_cast<int>(p)).data, weights[p].data(), weights[p].size() * 4);
  engine.publish_params();
}

Weights get(Engine& engine) {
  Weights all;
  for (std::size_t p = 0; p < model.size(); ++p) {
    const ParamView view = engine.param(static_cast<int>(p));
    all.emplace_back(static_cast<const float*>(view.data), static_cast<const float*>(view.data) + view.numel);
  }
  return all;
}

Weights initial() {
  Weights all;
  for (std::size_t p = 0; p < model.size(); ++p) {
    std::int64_t numel = 1;
    for (std::int64_t dim : model[p].first) numel *= dim;
    all.push_back(values(100 + p, numel));
  }
  return all;
}

// Five steps on four ranks; the command is posted for the vote of step 2 and so holds from step 3 on.
std::vector<Weights> commanded(const Command& command, std::vector<StepReport>& reports) {
  std::vector<Weights> after;
  std::mutex mutex;
  testing::run_ranks(ranks, [&](Transport& transport) {
    Engine engine(params(), usual_groups(), Mesh({{"dp", ranks}}), transport, engine_options(1));
    put(engine, initial());
    for (int step = 1; step <= 5; ++step) {
      if (step == 2 && transport.rank() == 0) engine.post(command);
      StepReport report;
      make_step(engine, step, 0.01, &report);
      EXPECT_EQ(report.command.number, step == 2 ? command.number : 0) << "rank " << transport.rank();
      const Weights mine = get(engine);
      const std::scoped_lock lock(mutex);
      if (static_cast<int>(after.size()) < step) {
        after.push_back(mine);
        reports.push_back(report);
      }
      EXPECT_EQ(after[step - 1], mine) << "rank " << transport.rank() << ", step " << step;
    }
  });
  return after;
}

// Two steps as usual; then the whole state moves to a new engine that was made with other settings.
Weights written_in(const std::vector<Group>& groups, double clip, double lr) {
  Weights result;
  std::mutex mutex;
  testing::run_ranks(ranks, [&](Transport& transport) {
    Engine first(params(), usual_groups(), Mesh({{"dp", ranks}}), transport, engine_options(1));
    put(first, initial());
    for (int step = 1; step <= 2; ++step) make_step(first, step, 0.01);
    Engine second(params(), groups, Mesh({{"dp", ranks}}), transport, engine_options(clip));
    put(second, get(first));
    const std::vector<StatePart> from = first.state_parts(), to = second.state_parts();
    ASSERT_EQ(from.size(), to.size());
    for (std::size_t i = 0; i < to.size(); ++i) second.load_state(to[i], from[i].data);
    second.set_step_count(2);
    for (int step = 3; step <= 5; ++step) make_step(second, step, lr);
    const Weights mine = get(second);
    const std::scoped_lock lock(mutex);
    if (result.empty()) result = mine;
    EXPECT_EQ(result, mine);
  });
  return result;
}

Command settings(std::uint32_t fields) {
  Command command;
  command.kind = Command::Kind::set;
  command.fields = fields;
  command.number = 7;
  return command;
}

void expect_equal(const Command& command, const std::vector<Group>& groups, double clip, double lr) {
  std::vector<StepReport> reports;
  const std::vector<Weights> got = commanded(command, reports);
  EXPECT_EQ(got.back(), written_in(groups, clip, lr));
  // Before it holds nothing has changed, and afterwards something has.
  std::vector<StepReport> quiet_reports;
  const std::vector<Weights> quiet = commanded({}, quiet_reports);
  EXPECT_EQ(got[1], quiet[1]);
  EXPECT_NE(got[2], quiet[2]);
}

TEST(Command, LearningRateOfAllGroupsKeepsTheirScales) {
  Command command = settings(Command::lr_given);
  command.lr = 0.003;
  expect_equal(command, usual_groups(), 1, 0.003);
  std::vector<StepReport> reports;
  commanded(command, reports);
  EXPECT_EQ(reports[1].lr, 0.01);
  EXPECT_EQ(reports[2].lr, 0.003);
  EXPECT_EQ(reports[2].groups[1].lr, 0.003 * 0.5);
}

TEST(Command, LearningRateOfOneGroupIsItsOwn) {
  Command command = settings(Command::lr_given);
  command.lr = 0.0025;
  command.group = 1;
  std::vector<Group> groups = usual_groups();
  groups[1].lr_scale = 0.25;  // of 0.01
  expect_equal(command, groups, 1, 0.01);
}

TEST(Command, SettingsOfRules) {
  Command command = settings(Command::weight_decay_given | Command::momentum_given | Command::rho_given);
  command.weight_decay = 0.3;
  command.momentum = 0.5;
  command.rho = 0.7;
  const std::vector<std::pair<std::string, std::string>> reg{
      {"weight_decay", "0.3"}, {"momentum", "0.5"}, {"rho", "0.7"}},
      adamw{{"weight_decay", "0.3"}};
  expect_equal(command, {{"matrices", make_rule("reg", reg), 1}, {"rest", make_rule("adamw", adamw), 0.5}}, 1, 0.01);
  command.group = 0;
  expect_equal(command, {{"matrices", make_rule("reg", reg), 1}, {"rest", make_rule("adamw", {}), 0.5}}, 1, 0.01);
}

TEST(Command, Clip) {
  Command command = settings(Command::clip_given);
  command.clip = 0.01;
  expect_equal(command, usual_groups(), 0.01, 0.01);
}

TEST(Command, SaysWhatItWouldChangeAndRefusesWhatCannotBe) {
  testing::run_ranks(1, [&](Transport& transport) {
    Engine engine(params(), usual_groups(), Mesh({{"dp", 1}}), transport, engine_options(1));
    put(engine, initial());
    const auto refused = [&](const Command& command) -> std::string {
      try {
        engine.post(command);
      } catch (const Error& error) {
        return error.what();
      }
      return "accepted";
    };
    Command command = settings(Command::rho_given | Command::lr_given);
    command.rho = 0.1;
    command.lr = 0.002;
    std::vector<SettingChange> changes = engine.changes_of(command);
    ASSERT_EQ(changes.size(), 3u);
    EXPECT_TRUE(std::isnan(changes[0].from));
    EXPECT_EQ(changes[1].to, 0.001);
    EXPECT_EQ(changes[2].group, "matrices");
    EXPECT_EQ(changes[2].from, 0.2);

    command.group = 1;
    EXPECT_NE(refused(command).find("group rest has no setting rho"), std::string::npos);
    command.group = 5;
    EXPECT_NE(refused(command).find("no group 5"), std::string::npos);
    EXPECT_NE(refused(settings(0)).find("changes nothing"), std::string::npos);
    command = settings(Command::momentum_given);
    command.momentum = 1.5;
    EXPECT_NE(refused(command).find("momentum of rule reg"), std::string::npos);
    command = settings(Command::lr_given);
    command.lr = std::nan("");
    EXPECT_NE(refused(command).find("lr is"), std::string::npos);
    command = settings(Command::clip_given);
    command.group = 0;
    EXPECT_NE(refused(command).find("without a group"), std::string::npos);
    command.group = Command::all_groups;
    EXPECT_EQ(refused(command), "accepted");
    EXPECT_NE(refused(command).find("waiting"), std::string::npos);
  });
}

}  // namespace
}  // namespace regatta
