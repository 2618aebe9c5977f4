#pragma once
// The parameters of a model by name and shape, without its values: from a decoder's config.json, or as written on the
// command line.

#include <cstdint>
#include <string>
#include <vector>

#include "cli/finetune/decoder_config.h"

namespace regatta::cli {

struct ModelShape {
  std::string name;
  std::vector<std::int64_t> shape;
};

/// Parameters of a Llama-family decoder in the order of its checkpoint.
std::vector<ModelShape> decoder_shapes(const finetune::DecoderConfig& config);

/// "mlp.up=8960x1536" -> {name, shape}. Throws Error(invalid_argument).
ModelShape parse_shape(const std::string& text);

}  // namespace regatta::cli
