#include "runtime/engine/agreement.h"

#include <cstring>
#include <map>
#include <sstream>

namespace regatta {
namespace {

std::string line(const std::string& text, int index) {
  std::istringstream in(text);
  std::string found = "nothing";
  for (int i = 0; i <= index; ++i)
    if (!std::getline(in, found)) return "nothing";
  return found;
}

}  // namespace

void check_same_plan(const sharding::Plan& plan, Transport& world) {
  const std::vector<std::string> fingerprints =
      world.gather_strings(std::to_string(plan.fingerprint()), "plan fingerprints");
  bool same = true;
  for (const std::string& fingerprint : fingerprints) same = same && fingerprint == fingerprints[0];
  if (same) return;

  const std::vector<std::string> texts = world.gather_strings(plan.text(), "plans");
  for (std::size_t rank = 1; rank < texts.size(); ++rank) {
    if (fingerprints[rank] == fingerprints[0]) continue;
    int differing = 0;
    while (line(texts[0], differing) == line(texts[rank], differing) && line(texts[0], differing) != "nothing")
      ++differing;
    throw Error(Code::invalid_argument, "ranks disagree on what to train: rank 0 has '" + line(texts[0], differing) +
                                            "', rank " + std::to_string(rank) + " has '" +
                                            line(texts[rank], differing) + "'");
  }
}

void check_same_values(const sharding::Plan& plan, std::span<const std::uint64_t> param_hashes, Transport& world) {
  const std::string mine(reinterpret_cast<const char*>(param_hashes.data()), param_hashes.size_bytes());
  const std::vector<std::string> all = world.gather_strings(mine, "hashes of initial values");
  const auto hash_of = [&](int rank, std::size_t param) {
    std::uint64_t hash = 0;
    std::memcpy(&hash, all[rank].data() + param * sizeof(hash), sizeof(hash));
    return hash;
  };
  for (std::size_t p = 0; p < param_hashes.size(); ++p) {
    std::map<std::vector<int>, int> first_with;  // coordinates on the axes that cut the parameter -> rank
    for (int rank = 0; rank < world.world_size(); ++rank) {
      std::vector<int> part;
      for (const sharding::AxisPlacement& cut : plan.params()[p].placement.cuts)
        part.push_back(plan.mesh().coordinate(rank, cut.axis));
      const int first = first_with.try_emplace(part, rank).first->second;
      if (hash_of(rank, p) != hash_of(first, p))
        throw Error(Code::invalid_argument, "initial values of parameter " + plan.params()[p].name +
                                                " differ between ranks " + std::to_string(first) + " and " +
                                                std::to_string(rank) +
                                                ", which hold replicas of it; load or initialise the same model on "
                                                "all of them");
    }
  }
}

}  // namespace regatta
