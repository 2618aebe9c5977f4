#pragma once
// The manifest of a checkpoint: which files belong to it, with their checksums, and what the job was. A JSON document
// that ends with its own checksum, so that one flipped bit anywhere is noticed. docs/checkpoint_format.md describes it.

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/checkpoint/file_sums.h"

namespace regatta::checkpoint {

inline constexpr int format_version = 1;
inline constexpr const char* manifest_name = "manifest.json";

struct Manifest {
  std::int64_t step = 0;        ///< of the loop, from 1; skipped ones count
  std::string version;          ///< of the program that wrote it
  std::string job = "{}";       ///< a JSON object: what the trainer needs to go on
  std::vector<FileSums> files;  ///< all others of the folder
};

std::string text_of(const Manifest& manifest);
/// Throws Error(invalid_argument) naming `path` when the text is damaged, or of a format this program does not know.
Manifest parse_manifest(const std::string& text, const std::string& path);

}  // namespace regatta::checkpoint
