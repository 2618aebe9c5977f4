#pragma once
// The order of a job's windows and the tokens of its files once more, from the published description: a second
// implementation that shares nothing with the program.

#include <cstdint>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace regatta::finetune::reference {

/// SplitMix64's output for the state after `value`.
inline std::uint64_t splitmix(std::uint64_t value) {
  std::uint64_t z = value + 0x9e3779b97f4a7c15ULL;
  z ^= z >> 30;
  z *= 0xbf58476d1ce4e5b9ULL;
  z ^= z >> 27;
  z *= 0x94d049bb133111ebULL;
  z ^= z >> 31;
  return z;
}

/// The window at place `index` of the job: six rounds of a balanced Feistel network over the smallest 4^h that holds
/// all windows, with a key of seed and epoch; walked until it lands on a window.
inline std::int64_t window(std::int64_t index, std::int64_t windows, std::uint64_t seed) {
  int h = 1;
  std::int64_t domain = 4;
  while (domain < windows) {
    ++h;
    domain *= 4;
  }
  const std::uint64_t side = std::uint64_t{1} << h;
  const auto epoch = static_cast<std::uint64_t>(index / windows);
  const std::uint64_t key = splitmix(seed ^ splitmix(epoch));
  auto place = static_cast<std::uint64_t>(index - static_cast<std::int64_t>(epoch) * windows);
  for (;;) {
    std::uint64_t high = place / side, low = place % side;
    for (std::uint64_t round = 0; round < 6; ++round) {
      const std::uint64_t mixed = high ^ (splitmix(key + round * 0x632be59bd9b4e019ULL + low) % side);
      high = low;
      low = mixed;
    }
    place = high * side + low;
    if (place < static_cast<std::uint64_t>(windows)) return static_cast<std::int64_t>(place);
  }
}

inline std::vector<std::int64_t> tokens_of(const std::vector<std::string>& paths) {
  std::vector<std::int64_t> tokens;
  for (const std::string& path : paths) {
    std::ifstream file(path, std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), {}};
    const std::size_t width = path.ends_with(".u16") ? 2 : path.ends_with(".u32") ? 4 : 1;
    for (std::size_t i = 0; i < bytes.size(); i += width) {
      std::int64_t token = 0;
      for (std::size_t b = width; b-- > 0;) token = token * 256 + static_cast<unsigned char>(bytes[i + b]);
      tokens.push_back(token);
    }
  }
  return tokens;
}

/// seq + 1 tokens of window `w`.
inline std::vector<std::int64_t> row(const std::vector<std::int64_t>& tokens, std::int64_t w, std::int64_t seq) {
  return {tokens.begin() + w * seq, tokens.begin() + w * seq + seq + 1};
}

}  // namespace regatta::finetune::reference
