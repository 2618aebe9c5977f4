#pragma once
// Element types of tensors. Names are those of safetensors headers in lower case.

#include <cstdint>
#include <optional>
#include <string_view>

namespace regatta {

enum class DType : std::uint8_t { f32, bf16, f16 };

/// Bytes of one element.
constexpr std::int64_t size_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

constexpr std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return "f32";
    case DType::bf16: return "bf16";
    case DType::f16: return "f16";
  }
  return "?";
}

/// "f32"/"fp32", "bf16", "f16"/"fp16"; anything else is nullopt.
constexpr std::optional<DType> dtype_of(std::string_view name) {
  if (name == "f32" || name == "fp32") return DType::f32;
  if (name == "bf16") return DType::bf16;
  if (name == "f16" || name == "fp16") return DType::f16;
  return std::nullopt;
}

}  // namespace regatta
