#pragma once
// The parameters of a decoder by name and shape, without its values.

#include <cstdint>
#include <string>
#include <vector>

#include "cli/finetune/decoder_config.h"

namespace regatta::finetune {

struct ParamShape {
  std::string name;  ///< as in Hugging Face checkpoints
  std::vector<std::int64_t> shape;
};

/// In the order of the checkpoint.
std::vector<ParamShape> decoder_shapes(const DecoderConfig& config);

}  // namespace regatta::finetune
