// What `regatta plan` prints against the plan itself, as a document and as text, and how shapes are written.

#include "cli/plan/report.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <sstream>

#include "cli/plan/collectives.h"
#include "cli/plan/comparison.h"
#include "cli/plan/model_shapes.h"
#include "runtime/error.h"
#include "tests/cli/random_model.h"

namespace regatta::cli {
namespace {

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
TEST(PlanReport, DocumentAndTextSayWhatThePlanSays) {
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

TEST(PlanReport, ViewsAreNamed) {
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

TEST(PlanReport, ShapesAsTheyAreWritten) {
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
