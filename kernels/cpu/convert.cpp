// Conversions and plain addition.

#include "kernels/cpu/table.h"
#include "kernels/cpu/values.h"

namespace regatta::kernels::REGATTA_ISA {
namespace {

// body.operator()<tail>(offset, count) over whole vectors, then over the rest.
template <class Body>
REGATTA_INLINE void for_each_vector(std::int64_t count, const Body& body) {
  std::int64_t i = 0;
  for (; i + width <= count; i += width) body.template operator()<false>(i, width);
  if (i < count) body.template operator()<true>(i, count - i);
}

}  // namespace

void accumulate(float* dst, const void* src, DType src_dtype, std::int64_t count, bool overwrite) {
  if (overwrite) return to_f32(src, src_dtype, dst, count);
  with_grad_dtype(src_dtype, [&]<DType D>() {
    const auto* from = static_cast<const Storage<D>*>(src);
    for_each_vector(count, [&]<bool tail>(std::int64_t i, std::int64_t left) {
      const F32 sum = load<DType::f32, tail>(dst + i, left) + load<D, tail>(from + i, left);
      store<DType::f32, tail>(dst + i, sum, left);
    });
  });
}

void to_f32(const void* src, DType src_dtype, float* dst, std::int64_t count) {
  with_grad_dtype(src_dtype, [&]<DType D>() {
    const auto* from = static_cast<const Storage<D>*>(src);
    for_each_vector(count, [&]<bool tail>(std::int64_t i, std::int64_t left) {
      store<DType::f32, tail>(dst + i, load<D, tail>(from + i, left), left);
    });
  });
}

void from_f32(const float* src, void* dst, DType dst_dtype, std::int64_t count) {
  with_grad_dtype(dst_dtype, [&]<DType D>() {
    auto* to = static_cast<Storage<D>*>(dst);
    for_each_vector(count, [&]<bool tail>(std::int64_t i, std::int64_t left) {
      store<D, tail>(to + i, load<DType::f32, tail>(src + i, left), left);
    });
  });
}

}  // namespace regatta::kernels::REGATTA_ISA
