#pragma once
// Sizes of the pieces that the sweeps work in, chosen for caches. No result depends on them; tests take sizes around
// them.

#include <cstdint>

namespace regatta::kernels {

/// Elements of a row between two looks at its running sums: a block's values are still in the first-level cache if they
/// must be read again. Health figures are fp32 within a block.
inline constexpr std::int64_t block_numel = 2048;
/// Columns whose running sums are kept at a time.
inline constexpr std::int64_t strip_columns = 4096;
/// Elements of every piece that a reduction takes at a time.
inline constexpr std::int64_t reduce_tile = 512;

}  // namespace regatta::kernels
