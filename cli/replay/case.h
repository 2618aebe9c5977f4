#pragma once
// A recorded case: parameters, their gradients by step, and optional initial state, whole tensors in memory. Read once,
// then shared by all ranks of this process; immutable.

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "sharding/dtype.h"

namespace regatta::cli {

struct WholeTensor {
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> values;
};

struct ReplayCase {
  std::vector<std::string> names;                             ///< of parameters, in the order of the file's names
  std::map<std::string, WholeTensor> params;                  ///< by parameter name
  std::vector<std::map<std::string, WholeTensor>> gradients;  ///< by step, by parameter name
  std::map<std::string, std::map<std::string, WholeTensor>> states;  ///< by state, by parameter name
  std::int64_t step = 0;                                             ///< updates already made, from the metadata

  /// Reads `path`. Throws Error(invalid_argument) naming the tensor that is missing, misshapen, of a wrong dtype or not
  /// finite.
  static ReplayCase read(const std::string& path);
};

}  // namespace regatta::cli
