#pragma once
// What a call that is refused says.

#include <gtest/gtest.h>

#include <string>

#include "runtime/error.h"

namespace regatta::testing {

/// The sentence of the Error with which `call` ends, which has this code; empty when it ends without one.
template <class Call>
std::string refusal(const Call& call, Code code = Code::invalid_argument) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  return "";
}

inline void expect_says(const std::string& said, const std::string& words) {
  EXPECT_NE(said.find(words), std::string::npos) << "'" << said << "' lacks '" << words << "'";
}

}  // namespace regatta::testing
