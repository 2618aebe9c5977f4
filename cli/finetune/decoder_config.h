#pragma once
// The sizes of a Llama-family decoder, as config.json of a Hugging Face checkpoint states them.
//
// Plain values; no thread or file is held. Errors: Error(invalid_argument) naming the file, the key, its value and what
// was expected, also for a member of the family that this decoder cannot compute.

#include <cstdint>
#include <optional>
#include <string>

namespace regatta::finetune {

/// How Llama 3.1 and later stretch the lower frequencies.
struct RopeScaling {
  enum class Kind { linear, llama3 };
  Kind kind = Kind::linear;
  double factor = 1;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  double original_positions = 8192;
};

struct DecoderConfig {
  std::string model_type = "llama";  ///< "llama", "mistral" or "qwen2"
  std::int64_t vocab = 256;
  std::int64_t hidden = 128;
  std::int64_t intermediate = 352;
  std::int64_t layers = 4;
  std::int64_t heads = 4;
  std::int64_t kv_heads = 4;
  std::int64_t head_dim = 32;
  std::int64_t positions = 2048;    ///< longest sequence the model was made for
  std::int64_t sliding_window = 0;  ///< 0: attention sees everything before
  double norm_eps = 1e-5;
  double rope_theta = 10000;
  std::optional<RopeScaling> rope_scaling;
  double init_std = 0.02;
  bool tied_head = false;
  bool qkv_bias = false;
  bool output_bias = false;  ///< of the attention's output projection
  bool mlp_bias = false;
  std::string source;  ///< the text of the file it was read from; empty otherwise

  /// Throws when sizes do not fit one another; `origin` starts the sentence.
  void check(const std::string& origin) const;
};

/// Reads `folder`/config.json.
DecoderConfig read_decoder_config(const std::string& folder);
/// The text of a config.json; keeps what `source` has and this program does not know. `dtype` is "float32" or
/// "bfloat16".
std::string decoder_config_json(const DecoderConfig&, const std::string& dtype);

}  // namespace regatta::finetune
