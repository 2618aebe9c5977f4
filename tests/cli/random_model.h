#pragma once
// Small random models on random meshes, for what is said of their plans.

#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "runtime/engine/setup.h"

namespace regatta::cli {

struct Model {
  std::vector<Param> params;
  std::vector<Group> groups;
  sharding::Mesh mesh;
  EngineOptions options;

  sharding::Plan plan() const { return make_plan(params, groups, mesh, options); }
};

inline Model random_model(std::mt19937& random) {
  static const char* const meshes[] = {"dp=1", "dp=2", "dp=5", "tp=3", "dp=2,tp=2", "dp=3,tp=2", "dp=2,tp=3"};
  static const char* const rules[] = {"reg", "row_norm", "column_norm", "muon", "normuon", "adamw"};
  Model model;
  model.mesh = sharding::Mesh::parse(meshes[random() % std::size(meshes)]);
  for (int g = 0; g < 2; ++g) {
    const std::string rule = rules[random() % std::size(rules)];
    model.groups.push_back({rule, make_rule(rule, {}), 1});
  }
  if (random() % 3 == 0) {
    static const char* const norms[] = {"1", "2", "inf"};  // those but 2 also need a number of the whole block
    const std::vector<std::pair<std::string, std::string>> passes{{"passes", std::to_string(1 + random() % 3)},
                                                                  {"p", norms[random() % 3]}};
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

inline std::string text_of(const Model& model) {
  std::string text = model.mesh.text() + (model.options.mode == Mode::zero2 ? " zero2" : " zero1");
  for (const Param& param : model.params) {
    text += " " + param.name + "[";
    for (const std::int64_t extent : param.shape) text += std::to_string(extent) + " ";
    text +=
        "] " + param.placement.text() + " " + model.groups[static_cast<std::size_t>(param.group)].rule->settings_text();
  }
  return text;
}

}  // namespace regatta::cli
