#pragma once
// A decoder's weights to and from safetensors with Hugging Face names. Errors: Error(invalid_argument) for files that
// do not fit the model, all misfits in one sentence; Error(checkpoint) when writing fails.

#include <string>
#include <vector>

#include "cli/finetune/decoder.h"

namespace regatta::finetune {

/// Reads folder/model.safetensors or the set of its index into the decoder, converting to its element type. Values that
/// are not finite are refused.
void load_weights(Decoder& decoder, const std::string& folder);

/// Writes folder/config.json and folder/model.safetensors (a set with an index above 5 GB); returns the paths.
std::vector<std::string> save_weights(const Decoder& decoder, const std::string& folder);

/// Copies what belongs to a checkpoint's tokenizer, where there is any.
void copy_tokenizer(const std::string& from, const std::string& to);

}  // namespace regatta::finetune
