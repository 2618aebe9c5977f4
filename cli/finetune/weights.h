#pragma once
// A decoder's weights to and from safetensors with Hugging Face names. Errors: Error(invalid_argument) for files that
// do not fit the model, all misfits in one sentence; Error(checkpoint) when writing fails.

#include <string>
#include <utility>
#include <vector>

#include "cli/finetune/decoder.h"
#include "runtime/checkpoint/safetensors.h"

namespace regatta::finetune {

/// Reads folder/model.safetensors or the set of its index into the decoder (its part of each tensor), converting to its
/// element type. Values that are not finite are refused.
void load_weights(Decoder& decoder, const std::string& folder);
/// The same from an open model, called `where` in sentences. `partial`: tensors that do not fit are left as they are;
/// gives back what they are, in words.
std::string load_weights(Decoder& decoder, const safetensors::Model& model, const std::string& where, bool partial);

/// What one rank writes of the weights when all ranks write their share: whole tensors.
struct WeightShare {
  std::vector<at::Tensor> kept;  ///< what `sources` point at
  std::vector<safetensors::Source> sources;
};
/// Tensors are dealt out over `dp` rows of ranks, balanced by size; those that tp cuts are gathered within the row, to
/// its first rank. Collective over the decoder's tensor-parallel group.
WeightShare weights_of_rank(Decoder& decoder, int dp, int dp_rank);

/// The decoder's config.json.
std::string config_text(const Decoder& decoder);

/// Writes folder/config.json and folder/model.safetensors (a set with an index above 5 GB); returns the paths.
/// Collective over the decoder's tensor-parallel group, whose first rank gathers and writes; the others return nothing.
std::vector<std::string> save_weights(Decoder& decoder, const std::string& folder);

/// Copies what belongs to a checkpoint's tokenizer, where there is any.
void copy_tokenizer(const std::string& from, const std::string& to);
/// The same files as name and content.
std::vector<std::pair<std::string, std::string>> tokenizer_texts(const std::string& from);

}  // namespace regatta::finetune
