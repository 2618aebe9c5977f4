#pragma once
// Sweeps that take elements one by one: REG's last sweep and AdamW. A tile is flat_tile consecutive elements.

#include "kernels/cuda/quads.cuh"

namespace regatta::kernels::cuda {

/// Quads that a thread has in flight; AdamW has four tensors to read.
inline constexpr int flat_quads = 4, adamw_quads = 2;

/// The part of `count` elements from `first` on that a tile takes.
REGATTA_HOST_DEVICE inline std::int32_t flat_count(std::int64_t count, std::int64_t first) {
  return static_cast<std::int32_t>(count - first < flat_tile ? count - first : flat_tile);
}

/// load(k, quad) for some quads of the thread, then use(k, quad) for the same, then flush(); until all of a tile are
/// done.
template <int quads, class Load, class Use, class Flush>
REGATTA_DEVICE void for_each_quad(std::int32_t count, int phase, const Load& load, const Use& use, const Flush& flush) {
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes, warp = static_cast<int>(threadIdx.x) / warp_lanes;
  const std::int32_t base = phase > 0 ? -phase : 0;
  const std::int32_t chunks = (count - base + 4 * warp_lanes - 1) / (4 * warp_lanes);
  const auto quad_of = [&](std::int32_t chunk) {
    return make_quad(base + chunk * (4 * warp_lanes), phase >= 0, lane, warp_lanes, 0, count);
  };
  for (std::int32_t chunk = warp; chunk < chunks; chunk += quads * block_warps) {
    REGATTA_UNROLL
    for (int k = 0; k < quads; ++k) load(k, quad_of(chunk + k * block_warps));
    REGATTA_UNROLL
    for (int k = 0; k < quads; ++k) use(k, quad_of(chunk + k * block_warps));
    flush();
  }
}

template <class Types>
REGATTA_KERNEL(block_threads, 2)
apply_kernel(RegLaunch args) {
  REGATTA_SHARED(SharedHealth<block_warps>, shared_health);
  const Types types(args.dtypes);
  const Tile tile = args.tiles[blockIdx.x];
  const RegSegment segment = args.segments[tile.segment];
  const RegScalars scalars = args.scalars[segment.scalars];
  const std::int32_t count = scalars.skip == 0 ? flat_count(segment.run.end - segment.run.begin, tile.first) : 0;
  const Tensors tensors(types, segment, tile.first, false, true);
  const std::int64_t at = segment.run.begin + tile.first;
  const auto row0 = static_cast<std::int32_t>(at / segment.run.cols - segment.run.begin / segment.run.cols);
  const auto col0 = static_cast<std::int32_t>(at % segment.run.cols),
             cols = static_cast<std::int32_t>(segment.run.cols);
  const int earlier = segment.pass_count - 1;

  RawQuad momenta[flat_quads], weights[flat_quads];
  ThreadHealth health;
  for_each_quad<flat_quads>(
      count, tensors.phase,
      [&](int k, const Quad& quad) {
        momenta[k] = load_raw(types.momentum, tensors.momentum, quad);
        weights[k] = load_raw(DType::f32, tensors.weight, quad);
      },
      [&](int k, const Quad& quad) {
        std::int32_t row = row0, col = col0 + quad.first;
        if (col >= cols) {
          const std::int32_t down = col / cols;
          row += down;
          col -= down * cols;
        }
        float values[4], steps[4];
        decode(types.momentum, momenta[k], values);
        scale_quad(segment.passes, earlier, quad, row, col, cols, values);
        load_factors(segment.passes[earlier], quad, row, col, cols, steps);
        update_weights(types.param, scalars.decay, steps, values, weights[k], quad, tensors.weight, tensors.param,
                       health);
      },
      [&] { health.flush(); });
  write_health(shared_health, health, args.tile_health + blockIdx.x, [](SweepHealth&) {});
}

template <class Types>
REGATTA_KERNEL(block_threads, 2)
adamw_kernel(Adamw args) {
  REGATTA_SHARED(SharedHealth<block_warps>, shared_health);
  const Types types(args.dtypes);
  const Tile tile = args.tiles[blockIdx.x];
  const AdamwSegment segment = args.segments[tile.segment];
  const AdamwScalars s = args.scalars[segment.scalars];
  const std::int32_t count = s.skip == 0 ? flat_count(segment.count, tile.first) : 0;
  const void* grad = advance(types.grad, segment.grad, tile.first);
  void* moment1 = advance(types.momentum, segment.moment1, tile.first);
  float* moment2 = segment.moment2 + tile.first;
  float* weight = segment.weight + tile.first;
  void* param = types.param == DType::f32 ? nullptr : advance(types.param, segment.param, tile.first);
  Phase phase;
  phase.add(types.grad, grad);
  phase.add(types.momentum, moment1);
  phase.add(DType::f32, moment2);
  phase.add(DType::f32, weight);
  phase.add(types.param, param);

  RawQuad grads[adamw_quads], firsts[adamw_quads], seconds[adamw_quads], weights[adamw_quads];
  ThreadHealth health;
  for_each_quad<adamw_quads>(
      count, phase.value,
      [&](int k, const Quad& quad) {
        grads[k] = load_raw(types.grad, grad, quad);
        firsts[k] = load_raw(types.momentum, moment1, quad);
        seconds[k] = load_raw(DType::f32, moment2, quad);
        weights[k] = load_raw(DType::f32, weight, quad);
      },
      [&](int k, const Quad& quad) {
        float g[4], m[4], v[4], w[4];
        decode(types.grad, grads[k], g);
        decode(types.momentum, firsts[k], m);
        decode(DType::f32, seconds[k], v);
        REGATTA_UNROLL
        for (int j = 0; j < 4; ++j) {
          g[j] = mul_rn(g[j], s.grad_scale);
          v[j] = fma_rn(s.beta2, v[j], mul_rn(mul_rn(s.one_minus_beta2, g[j]), g[j]));
          m[j] = fma_rn(s.beta1, m[j], mul_rn(s.one_minus_beta1, g[j]));
        }
        const RawQuad raw = encode(types.momentum, m);
        store_raw(types.momentum, moment1, quad, raw);
        store_quad(DType::f32, moment2, quad, v);
        decode(types.momentum, raw, m);
        REGATTA_UNROLL
        for (int j = 0; j < 4; ++j) {
          const float old = float_of(weights[k].word[j]);
          const float denominator = fma_rn(sqrt_rn(v[j]), s.inverse_sqrt_correction2, s.eps);
          w[j] = fma_rn(-s.step, div_rn(m[j], denominator), mul_rn(old, s.decay));
          if (quad.has(j)) health.add(old, w[j]);
        }
        store_quad(DType::f32, weight, quad, w);
        if (types.param != DType::f32) store_quad(types.param, param, quad, w);
      },
      [&] { health.flush(); });
  write_health(shared_health, health, args.tile_health + blockIdx.x, [](SweepHealth&) {});
}

}  // namespace regatta::kernels::cuda
