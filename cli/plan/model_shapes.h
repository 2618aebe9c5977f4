#pragma once
// The parameters of a model as written on the command line.

#include <string>

#include "cli/finetune/decoder_shapes.h"

namespace regatta::cli {

/// "mlp.up=8960x1536" -> {name, shape}. Throws Error(invalid_argument).
finetune::ParamShape parse_shape(const std::string& text);

}  // namespace regatta::cli
