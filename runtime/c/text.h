#pragma once
// Settings as text: "name=value,name=value", and what single values mean.

#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/c/call.h"
#include "sharding/dtype.h"

namespace regatta::c_api {

using Setting = std::pair<std::string, std::string>;

/// NULL and "" are no settings.
inline std::vector<Setting> settings_of(const char* text, const char* function) {
  std::vector<Setting> settings;
  for (std::string_view rest = text == nullptr ? "" : text; !rest.empty();) {
    const std::size_t comma = rest.find(',');
    const std::string_view part = rest.substr(0, comma);
    rest = comma == std::string_view::npos ? std::string_view{} : rest.substr(comma + 1);
    const std::size_t equals = part.find('=');
    if (equals == std::string_view::npos || equals == 0)
      refuse(std::string(function) + ": '" + std::string(part) + "' is not NAME=VALUE");
    settings.emplace_back(part.substr(0, equals), part.substr(equals + 1));
  }
  return settings;
}

[[noreturn]] inline void refuse_value(std::string_view name, std::string_view value, const std::string& expected) {
  refuse("option " + std::string(name) + " is '" + std::string(value) + "'; expected " + expected);
}

template <class Number>
Number number_of(std::string_view name, std::string_view value, Number least, Number most,
                 const std::string& expected) {
  Number number{};
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  // Written so that NaN is refused.
  const bool inside = error == std::errc{} && end == value.data() + value.size() && number >= least && number <= most;
  if (!inside) refuse_value(name, value, expected);
  return number;
}

template <class Value, std::size_t count>
Value choice_of(std::string_view name, std::string_view value,
                const std::array<std::pair<const char*, Value>, count>& choices) {
  std::string expected;
  for (const auto& [text, meaning] : choices) {
    if (value == text) return meaning;
    expected += (expected.empty() ? "" : ", ") + std::string(text);
  }
  refuse_value(name, value, "one of " + expected);
}

inline DType dtype_of_number(int dtype, const std::string& whose) {
  if (dtype == REGATTA_F32) return DType::f32;
  if (dtype == REGATTA_BF16) return DType::bf16;
  if (dtype == REGATTA_F16) return DType::f16;
  refuse(whose + " is " + std::to_string(dtype) + "; expected REGATTA_F32 (0), REGATTA_BF16 (1) or REGATTA_F16 (2)");
}

inline int number_of_dtype(DType dtype) {
  if (dtype == DType::bf16) return REGATTA_BF16;
  return dtype == DType::f16 ? REGATTA_F16 : REGATTA_F32;
}

}  // namespace regatta::c_api
