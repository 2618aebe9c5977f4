// Statistics of columns, in row order.
//
// A run is a partial first row, whole rows, and a partial last row; each is a rectangle. A rectangle is swept some rows
// at a time, over its full width where that fits a strip: a few long streams are what memory is fast at. The sums of
// one vector of columns over those rows stay in registers; the strip's running sums, in the second-level cache, are
// touched once per pass over the rows. Every column has its own bin, which only goes up; vectors whose columns agree on
// it, nearly all, need no per-column numbers.

#include "kernels/cpu/line_sums.h"
#include "kernels/cpu/table.h"
#include "kernels/cpu/values.h"

namespace regatta::kernels::REGATTA_ISA {
namespace {

constexpr int rows_at_a_time = width == 16 ? 8 : 4;

struct Rectangle {
  std::int64_t offset;  // of its first element, from the run's
  std::int64_t row;     // first row, from the run's first
  std::int64_t col;
  std::int64_t rows, cols;
  std::int64_t stride;
};

constexpr std::int32_t highest_bin = 6;
constexpr int bin_count = highest_bin - lowest_bin + 1;
constexpr std::int8_t mixed = 127;

// Running sums of the columns of a strip.
struct Strip {
  alignas(64) std::uint64_t hi[strip_columns];
  alignas(64) std::uint64_t lo[strip_columns];
  alignas(64) std::uint32_t largest[strip_columns];  // bits
  std::int8_t bin[strip_columns];
  std::int8_t bin_of_vector[strip_columns / width];  // of all its columns, or mixed
  // By bin - lowest_bin.
  double magic[bin_count];
  std::uint32_t limit[bin_count];  // bits of the smallest |a| that does not fit
};

template <class T>
REGATTA_INLINE T load_vector(const void* from) {
  T v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <class T>
REGATTA_INLINE void store_vector(void* to, T v) {
  std::memcpy(to, &v, sizeof v);
}

REGATTA_INLINE void note_bin(Strip& strip, std::int64_t c) {
  std::int8_t common = strip.bin[c];
  for (int lane = 1; lane < width; ++lane)
    if (strip.bin[c + lane] != common) common = mixed;
  strip.bin_of_vector[c / width] = common;
}

// The magic numbers and limits of one vector of columns.
struct ColumnBins {
  Wide magic;
  I32 limit;

  REGATTA_INLINE ColumnBins(const Strip& strip, std::int64_t c) {
    const std::int8_t common = strip.bin_of_vector[c / width];
    if (common != mixed) {
      magic.low = magic.high = splat64(strip.magic[common - lowest_bin]);
      limit = I32{} + static_cast<std::int32_t>(strip.limit[common - lowest_bin]);
      return;
    }
    double magics[width];
    std::uint32_t limits[width];
    for (int lane = 0; lane < width; ++lane) {
      magics[lane] = strip.magic[strip.bin[c + lane] - lowest_bin];
      limits[lane] = strip.limit[strip.bin[c + lane] - lowest_bin];
    }
    magic = {load_vector<F64>(magics), load_vector<F64>(magics + width / 2)};
    limit = load_vector<I32>(limits);
  }
};

// Sums of one vector of columns over some rows, in registers, the magic numbers' bits included.
template <Term term>
struct TileSums {
  Wide magic, both;
  U64 hi_low{}, hi_high{}, lo_low{}, lo_high{};
  U32 largest{};

  REGATTA_INLINE explicit TileSums(const Wide& upper)
      : magic(upper),
        both{upper.low + upper.low * exp2i(-LineSum::bits), upper.high + upper.high * exp2i(-LineSum::bits)} {}

  REGATTA_INLINE void add(const F32* values, int rows) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      largest = larger(largest, magnitude_bits(values[r]));
      const Wide x = widen(term == Term::square ? values[r] : magnitude(values[r]));
      add_half<term>(x.low, magic.low, both.low, hi_low, lo_low);
      add_half<term>(x.high, magic.high, both.high, hi_high, lo_high);
    }
  }
  REGATTA_INLINE void add_to(Strip& strip, std::int64_t c) const {
    const auto add_part = [](std::uint64_t* to, U64 sum) { store_vector(to, load_vector<U64>(to) + sum); };
    add_part(strip.hi + c, hi_low);
    add_part(strip.hi + c + width / 2, hi_high);
    add_part(strip.lo + c, lo_low);
    add_part(strip.lo + c + width / 2, lo_high);
  }
};

// The integers of a column over `rows` rows, without the magic numbers' bits.
REGATTA_INLINE std::uint64_t hi_of(const Strip& strip, std::int64_t column, std::int64_t rows) {
  return strip.hi[column] - static_cast<std::uint64_t>(rows) * bits_as<std::uint64_t>(magic_of(strip.bin[column]));
}
REGATTA_INLINE std::uint64_t lo_of(const Strip& strip, std::int64_t column, std::int64_t rows) {
  return strip.lo[column] - static_cast<std::uint64_t>(rows) * bits_as<std::uint64_t>(magic_of(strip.bin[column] - 1));
}

// Moves the bins of columns that have seen `rows` rows up to what the next tile's largest values ask for.
template <Term term>
[[gnu::noinline]] void raise_columns(Strip& strip, std::int64_t c, std::int64_t rows, U32 largest) {
  for (int lane = 0; lane < width; ++lane) {
    const std::int64_t column = c + lane;
    const std::uint32_t bits = largest[lane];
    if (bits < strip.limit[strip.bin[column] - lowest_bin] || bits >= infinity_bits) continue;
    const std::int32_t bin = bin_of_largest<term>(bits_as<float>(bits));
    const std::uint64_t lower = bin == strip.bin[column] + 1 ? hi_of(strip, column, rows) : 0;
    strip.hi[column] = static_cast<std::uint64_t>(rows) * bits_as<std::uint64_t>(magic_of(bin));
    strip.lo[column] = lower + static_cast<std::uint64_t>(rows) * bits_as<std::uint64_t>(magic_of(bin - 1));
    strip.bin[column] = static_cast<std::int8_t>(bin);
  }
  note_bin(strip, c);
}

// How a sweep reads a rectangle: the values of one vector of columns in `rows` rows.
template <DType G, DType M>
struct UpdateColumns {
  const ObserveArgs& args;
  UpdatedMomentum<G, M> momentum{args.tensors, 0};

  // All loads first: rows of a power of two apart agree in their addresses' low bits, and a load behind a store with
  // the same low bits waits for it.
  template <bool tail>
  REGATTA_INLINE void read(const Rectangle& area, std::int64_t r0, std::int64_t c, int rows, std::int64_t count,
                           F32* values) const {
    const std::int64_t offset = area.offset + r0 * area.stride + c;
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const std::int64_t at = offset + r * area.stride;
      prefetch_ahead<1024>(momentum.grad + at);
      prefetch_ahead<1024>(momentum.momentum + at);
      values[r] = momentum.template next<tail>(at, count);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
      values[r] = store<M, tail>(momentum.momentum + offset + r * area.stride, values[r], count);
  }
};
template <DType M>
struct ReadColumns {
  const ObserveArgs& args;
  template <bool tail>
  REGATTA_INLINE void read(const Rectangle& area, std::int64_t r0, std::int64_t c, int rows, std::int64_t count,
                           F32* values) const {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const ScaledMomentum<M> row(args.tensors, area.offset + (r0 + r) * area.stride + c, args.earlier,
                                  args.earlier_count, area.row + r0 + r, area.col + c);
      values[r] = row.template at<tail>(0, 0, count);
    }
  }
};

// Adds `rows` rows of one vector of columns to their sums.
template <Term term, bool tail, class Reader>
REGATTA_INLINE void add_tile(Strip& strip, const Rectangle& area, std::int64_t r0, std::int64_t c, int rows,
                             const Reader& reader) {
  const std::int64_t count = tail ? area.cols - c : width;
  const ColumnBins bins(strip, c);
  TileSums<term> tile(bins.magic);
  F32 values[rows_at_a_time];
  reader.template read<tail>(area, r0, c, rows, count, values);
  tile.add(values, rows);
  store_vector(strip.largest + c, larger(load_vector<U32>(strip.largest + c), tile.largest));
  if (!any(bits_as<I32>(tile.largest) >= bins.limit)) return tile.add_to(strip, c);
  raise_columns<term>(strip, c, r0, tile.largest);
  TileSums<term> again(ColumnBins(strip, c).magic);
  again.add(values, rows);
  again.add_to(strip, c);
}

template <Term term, class Reader>
void observe_strip(Strip& strip, const Rectangle& area, const Reader& reader, LineSum* sums) {
  const std::int64_t padded = (area.cols + width - 1) / width * width;
  for (std::int64_t c = 0; c < padded; ++c) {
    // Where the line is known already its bin is the best guess, and never too high.
    const std::int32_t known = c < area.cols ? sums[area.col + c].bin : empty_bin;
    strip.bin[c] = static_cast<std::int8_t>(known == empty_bin || known == non_finite_bin ? lowest_bin : known);
    strip.hi[c] = strip.lo[c] = 0;
    strip.largest[c] = 0;
  }
  for (std::int64_t c = 0; c < padded; c += width) note_bin(strip, c);
  const auto sweep_rows = [&]<bool full>(std::int64_t r0, int count) {
    const int rows = full ? rows_at_a_time : count;
    std::int64_t c = 0;
    for (; c + width <= area.cols; c += width) add_tile<term, false>(strip, area, r0, c, rows, reader);
    if (c < area.cols) add_tile<term, true>(strip, area, r0, c, rows, reader);
  };
  std::int64_t r0 = 0;
  for (; r0 + rows_at_a_time <= area.rows; r0 += rows_at_a_time)
    sweep_rows.template operator()<true>(r0, rows_at_a_time);
  if (r0 < area.rows) sweep_rows.template operator()<false>(r0, static_cast<int>(area.rows - r0));
  for (std::int64_t c = 0; c < area.cols; ++c) {
    if (strip.largest[c] == 0) continue;
    LineSum line{static_cast<std::int64_t>(hi_of(strip, c, area.rows)),
                 static_cast<std::int64_t>(lo_of(strip, c, area.rows)), strip.bin[c], bits_as<float>(strip.largest[c])};
    if (strip.largest[c] >= infinity_bits) line = {0, 0, non_finite_bin, __builtin_inff()};
    merge(sums[area.col + c], line);
  }
}

template <Term term, class Reader>
void observe_run(const ObserveArgs& args, LineSum* sums) {
  const MatrixRun& run = args.tensors.run;
  const Reader reader{args};
  Strip strip;
  for (int i = 0; i < bin_count; ++i) {
    strip.magic[i] = magic_of(lowest_bin + i);
    strip.limit[i] = limit_of<term>(lowest_bin + i);
  }
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
