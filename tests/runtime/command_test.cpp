// Commands that change settings in the middle of a job, against runs that had the settings all along: the same bits.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
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

TEST(Command, EveryWrongFormIsRefusedAndChangesNothing) {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  struct Wrong {
    std::uint32_t fields;
    int group;
    double value;
    const char* text;
  };
  const std::vector<Wrong> cases{
      {0, -1, 0, "changes nothing"},
      {32, -1, 0, "changes nothing"},
      {Command::lr_given, -1, nan, "lr is nan; expected a learning rate from 0 to 1e6"},
      {Command::lr_given, 0, -0.5, "lr is -0.5"},
      {Command::lr_given, 1, inf, "lr is inf"},
      {Command::lr_given, -1, 1000001, "lr is 1000001"},
      {Command::clip_given, -1, nan, "clip is nan; expected 0 (off) or more"},
      {Command::clip_given, -1, -1, "clip is -1"},
      {Command::clip_given, -1, inf, "clip is inf"},
      {Command::clip_given, 0, 1, "clip is of the whole gradient; give it without a group"},
      {Command::clip_given, 1, 1, "give it without a group"},
      {Command::lr_given, -2, 0.1, "there is no group -2; the groups are matrices, rest"},
      {Command::lr_given, 2, 0.1, "there is no group 2"},
      {Command::lr_given, std::numeric_limits<int>::max(), 0.1, "there is no group 2147483647"},
      {Command::weight_decay_given, -1, -0.5, "weight_decay of rule reg is \"-0.5\""},
      {Command::weight_decay_given, 1, inf, "weight_decay of rule adamw is \"inf\""},
      {Command::weight_decay_given, 0, nan, "weight_decay of rule reg"},
      {Command::momentum_given, -1, 1, "momentum of rule reg is \"1\"; expected a number in [0, 1)"},
      {Command::momentum_given, 0, -0.5, "momentum of rule reg"},
      {Command::momentum_given, 0, nan, "momentum of rule reg"},
      {Command::momentum_given, 1, 0.5, "group rest has no setting momentum"},
      {Command::rho_given, -1, -1, "rho of rule reg"},
      {Command::rho_given, 0, inf, "rho of rule reg"},
      {Command::rho_given, 1, 0.5, "group rest has no setting rho"},
  };
  testing::run_ranks(2, [&](Transport& transport) {
    Engine engine(params(), usual_groups(), Mesh({{"dp", 2}}), transport, engine_options(1));
    put(engine, initial());
    const auto texts = [&] {
      return engine.groups()[0].rule->settings_text() + engine.groups()[1].rule->settings_text();
    };
    const std::string before = texts();
    for (const Wrong& wrong : cases) {
      Command command = settings(wrong.fields | Command::weight_decay_given);  // what is right beside it, neither
      if (wrong.text == std::string("changes nothing")) command.fields = wrong.fields;
      command.group = wrong.group;
      command.weight_decay = 0.25;
      command.lr = command.momentum = command.rho = command.clip = wrong.value;
      if (wrong.fields == Command::weight_decay_given) command.weight_decay = wrong.value;
      const std::vector<std::function<void()>> doors{[&] { engine.changes_of(command); },
                                                     [&] { engine.apply(command); }, [&] { engine.post(command); }};
      for (std::size_t door = 0; door < doors.size(); ++door) {
        const std::string text = door == 2 && transport.rank() == 1 ? "rank 1 cannot post a command" : wrong.text;
        try {
          doors[door]();
          ADD_FAILURE() << "taken by door " << door << "; expected '" << text << "'";
        } catch (const Error& error) {
          EXPECT_EQ(error.code(), Code::invalid_argument);
          EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
        }
      }
    }
    EXPECT_EQ(texts(), before);
    EXPECT_EQ(engine.options().clip, 1);
    StepReport report;
    make_step(engine, 1, 0.01, &report);
    EXPECT_EQ(report.command.kind, Command::Kind::none);  // none of them was sent
    EXPECT_EQ(report.lr, 0.01);
    Command least = settings(Command::lr_given), most = least, off = settings(Command::clip_given);
    most.lr = 1e6;
    for (const Command& right : {least, most, off}) EXPECT_NO_THROW(engine.changes_of(right));
  });
}

// A second one does not push out the first; a kind that is the trainer's affair reaches all ranks as it was posted.
TEST(Command, ReachesAllRanksAsItWasPosted) {
  const Command::Kind kinds[] = {Command::Kind::set, Command::Kind::pause, Command::Kind::resume, Command::Kind::drain,
                                 Command::Kind::save};
  testing::run_ranks(3, [&](Transport& transport) {
    Engine engine(params(), usual_groups(), Mesh({{"dp", 3}}), transport, engine_options(1));
    put(engine, initial());
    int step = 0;
    for (const Command::Kind kind : kinds) {
      Command command = settings(31);
      command.kind = kind;
      command.number = (std::uint64_t{1} << 63) + static_cast<std::uint64_t>(step);
      command.lr = 0.25;
      command.weight_decay = 0.125;
      command.momentum = 0.75;
      command.rho = 0.375;
      command.clip = 3;
      if (transport.rank() == 0) {
        engine.post(command);
        Command second = command;
        second.number = 1;
        EXPECT_THROW(engine.post(second), Error);
      }
      StepReport report;
      make_step(engine, ++step, 0.01, &report);
      EXPECT_EQ(std::memcmp(&report.command, &command, sizeof command), 0) << "rank " << transport.rank();
      make_step(engine, ++step, 0.01, &report);  // once only
      EXPECT_EQ(report.command.kind, Command::Kind::none);
      EXPECT_EQ(report.command.number, 0U);
      EXPECT_EQ(report.lr, 0.25);  // set by the first, untouched by the others
      EXPECT_EQ(engine.options().clip, 3);
    }
  });
}

// From what to what, for every setting and group, in the middle of a job.
TEST(Command, ChangesAreFromWhatHoldsNow) {
  testing::run_ranks(1, [&](Transport& transport) {
    Engine engine(params(), usual_groups(), Mesh({{"dp", 1}}), transport, engine_options(1));
    put(engine, initial());
    make_step(engine, 1, 0.02);
    const auto expect = [&](const Command& command, const std::vector<SettingChange>& expected) {
      const std::vector<SettingChange> changes = engine.changes_of(command);
      ASSERT_EQ(changes.size(), expected.size());
      for (std::size_t i = 0; i < changes.size(); ++i) {
        EXPECT_EQ(changes[i].group, expected[i].group) << i;
        EXPECT_EQ(changes[i].name, expected[i].name) << i;
        EXPECT_EQ(changes[i].from, expected[i].from) << i;
        EXPECT_EQ(changes[i].to, expected[i].to) << i;
      }
      engine.apply(command);
    };
    Command command = settings(31);
    command.lr = 0.25;
    command.weight_decay = 0.125;
    command.momentum = 0.75;
    command.rho = 0.375;
    command.clip = 3;
    expect(command, {{"matrices", "lr", 0.02, 0.25},
                     {"rest", "lr", 0.01, 0.125},
                     {"", "clip", 1, 3},
                     {"matrices", "weight_decay", 0.01, 0.125},
                     {"rest", "weight_decay", 0.01, 0.125},
                     {"matrices", "momentum", 0.95, 0.75},
                     {"matrices", "rho", 0.2, 0.375}});
    make_step(engine, 2, 0.02);  // with the commanded one
    command = settings(Command::lr_given | Command::weight_decay_given);
    command.group = 1;
    command.lr = 0.5;
    command.weight_decay = 0;
    expect(command, {{"rest", "lr", 0.125, 0.5}, {"rest", "weight_decay", 0.125, 0}});
    make_step(engine, 3, 0.02);
    command.lr = 0.75;
    command.fields = Command::lr_given;
    expect(command, {{"rest", "lr", 0.5, 0.75}});
    command.group = 0;
    expect(command, {{"matrices", "lr", 0.25, 0.75}});
    command.group = Command::all_groups;
    command.lr = 1;
    expect(command, {{"matrices", "lr", 0.75, 1}, {"rest", "lr", 0.75, 0.5}});
  });
}

}  // namespace
}  // namespace regatta
