// What `regatta plan` prints against the plan itself and against counts element by element, on random models and
// meshes.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <set>
#include <sstream>

#include "cli/plan/collectives.h"
#include "cli/plan/comparison.h"
#include "cli/plan/model_shapes.h"
#include "cli/plan/report.h"
#include "runtime/engine/setup.h"
#include "runtime/error.h"

namespace regatta::cli {
namespace {

struct Model {
  std::vector<Param> params;
  std::vector<Group> groups;
  sharding::Mesh mesh;
  EngineOptions options;

  sharding::Plan plan() const { return make_plan(params, groups, mesh, options); }
};

Model random_model(std::mt19937& random) {
  static const char* const meshes[] = {"dp=1", "dp=2", "dp=5", "tp=3", "dp=2,tp=2", "dp=3,tp=2", "dp=2,tp=3"};
  static const char* const rules[] = {"reg", "row_norm", "column_norm", "muon", "normuon", "adamw"};
  Model model;
  model.mesh = sharding::Mesh::parse(meshes[random() % std::size(meshes)]);
  for (int g = 0; g < 2; ++g) {
    const std::string rule = rules[random() % std::size(rules)];
    model.groups.push_back({rule, make_rule(rule, {}), 1});
  }
  if (random() % 3 == 0) {
    const std::vector<std::pair<std::string, std::string>> passes{{"passes", std::to_string(2 + random() % 2)}};
    model.groups[0] = {"reg", make_rule("reg", passes), 1};
  }
  model.groups.push_back({"adamw", make_rule("adamw", {}), 1});
  model.options.mode = static_cast<Mode>(random() % 2);
  model.options.cut = static_cast<sharding::Cut>(random() % 3);
  model.options.bucket_bytes = 1 + static_cast<std::int64_t>(random() % 400);
  model.options.micro_batches = 1 + static_cast<int>(random() % 3);
  for (int p = 0; p < 5; ++p) {
    Param param;
    param.name = "p" + std::to_string(p);
    param.shape = {1 + static_cast<std::int64_t>(random() % 9), 1 + static_cast<std::int64_t>(random() % 9)};
    param.group = static_cast<int>(random() % 2);
    if (random() % 4 == 0) {
      param.shape = {3 + static_cast<std::int64_t>(random() % 5)};
      param.group = 2;
    } else if (model.mesh.size("tp") > 1) {
      static const char* const places[] = {"", "tp:0", "tp:1"};
      param.placement = sharding::Placement::parse(places[random() % 3]);
    }
    if (param.shape.size() == 2 && param.shape[0] > 3 && random() % 3 == 0) param.block_rows = {2, param.shape[0] - 2};
    param.dtype = random() % 4 == 0 ? DType::bf16 : DType::f32;
    model.params.push_back(std::move(param));
  }
  return model;
}

/// Lines that several ranks hold elements of, counted where the replica's part counts.
LineCount lines_by_element(const sharding::Plan& plan, std::size_t p) {
  LineCount count;
  const sharding::ParamSpec& spec = plan.params()[p];
  for (std::size_t b = 0; b < spec.blocks.size(); ++b)
    for (const Line line : spec.views[b].passes) {
      const std::int64_t lines = line == Line::row ? spec.blocks[b].rows : spec.blocks[b].cols;
      std::vector<std::set<int>> holders(static_cast<std::size_t>(lines));
      for (int rank = 0; rank < plan.mesh().world_size(); ++rank) {
        if (!plan.primary(rank, static_cast<int>(p))) continue;
        for (const sharding::Piece& piece : plan.layout(rank).pieces) {
          if (piece.param != static_cast<int>(p) || piece.block != static_cast<int>(b)) continue;
          for (std::int64_t i = piece.part.run.begin; i < piece.part.run.end; ++i) {
            const std::int64_t row = piece.part.rows.begin + i / piece.part.cols.size();
            const std::int64_t col = piece.part.cols.begin + i % piece.part.cols.size();
            holders[static_cast<std::size_t>(line == Line::row ? row : col)].insert(rank);
          }
        }
      }
      count.all += lines;
      for (const std::set<int>& who : holders) count.open += who.size() > 1 ? 1 : 0;
    }
  return count;
}

std::string text_of(const Model& model) {
  std::string text = model.mesh.text() + (model.options.mode == Mode::zero2 ? " zero2" : " zero1");
  for (const Param& param : model.params) {
    text += " " + param.name + "[";
    for (const std::int64_t extent : param.shape) text += std::to_string(extent) + " ";
    text +=
        "] " + param.placement.text() + " " + model.groups[static_cast<std::size_t>(param.group)].rule->settings_text();
  }
  return text;
}

TEST(PlanFigures, LinesAreOpenWhereSeveralRanksHoldThem) {
  std::mt19937 random(31);
  std::int64_t open = 0, closed = 0;
  for (int i = 0; i < 120; ++i) {
    const Model model = random_model(random);
    const sharding::Plan plan = model.plan();
    const std::vector<LineCount> counts = count_lines(plan);
    ASSERT_EQ(counts.size(), model.params.size());
    for (std::size_t p = 0; p < counts.size(); ++p) {
      if (plan.params()[p].views[0].kind == sharding::View::Kind::matrix) continue;  // its owner has all of it
      const LineCount expected = lines_by_element(plan, p);
      EXPECT_EQ(counts[p].all, expected.all) << model.params[p].name << " of " << text_of(model);
      EXPECT_EQ(counts[p].open, expected.open) << model.params[p].name << " of " << text_of(model);
      EXPECT_EQ(counts[p].closed(), expected.all - expected.open);
      open += expected.open;
      closed += expected.closed();
    }
  }
  EXPECT_GT(open, 500);
  EXPECT_GT(closed, 500);
}

TEST(PlanFigures, MessagesAddUpToWhatARankSends) {
  std::mt19937 random(32);
  std::map<std::string, int> seen;
  for (int i = 0; i < 150; ++i) {
    const Model model = random_model(random);
    const sharding::Plan plan = model.plan();
    const int ranks = plan.mesh().world_size();
    std::vector<sharding::WireBytes> sums(static_cast<std::size_t>(ranks));
    std::int64_t lines = 0;
    for (const Collective& c : collectives_of(plan)) {
      ++seen[c.name.substr(0, c.name.find(','))];
      ASSERT_EQ(c.bytes.size(), static_cast<std::size_t>(ranks));
      std::int64_t all = 0;
      for (std::size_t r = 0; r < c.bytes.size(); ++r) {
        all += c.bytes[r];
        std::int64_t& sum = c.name.starts_with("reduce-scatter")                         ? sums[r].reduce_scatter
                            : c.name.starts_with("all-gather")                           ? sums[r].all_gather
                            : c.name.starts_with("vote") || c.name.starts_with("health") ? sums[r].vote
                                                                                         : sums[r].exchange;
        sum += c.bytes[r];
      }
      EXPECT_GT(all, 0) << c.name << " in " << text_of(model);
      EXPECT_GT(c.calls, 0) << c.name;
      if (c.name.starts_with("open lines")) lines += c.lines;
      const std::string peers = c.name.find("gradients") != std::string::npos && c.name.starts_with("reduce")
                                    ? "dp: " + std::to_string(plan.mesh().size("dp")) + " ranks"
                                : c.name.starts_with("vote") ? "all " + std::to_string(ranks) + " ranks"
                                                             : c.among;
      EXPECT_EQ(c.among, peers);
      const auto buckets = static_cast<std::int64_t>(plan.bucket_count());
      if (c.name.starts_with("all-gather")) {
        EXPECT_EQ(c.calls, buckets);
      }
      if (c.name.starts_with("reduce-scatter")) {
        EXPECT_EQ(c.calls, buckets * (model.options.mode == Mode::zero2 ? model.options.micro_batches : 1));
      }
    }
    for (int r = 0; r < ranks; ++r) EXPECT_EQ(sums[static_cast<std::size_t>(r)], plan.wire_bytes(r)) << text_of(model);
    std::int64_t shared = 0;
    for (const auto& round : plan.rounds())
      for (const sharding::Share& share : round) shared += share.lines.size();
    EXPECT_EQ(lines, shared);
  }
  for (const char* name :
       {"reduce-scatter of gradients", "vote: finite gradients", "open lines to their owners", "their norms back",
        "directions to matrix owners", "their updates back", "all-gather of parameters", "health figures"})
    EXPECT_GT(seen[name], 0) << name;
}

/// Sums over all ranks that a hand can count: what is kept once in all, and what on each replica.
TEST(PlanFigures, AlternativesKeepWhatTheirRulesDo) {
  Model model;
  model.mesh = sharding::Mesh::parse("dp=3,tp=2");
  model.groups = {{"reg", make_rule("reg", {}), 1}, {"adamw", make_rule("adamw", {}), 1}};
  model.params = {{"cut", {8, 6}, DType::f32, {}, sharding::Placement::parse("tp:0"), {}, 0},
                  {"narrow", {5, 7}, DType::bf16, {}, {}, {}, 0},
                  {"gain", {9}, DType::f32, {}, {}, {}, 1}};
  for (const DType momentum : {DType::f32, DType::bf16})
    for (const char* chosen : {"reg", "muon", "row_norm"}) {
      model.options.momentum_dtype = momentum;
      model.groups[0] = {chosen, make_rule(chosen, {}), 1};
      const sharding::Plan plan = model.plan();
      const std::vector<Alternative> all = compare(plan, model.params, model.groups, model.options);
      std::vector<std::string> names;
      for (const Alternative& each : all) names.push_back(each.name);
      std::vector<std::string> expected{std::string(chosen) + " + adamw (this plan)", "adamw"};
      for (const char* other : {"reg", "muon"})
        if (std::string(other) != chosen) expected.push_back(std::string(other) + " for the matrices");
      EXPECT_EQ(names, expected);
      const std::int64_t held = 48 + 2 * (35 + 9);  // elements of optimizer state: replicas on each tp rank
      const std::int64_t size = size_of(momentum);
      for (const Alternative& each : all) {
        ASSERT_EQ(each.ranks.size(), 6U);
        RankMemory sum;
        std::int64_t reduced = 0, gathered = 0;
        for (std::size_t r = 0; r < 6; ++r) {
          const RankMemory& m = each.ranks[r].memory;
          EXPECT_EQ(m.parameters, 24 * 4 + 35 * 2 + 9 * 4);
          EXPECT_EQ(each.ranks[r].memory_total(), m.parameters + m.gradients + m.state + m.master + m.matrices);
          sum.state += m.state;
          sum.master += m.master;
          sum.matrices += m.matrices;
          reduced += each.ranks[r].wire.reduce_scatter;
          gathered += each.ranks[r].wire.all_gather;
        }
        // Two rows of three, in each two thirds of everything are sent by or to each.
        EXPECT_EQ(reduced, 2 * 2 * (24 * 4 + 35 * 2 + 9 * 4)) << each.name;
        EXPECT_EQ(gathered, reduced) << each.name;
        EXPECT_EQ(sum.master, 2 * 35 * 4) << each.name;
        const bool adamw = each.name == "adamw", muon = each.name.starts_with("muon");
        if (!adamw) {
          EXPECT_EQ(sum.state, size * (held - 18) + (size + 4) * 18) << each.name;
        }
        if (adamw) {
          EXPECT_EQ(sum.state, (size + 4) * held) << each.name;
        }
        EXPECT_EQ(sum.matrices > 0, muon) << each.name;
      }
      for (std::size_t r = 0; r < 6; ++r) {
        EXPECT_EQ(all[0].ranks[r].wire, plan.wire_bytes(static_cast<int>(r)));
        EXPECT_EQ(all[1].ranks[r].wire.exchange, 0);
      }
    }
  model.groups[0] = model.groups[1];
  EXPECT_EQ(compare(model.plan(), model.params, model.groups, model.options).size(), 1U);
}

std::vector<std::string> words_of(const std::string& line) {
  std::istringstream stream(line);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

/// The last `count` words of a line as numbers.
std::vector<std::int64_t> numbers_of(const std::string& line, std::size_t count) {
  const std::vector<std::string> words = words_of(line);
  std::vector<std::int64_t> numbers;
  for (std::size_t i = words.size() - std::min(count, words.size()); i < words.size(); ++i)
    numbers.push_back(std::stoll(words[i]));
  return numbers;
}

const std::vector<std::string> wire_keys{"reduce_scatter", "all_gather", "exchange", "vote", "total"};
const std::vector<std::string> memory_keys{"parameters", "gradients", "state", "master", "whole_matrices", "total"};

std::vector<std::int64_t> values_of(const nlohmann::json& object, const std::vector<std::string>& keys) {
  EXPECT_EQ(object.size(), keys.size());
  std::vector<std::int64_t> values;
  for (const std::string& key : keys) values.push_back(object.at(key));
  return values;
}

/// Every number of the document is the plan's own, and the text has the same numbers.
TEST(PlanFigures, DocumentAndTextSayWhatThePlanSays) {
  std::mt19937 random(33);
  for (int i = 0; i < 40; ++i) {
    Model model = random_model(random);
    if (i % 8 == 7) model.mesh = sharding::Mesh::parse(i % 16 == 7 ? "dp=16" : "dp=17");
    if (i % 8 == 7)
      for (Param& param : model.params) param.placement = {};
    SCOPED_TRACE(text_of(model));
    const sharding::Plan plan = model.plan();
    PlanReport report{plan, {}, compare(plan, model.params, model.groups, model.options)};
    for (const Param& param : model.params)
      report.rules.push_back(model.groups[static_cast<std::size_t>(param.group)].name);
    const nlohmann::json document = plan_json(report);
    const std::string text = plan_text(report);
    const std::vector<std::string> lines = lines_of(text);
    const auto ranks = static_cast<std::size_t>(plan.mesh().world_size());
    EXPECT_EQ(document["mesh"], plan.mesh().text());
    EXPECT_EQ(std::stoull(document["fingerprint"].get<std::string>(), nullptr, 16), plan.fingerprint());
    EXPECT_EQ(words_of(lines.back()).back(), document["fingerprint"]);
    EXPECT_EQ(document["buckets"], plan.bucket_count());

    const std::vector<LineCount> counts = count_lines(plan);
    ASSERT_EQ(document["params"].size(), model.params.size());
    for (std::size_t p = 0; p < model.params.size(); ++p) {
      const nlohmann::json& one = document["params"][p];
      EXPECT_EQ(one["name"], model.params[p].name);
      EXPECT_EQ(one["shape"], nlohmann::json(model.params[p].shape));
      EXPECT_EQ(one["rule"], report.rules[p]);
      EXPECT_EQ(one["placement"], model.params[p].placement.text());
      EXPECT_EQ(one["blocks"], plan.params()[p].blocks.size());
      EXPECT_EQ(one["lines"], counts[p].all);
      EXPECT_EQ(one["open_lines"], counts[p].open);
      EXPECT_EQ(one["closed_lines"], counts[p].all - counts[p].open);
      EXPECT_EQ(one["bucket"], plan.layout(0).params[p].bucket);
      const std::vector<std::string> words = words_of(lines[p + 1]);
      std::string shape;
      for (const std::int64_t extent : model.params[p].shape)
        shape += (shape.empty() ? "" : "x") + std::to_string(extent);
      const std::string place = model.params[p].placement.text();
      EXPECT_EQ(words,
                (std::vector<std::string>{
                    model.params[p].name, shape, report.rules[p], place.empty() ? "replicate" : place, one["view"],
                    std::to_string(counts[p].closed()), std::to_string(counts[p].open), one["bucket"].dump()}));
    }

    const std::vector<Collective> step = collectives_of(plan);
    ASSERT_EQ(document["collectives"].size(), step.size());
    const std::size_t first = model.params.size() + 4;
    for (std::size_t c = 0; c < step.size(); ++c) {
      const nlohmann::json& one = document["collectives"][c];
      std::int64_t least = step[c].bytes[0], most = least, sum = 0;
      for (const std::int64_t bytes : step[c].bytes) {
        least = std::min(least, bytes);
        most = std::max(most, bytes);
        sum += bytes;
      }
      EXPECT_EQ(one["name"], step[c].name);
      EXPECT_EQ(one["calls"], step[c].calls);
      EXPECT_EQ(one["open_lines"], step[c].lines);
      EXPECT_EQ(one["among"], step[c].among);
      EXPECT_EQ(one["when"], step[c].when);
      EXPECT_EQ(one["bytes"]["least"], least);
      EXPECT_EQ(one["bytes"]["most"], most);
      EXPECT_EQ(one["bytes"]["sum"], sum);
      std::string line = lines[first + c];
      EXPECT_EQ(line.find("  " + step[c].name), 0U) << line;
      line = line.substr(0, line.size() - step[c].when.size());
      const std::vector<std::int64_t> shown = numbers_of(line, 2);
      EXPECT_EQ(shown, (std::vector<std::int64_t>{least, most}));
    }
    if (step.empty()) {
      EXPECT_NE(text.find("A step on one rank sends nothing."), std::string::npos);
    }

    ASSERT_EQ(document["ranks"].size(), ranks);
    for (std::size_t r = 0; r < ranks; ++r) {
      const sharding::WireBytes wire = plan.wire_bytes(static_cast<int>(r));
      const RankMemory memory = memory_of(plan, static_cast<int>(r), model.params, model.groups, model.options);
      EXPECT_EQ(document["ranks"][r]["rank"], r);
      EXPECT_EQ(
          values_of(document["ranks"][r]["wire_bytes"], wire_keys),
          (std::vector<std::int64_t>{wire.reduce_scatter, wire.all_gather, wire.exchange, wire.vote, wire.total()}));
      EXPECT_EQ(values_of(document["ranks"][r]["memory_bytes"], memory_keys),
                (std::vector<std::int64_t>{
                    memory.parameters, memory.gradients, memory.state, memory.master, memory.matrices,
                    memory.parameters + memory.gradients + memory.state + memory.master + memory.matrices}));
    }
    ASSERT_EQ(document["comparison"].size(), report.alternatives.size());
    for (std::size_t a = 0; a < report.alternatives.size(); ++a) {
      const nlohmann::json& one = document["comparison"][a];
      EXPECT_EQ(one["optimizer"], report.alternatives[a].name);
      for (const bool of_wire : {true, false})
        for (const std::string& key : of_wire ? wire_keys : memory_keys) {
          std::vector<std::int64_t> values;
          for (const RankCost& cost : report.alternatives[a].ranks) {
            const sharding::WireBytes& w = cost.wire;
            const RankMemory& m = cost.memory;
            const std::map<std::string, std::int64_t> by_key =
                of_wire
                    ? std::map<std::string, std::int64_t>{{"reduce_scatter", w.reduce_scatter},
                                                          {"all_gather", w.all_gather},
                                                          {"exchange", w.exchange},
                                                          {"vote", w.vote},
                                                          {"total", w.total()}}
                    : std::map<std::string, std::int64_t>{
                          {"parameters", m.parameters}, {"gradients", m.gradients},     {"state", m.state},
                          {"master", m.master},         {"whole_matrices", m.matrices}, {"total", cost.memory_total()}};
            values.push_back(by_key.at(key));
          }
          const char* const part = of_wire ? "wire_bytes" : "memory_bytes";
          EXPECT_EQ(one["least"][part][key], *std::min_element(values.begin(), values.end()));
          EXPECT_EQ(one["most"][part][key], *std::max_element(values.begin(), values.end()));
          EXPECT_EQ(one["sum"][part][key], std::accumulate(values.begin(), values.end(), std::int64_t{0}));
          if (key == "exchange") {
            EXPECT_EQ(one["exchange_by_rank"], nlohmann::json(values));
          }
        }
    }

    // Tables of ranks: each, or the least and the most of many.
    std::map<std::string, std::vector<std::vector<std::int64_t>>> tables;
    std::size_t columns = 0;
    for (const std::string& line : lines) {
      if (line.starts_with("bytes sent in a step")) columns = 5;
      if (line.starts_with("bytes kept")) columns = 6;
      if (line.empty() || columns == 0 || !line.starts_with("  ")) continue;
      const std::vector<std::string> words = words_of(line);
      std::string name;
      for (std::size_t w = 0; w + columns < words.size(); ++w) name += (name.empty() ? "" : " ") + words[w];
      tables[name].push_back(numbers_of(line, columns));
    }
    if (ranks <= listed_ranks) {
      for (std::size_t r = 0; r < ranks; ++r)
        EXPECT_EQ(
            tables.at("rank " + std::to_string(r)),
            (std::vector<std::vector<std::int64_t>>{values_of(document["ranks"][r]["wire_bytes"], wire_keys),
                                                    values_of(document["ranks"][r]["memory_bytes"], memory_keys)}));
    } else {
      for (const char* which : {"least", "most"})
        EXPECT_EQ(tables.at(which + std::string(" of ") + std::to_string(ranks) + " ranks"),
                  (std::vector<std::vector<std::int64_t>>{
                      values_of(document["comparison"][0][which]["wire_bytes"], wire_keys),
                      values_of(document["comparison"][0][which]["memory_bytes"], memory_keys)}));
      EXPECT_EQ(tables.count("rank 0"), 0U);
    }
    for (const nlohmann::json& one : document["comparison"])
      if (report.alternatives.size() > 1) {
        EXPECT_EQ(tables.at(one["optimizer"]),
                  (std::vector<std::vector<std::int64_t>>{values_of(one["most"]["wire_bytes"], wire_keys),
                                                          values_of(one["most"]["memory_bytes"], memory_keys)}));
      }
  }
}

TEST(PlanFigures, ViewsAreNamed) {
  const auto view = [](const std::string& rule, std::vector<std::pair<std::string, std::string>> settings,
                       std::vector<std::int64_t> shape) {
    Model model;
    model.groups = {{rule, make_rule(rule, settings), 1}};
    model.params = {{"w", std::move(shape), DType::f32, {}, {}, {}, 0}};
    const sharding::Plan plan = model.plan();
    return plan_json({plan, {rule}, compare(plan, model.params, model.groups, model.options)})["params"][0]["view"]
        .get<std::string>();
  };
  EXPECT_EQ(view("adamw", {}, {4, 8}), "elements");
  EXPECT_EQ(view("reg", {}, {4, 8}), "rows");
  EXPECT_EQ(view("reg", {}, {8, 4}), "columns");
  EXPECT_EQ(view("reg", {{"passes", "2"}}, {4, 8}), "columns+rows");
  EXPECT_EQ(view("reg", {{"p", "1"}}, {4, 8}), "rows+block");
  EXPECT_EQ(view("muon", {}, {4, 8}), "matrix");
}

TEST(PlanFigures, ShapesAsTheyAreWritten) {
  const auto shape = [](const std::string& text) { return parse_shape(text).shape; };
  using Shape = std::vector<std::int64_t>;
  EXPECT_EQ(parse_shape("mlp.up=8960x1536").name, "mlp.up");
  EXPECT_EQ(shape("mlp.up=8960x1536"), (Shape{8960, 1536}));
  EXPECT_EQ(parse_shape("a=b=3").name, "a=b");
  EXPECT_EQ(shape("a=b=3"), (Shape{3}));
  EXPECT_EQ(shape("e=4x5x6"), (Shape{4, 5, 6}));
  for (const std::string wrong :
       {"", "w", "=4", "w=", "w=0", "w=4x0", "w=-4", "w=4x", "w=x4", "w=4xx4", "w=4,4", "w=4x4y", "w=a", "w=4x 4"}) {
    try {
      parse_shape(wrong);
      ADD_FAILURE() << "'" << wrong << "' was taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_argument);
      EXPECT_NE(std::string(error.what()).find("--shape got '" + wrong + "'; expected NAME=ROWSxCOLS"),
                std::string::npos);
    }
  }
}

}  // namespace
}  // namespace regatta::cli
