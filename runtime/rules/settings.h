#pragma once
// Texts of a rule's settings.

#include <charconv>
#include <string>

namespace regatta {

/// The shortest text that reads back as the same number.
inline std::string shortest(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

}  // namespace regatta
