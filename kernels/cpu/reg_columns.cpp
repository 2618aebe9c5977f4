// Statistics of columns, in row order.
//
// A run is a partial first row, whole rows, and a partial last row; each is a rectangle. A rectangle is swept in strips
// of columns that fit the second-level cache, a few rows at a time: those rows' sums of one vector of columns stay in
// registers, and the strip's running sums are touched once per few rows. Every column has its own bin, which only goes
// up: rows whose values do not fit are summed again from the cache.

#include "kernels/cpu/line_sums.h"
#include "kernels/cpu/table.h"
#include "kernels/cpu/values.h"

namespace regatta::kernels::REGATTA_ISA {
namespace {

#ifndef SC
#define SC 2048
#define RT 8
#endif
constexpr std::int64_t strip_columns = SC;
constexpr std::int64_t rows_at_a_time = RT;

struct Rectangle {
  std::int64_t offset;  // of its first element, from the run's
  std::int64_t row;     // first row, from the run's first
  std::int64_t col;
  std::int64_t rows, cols;
  std::int64_t stride;
};

// Running sums of the columns of a strip.
struct Strip {
  alignas(64) double magic[strip_columns];
  alignas(64) std::uint64_t hi[strip_columns];
  alignas(64) std::uint64_t lo[strip_columns];
  alignas(64) std::uint32_t largest[strip_columns];  // bits
  alignas(64) std::uint32_t limit[strip_columns];    // bits of the smallest |a| that does not fit the bin
  std::int32_t bin[strip_columns];
};

template <Term term>
REGATTA_INLINE void anchor(Strip& strip, std::int64_t c, std::int32_t bin) {
  strip.bin[c] = bin;
  strip.magic[c] = magic_of(bin);
  strip.limit[c] = limit_of<term>(bin);
}

template <class T>
REGATTA_INLINE T load_vector(const void* from) {
  T v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

struct TileSums {
  Wide magic;
  U64 hi[2], lo[2];
  U32 largest;
};

// Sums `rows` rows of one vector of columns with the columns' magic numbers. values(r) gives row r's.
template <Term term, class Values>
REGATTA_INLINE TileSums sum_tile(const Strip& strip, std::int64_t c, std::int64_t rows, const Values& values) {
  const Wide magic{load_vector<F64>(strip.magic + c), load_vector<F64>(strip.magic + c + width / 2)};
  const Wide rest{magic.low * exp2i(-LineSum::bits), magic.high * exp2i(-LineSum::bits)};
  const Wide both{magic.low + rest.low, magic.high + rest.high};
  U64 hi_low{}, hi_high{}, lo_low{}, lo_high{};
  U32 largest{};
  for (std::int64_t r = 0; r < rows; ++r) {
    const F32 a = values(r);
    largest = larger(largest, magnitude_bits(a));
    const Wide x = widen(term == Term::square ? a : magnitude(a));
    add_half<term>(x.low, magic.low, both.low, hi_low, lo_low);
    add_half<term>(x.high, magic.high, both.high, hi_high, lo_high);
  }
  const auto n = static_cast<std::uint64_t>(rows);
  return {magic,
          {hi_low - n * bits_as<U64>(magic.low), hi_high - n * bits_as<U64>(magic.high)},
          {lo_low - n * bits_as<U64>(rest.low), lo_high - n * bits_as<U64>(rest.high)},
          largest};
}

// Moves the columns' bins up to what the tile's largest values ask for.
template <Term term>
[[gnu::noinline]] void raise_columns(Strip& strip, std::int64_t c, U32 largest) {
  for (int lane = 0; lane < width; ++lane) {
    const std::uint32_t bits = largest[lane];
    if (bits < strip.limit[c + lane] || bits >= infinity_bits) continue;
    const std::int32_t bin = bin_of_largest<term>(bits_as<float>(bits)), old = strip.bin[c + lane];
    strip.lo[c + lane] = bin == old + 1 ? strip.hi[c + lane] : 0;
    strip.hi[c + lane] = 0;
    anchor<term>(strip, c + lane, bin);
  }
}

template <Term term, class Values, class Stored>
REGATTA_INLINE void add_tile(Strip& strip, std::int64_t c, std::int64_t rows, const Values& values,
                             const Stored& stored) {
  TileSums tile = sum_tile<term>(strip, c, rows, values);
  const U32 largest = load_vector<U32>(strip.largest + c);
  const U32 seen = larger(largest, tile.largest);
  std::memcpy(strip.largest + c, &seen, sizeof seen);
  if (any(bits_as<I32>(tile.largest) >= bits_as<I32>(load_vector<U32>(strip.limit + c)))) {
    raise_columns<term>(strip, c, tile.largest);
    tile = sum_tile<term>(strip, c, rows, stored);
  }
  for (int half = 0; half < 2; ++half) {
    const std::int64_t at = c + half * (width / 2);
    const U64 hi = load_vector<U64>(strip.hi + at) + tile.hi[half],
              lo = load_vector<U64>(strip.lo + at) + tile.lo[half];
    std::memcpy(strip.hi + at, &hi, sizeof hi);
    std::memcpy(strip.lo + at, &lo, sizeof lo);
  }
}

// How a sweep reads the values of a rectangle; `first` may have effects, `again` reads the same values.
template <DType G, DType M>
struct UpdateColumns {
  const ObserveArgs& args;
  template <bool tail>
  REGATTA_INLINE F32 first(std::int64_t offset, std::int64_t, std::int64_t, std::int64_t count) const {
#ifdef PF
    __builtin_prefetch(
        static_cast<const Storage<G>*>(args.tensors.grad) + offset + rows_at_a_time * args.tensors.run.cols, 0, PF);
    __builtin_prefetch(
        static_cast<const Storage<M>*>(args.tensors.momentum) + offset + rows_at_a_time * args.tensors.run.cols, 0, PF);
#endif
    return UpdatedMomentum<G, M>(args.tensors, offset).template at<tail>(0, 0, count);
  }
  template <bool tail>
  REGATTA_INLINE F32 again(std::int64_t offset, std::int64_t, std::int64_t, std::int64_t count) const {
    return StoredMomentum<M>(args.tensors, offset).template at<tail>(0, 0, count);
  }
};
template <DType M>
struct ReadColumns {
  const ObserveArgs& args;
  template <bool tail>
  REGATTA_INLINE F32 first(std::int64_t offset, std::int64_t row, std::int64_t col, std::int64_t count) const {
    return ScaledMomentum<M>(args.tensors, offset, args.earlier, args.earlier_count, row, col)
        .template at<tail>(0, 0, count);
  }
  template <bool tail>
  REGATTA_INLINE F32 again(std::int64_t offset, std::int64_t row, std::int64_t col, std::int64_t count) const {
    return first<tail>(offset, row, col, count);
  }
};

template <Term term, class Reader>
void observe_strip(Strip& strip, const Rectangle& area, const Reader& reader, LineSum* sums) {
  for (std::int64_t c = 0; c < strip_columns && c < area.cols + width; ++c) {
    anchor<term>(strip, c, lowest_bin);
    strip.hi[c] = strip.lo[c] = 0;
    strip.largest[c] = 0;
  }
  for (std::int64_t r0 = 0; r0 < area.rows; r0 += rows_at_a_time) {
    const std::int64_t rows = area.rows - r0 < rows_at_a_time ? area.rows - r0 : rows_at_a_time;
    const auto tile = [&]<bool tail>(std::int64_t c, std::int64_t count) {
      const auto offset = [&](std::int64_t r) { return area.offset + (r0 + r) * area.stride + c; };
      add_tile<term>(
          strip, c, rows,
          [&](std::int64_t r) {
            return reader.template first<tail>(offset(r), area.row + r0 + r, area.col + c, count);
          },
          [&](std::int64_t r) {
            return reader.template again<tail>(offset(r), area.row + r0 + r, area.col + c, count);
          });
    };
    std::int64_t c = 0;
    for (; c + width <= area.cols; c += width) tile.template operator()<false>(c, width);
    if (c < area.cols) tile.template operator()<true>(c, area.cols - c);
  }
  for (std::int64_t c = 0; c < area.cols; ++c) {
    if (strip.largest[c] == 0) continue;
    LineSum line;
    if (strip.largest[c] >= infinity_bits) {
      line = {0, 0, non_finite_bin, __builtin_inff()};
    } else {
      line = {static_cast<std::int64_t>(strip.hi[c]), static_cast<std::int64_t>(strip.lo[c]), strip.bin[c],
              bits_as<float>(strip.largest[c])};
    }
    merge(sums[area.col + c], line);
  }
}

template <Term term, class Reader>
void observe_run(const ObserveArgs& args, LineSum* sums) {
  const MatrixRun& run = args.tensors.run;
  const Reader reader{args};
  Strip strip;
  const auto rectangle = [&](std::int64_t offset, std::int64_t row, std::int64_t col, std::int64_t rows,
                             std::int64_t cols) {
    for (std::int64_t c = 0; c < cols; c += strip_columns)
      observe_strip<term>(
          strip, {offset + c, row, col + c, rows, cols - c < strip_columns ? cols - c : strip_columns, run.cols},
          reader, sums);
  };
  std::int64_t offset = 0, row = 0;
  const std::int64_t numel = run.end - run.begin, col = run.begin % run.cols;
  if (col != 0) {
    const std::int64_t count = run.cols - col < numel ? run.cols - col : numel;
    rectangle(0, 0, col, 1, count);
    offset = count;
    row = 1;
  }
  const std::int64_t whole = (numel - offset) / run.cols;
  if (whole > 0) rectangle(offset, row, 0, whole, run.cols);
  offset += whole * run.cols;
  if (offset < numel) rectangle(offset, row + whole, 0, 1, numel - offset);
}

template <Term term>
void observe(const ObserveArgs& args, LineSum* sums, bool update) {
  const RegTensors& t = args.tensors;
  with_momentum_dtype(t.momentum_dtype, [&]<DType M>() {
    if (!update) return observe_run<term, ReadColumns<M>>(args, sums);
    with_grad_dtype(t.grad_dtype, [&]<DType G>() { observe_run<term, UpdateColumns<G, M>>(args, sums); });
  });
}

}  // namespace

void observe_columns(const ObserveArgs& args) {
  if (args.tensors.run.empty()) return;
  bool update = args.earlier_count == 0;
  if (args.squares) {
    observe<Term::square>(args, args.squares, update);
    update = false;
  }
  if (args.magnitudes) observe<Term::magnitude>(args, args.magnitudes, update);
}

}  // namespace regatta::kernels::REGATTA_ISA
