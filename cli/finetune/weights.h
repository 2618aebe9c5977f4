#pragma once
// A decoder's weights to and from safetensors with Hugging Face names. Errors: Error(invalid_argument) for files that
// do not fit the model, all misfits in one sentence; Error(checkpoint) when writing fails.

#include <string>
#include <vector>

#include "cli/finetune/decoder.h"

namespace regatta::finetune {

/// Reads folder/model.safetensors or the set of its index into the decoder (its part of each tensor), converting to its
/// element type. Values that are not finite are refused.
void load_weights(Decoder& decoder, const std::string& folder);

/// Writes folder/config.json and folder/model.safetensors (a set with an index above 5 GB); returns the paths.
/// Collective over the decoder's tensor-parallel group, whose first rank gathers and writes; the others return nothing.
std::vector<std::string> save_weights(Decoder& decoder, const std::string& folder);

/// Copies what belongs to a checkpoint's tokenizer, where there is any.
void copy_tokenizer(const std::string& from, const std::string& to);

}  // namespace regatta::finetune
