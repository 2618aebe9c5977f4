#pragma once
// What the bodies of the transports' tests share: requirements that throw, values to send, reducers that check what
// they are given.

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "runtime/transport/transport.h"

namespace regatta::testing {

inline void require(bool truth, const std::string& sentence) {
  if (!truth) throw std::logic_error(sentence);
}

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}
template <class T>
std::span<std::byte> writable_bytes_of(std::vector<T>& values) {
  return std::as_writable_bytes(std::span(values));
}

/// Calls the body and requires an Error(code) whose sentence contains `part`.
template <class Body>
void require_error(Code code, const std::string& part, Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    require(error.code() == code,
            std::string("expected ") + name_of(code) + ", got " + name_of(error.code()) + ": " + error.what());
    require(std::string(error.what()).find(part) != std::string::npos, "expected '" + part + "' in: " + error.what());
    return;
  }
  throw std::logic_error("no error where one saying '" + part + "' was expected");
}

/// Chunk sizes in floats, by shape of the cut; equal on all ranks.
inline std::vector<std::vector<std::int64_t>> chunk_patterns(int ranks) {
  std::vector<std::vector<std::int64_t>> patterns;
  patterns.push_back(std::vector<std::int64_t>(ranks, 0));
  patterns.push_back(std::vector<std::int64_t>(ranks, 1));
  patterns.push_back(std::vector<std::int64_t>(ranks, 17));
  patterns.push_back(std::vector<std::int64_t>(ranks, 20'011));
  std::vector<std::int64_t> ragged, one_only(ranks, 0), rising;
  for (int r = 0; r < ranks; ++r) {
    ragged.push_back(r % 2 == 0 ? 0 : 5 * r * r + 3);
    rising.push_back(std::int64_t{100} * r);
  }
  one_only[ranks / 2] = 90'001;
  patterns.push_back(ragged);
  patterns.push_back(one_only);
  patterns.push_back(rising);
  return patterns;
}

inline std::vector<std::int64_t> byte_bounds(const std::vector<std::int64_t>& floats) {
  std::vector<std::int64_t> bounds{0};
  for (const std::int64_t count : floats) bounds.push_back(bounds.back() + 4 * count);
  return bounds;
}

/// Small whole numbers, so that sums of floats are exact in any order.
inline float value_of(int rank, std::int64_t index, int salt) {
  return static_cast<float>((index * 7 + rank * 13 + salt * 5) % 101 - 50);
}

/// Sums the pieces into `result`, which holds the own chunk, each times its place, so that pieces in another order are
/// another sum; requires that the ranges tile the chunk as promised.
struct SummingReducer {
  std::vector<float>* result;
  std::int64_t chunk_begin;
  std::int64_t next;

  SummingReducer(std::vector<float>& target, std::int64_t begin) : result(&target), chunk_begin(begin), next(begin) {}
  void operator()(std::span<const std::byte* const> pieces, std::int64_t begin, std::int64_t end) {
    require(begin == next, "ranges must follow one another");
    require(end > begin, "ranges must not be empty");
    next = end;
    const bool last = end == chunk_begin + 4 * static_cast<std::int64_t>(result->size());
    require(last || (end - chunk_begin) % 64 == 0, "inner range ends must be multiples of 64");
    for (std::int64_t at = begin; at < end; at += 4) {
      float total = 0;
      for (std::size_t p = 0; p < pieces.size(); ++p) {
        float value;
        std::memcpy(&value, pieces[p] + (at - begin), 4);
        total += static_cast<float>(p + 1) * value;
      }
      (*result)[static_cast<std::size_t>((at - chunk_begin) / 4)] = total;
    }
  }
};

inline void fill(const SymmetricBuffer& buffer, std::int64_t offset, std::int64_t floats, int rank, int salt) {
  auto* values = reinterpret_cast<float*>(buffer.data() + offset);
  for (std::int64_t i = 0; i < floats; ++i) values[i] = value_of(rank, i, salt);
}

inline void require_sums(const std::vector<float>& result, std::int64_t first, const Transport& t, int salt) {
  for (std::size_t i = 0; i < result.size(); ++i) {
    float expected = 0;
    for (int p = 0; p < t.world_size(); ++p)
      expected += static_cast<float>(p + 1) * value_of(t.root_ranks()[p], first + static_cast<std::int64_t>(i), salt);
    if (result[i] != expected)  // the sentence costs more than the comparison
      throw std::logic_error("sum of element " + std::to_string(first + static_cast<std::int64_t>(i)) + " is " +
                             std::to_string(result[i]) + ", expected " + std::to_string(expected));
  }
}

inline int root_rank(const Transport& t) { return t.root_ranks()[t.rank()]; }

/// Until `fact` holds; the limit only ends a hang.
inline void await(const std::string& what, const std::function<bool()>& fact) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(120);
  while (!fact()) {
    require(std::chrono::steady_clock::now() < until, "waited in vain: " + what);
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
}

}  // namespace regatta::testing
