#pragma once
// What this build is: its version and what was compiled into it. Constant data; callable from any thread.

#include <span>
#include <string>
#include <string_view>

namespace regatta {

/// An optional dependency as the build saw it.
struct BuiltIn {
  std::string_view name;  ///< "MPI", "LibTorch"
  bool on = false;
  std::string_view version;  ///< of the headers built against; empty when off
  std::string_view why;      ///< one phrase: where it was found, or why it is off
};

struct BuildFacts {
  std::string_view version;     ///< "0.1.0"
  std::string_view compiler;    ///< "GNU 12.2.0"
  std::string_view build_type;  ///< "Release"
  std::span<const BuiltIn> dependencies;
};

const BuildFacts& build_facts();

/// "0.1.0 (Release, GNU 12.2.0; MPI 3.1, LibTorch 1.13.0)".
std::string version_text();

}  // namespace regatta
