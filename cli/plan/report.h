#pragma once
// A plan and its alternatives as text for a person, or as one JSON document.

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "cli/plan/comparison.h"

namespace regatta::cli {

struct PlanReport {
  const sharding::Plan& plan;
  std::vector<std::string> rules;         ///< by parameter
  std::vector<Alternative> alternatives;  ///< the first is the plan itself
};

/// A mesh of more ranks than this is summed up by the least and the most of any rank.
inline constexpr int listed_ranks = 16;

std::string plan_text(const PlanReport&);
nlohmann::json plan_json(const PlanReport&);

}  // namespace regatta::cli
