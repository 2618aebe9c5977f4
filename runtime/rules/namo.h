#pragma once
// What NAMO and NAMO-D share: which of the sources' forms decides how far a step goes.

#include "runtime/rules/matrix_rule.h"

namespace regatta {

enum class NamoForm : std::uint8_t {
  code,   ///< decay and step of different sizes, each at most 1
  paper,  ///< decay and step by the same factor
};
inline constexpr std::string_view namo_form_names[] = {"code", "paper"};

}  // namespace regatta
