#include "runtime/engine/agreement.h"

#include <cstring>
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

void check_same_values(std::span<const std::uint64_t> bucket_hashes, std::span<const std::string> bucket_names,
                       Transport& group) {
  const std::string mine(reinterpret_cast<const char*>(bucket_hashes.data()), bucket_hashes.size_bytes());
  const std::vector<std::string> all = group.gather_strings(mine, "hashes of initial values");
  for (std::size_t rank = 1; rank < all.size(); ++rank)
    for (std::size_t b = 0; b < bucket_hashes.size(); ++b)
      if (std::memcmp(all[0].data() + b * 8, all[rank].data() + b * 8, 8) != 0)
        throw Error(Code::invalid_argument, "initial parameter values differ between data-parallel ranks 0 and " +
                                                std::to_string(rank) + " in bucket " + std::to_string(b) + " (" +
                                                bucket_names[b] +
                                                "); load or initialise the same model on all of them");
}

}  // namespace regatta
