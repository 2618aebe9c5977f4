#include "cli/rank_outcome.h"

#include <algorithm>

namespace regatta::cli {
namespace {

bool began_here(const RankOutcome& rank) { return rank.failed && !rank.secondary; }

bool is_bad_input(const std::vector<RankOutcome>& ranks) {
  const bool any = std::any_of(ranks.begin(), ranks.end(), began_here);
  return any && std::all_of(ranks.begin(), ranks.end(), [](const RankOutcome& rank) {
           return !began_here(rank) || rank.code == Code::invalid_argument;
         });
}

}  // namespace

int exit_code_of(const std::vector<RankOutcome>& ranks) {
  if (is_bad_input(ranks)) return 2;
  return std::any_of(ranks.begin(), ranks.end(), [](const RankOutcome& rank) { return rank.failed; }) ? 1 : 0;
}

std::string line_of(const std::vector<RankOutcome>& ranks, int rank) {
  const RankOutcome& mine = ranks[static_cast<std::size_t>(rank)];
  if (!mine.failed) return {};
  if (mine.agreed) return rank == 0 ? mine.reason : std::string();
  const bool shared = std::all_of(ranks.begin(), ranks.end(), [&](const RankOutcome& other) {
    return other.failed && other.reason == mine.reason;
  });
  if (shared) return rank == 0 ? mine.reason : std::string();
  const std::string line = "rank " + std::to_string(rank) + ": " + mine.reason;
  if (!is_bad_input(ranks)) return line;
  const auto first = std::find_if(ranks.begin(), ranks.end(), began_here);
  return first - ranks.begin() == rank ? line : std::string();
}

}  // namespace regatta::cli
