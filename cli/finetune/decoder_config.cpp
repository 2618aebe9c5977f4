#include "cli/finetune/decoder_config.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "runtime/error.h"

namespace regatta::finetune {

namespace {

using nlohmann::json;

/// Reads typed values and says what is wrong with the file by its path and key.
class Reader {
 public:
  Reader(std::string path, const json& document) : path_(std::move(path)), document_(document) {}

  [[noreturn]] void refuse(const std::string& what) const { throw Error(Code::invalid_argument, path_ + ": " + what); }

  bool has(const char* key) const { return document_.contains(key) && !document_[key].is_null(); }

  std::int64_t whole(const char* key) const {
    if (!has(key)) refuse(std::string("lacks '") + key + "'");
    const json& value = document_[key];
    if (!value.is_number_integer() || value.get<std::int64_t>() < 1 ||
        value.get<std::int64_t>() > (std::int64_t{1} << 40)) {
      refuse(std::string("has ") + key + " " + value.dump() + ", but a whole number from 1 up was expected");
    }
    return value.get<std::int64_t>();
  }
  std::int64_t whole(const char* key, std::int64_t otherwise) const { return has(key) ? whole(key) : otherwise; }

  double number(const char* key, double otherwise) const {
    if (!has(key)) return otherwise;
    const json& value = document_[key];
    if (!value.is_number() || !(value.get<double>() > 0)) {
      refuse(std::string("has ") + key + " " + value.dump() + ", but a number above 0 was expected");
    }
    return value.get<double>();
  }
  bool flag(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!document_[key].is_boolean())
      refuse(std::string("has ") + key + " " + document_[key].dump() + ", but true or false was expected");
    return document_[key].get<bool>();
  }
  std::string text(const char* key, const std::string& otherwise) const {
    if (!has(key)) return otherwise;
    if (!document_[key].is_string())
      refuse(std::string("has ") + key + " " + document_[key].dump() + ", but a string was expected");
    return document_[key].get<std::string>();
  }
  Reader object(const char* key) const {
    if (!document_[key].is_object())
      refuse(std::string("has ") + key + " " + document_[key].dump() + ", but an object was expected");
    return {path_, document_[key]};
  }

 private:
  std::string path_;
  const json& document_;
};

/// Older files have rope_theta and rope_scaling at the top, newer ones rope_parameters with both.
void read_rope(const Reader& top, DecoderConfig& config) {
  config.rope_theta = top.number("rope_theta", config.rope_theta);
  const char* key = top.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!top.has(key)) return;
  const Reader rope = top.object(key);
  config.rope_theta = rope.number("rope_theta", config.rope_theta);
  const std::string kind = rope.text("rope_type", rope.text("type", "default"));
  if (kind == "default") return;
  RopeScaling scaling;
  scaling.factor = rope.number("factor", 1);
  if (kind == "llama3") {
    scaling.kind = RopeScaling::Kind::llama3;
    scaling.low_freq_factor = rope.number("low_freq_factor", scaling.low_freq_factor);
    scaling.high_freq_factor = rope.number("high_freq_factor", scaling.high_freq_factor);
    scaling.original_positions = rope.number("original_max_position_embeddings", scaling.original_positions);
    if (scaling.high_freq_factor <= scaling.low_freq_factor)
      rope.refuse("has high_freq_factor not above low_freq_factor");
  } else if (kind != "linear") {
    rope.refuse("has rope scaling '" + kind + "', but default, linear or llama3 was expected");
  }
  config.rope_scaling = scaling;
}

}  // namespace

void DecoderConfig::check(const std::string& origin) const {
  const auto refuse = [&](const std::string& what) { throw Error(Code::invalid_argument, origin + ": " + what); };
  for (const auto& [name, value] : {std::pair<const char*, std::int64_t>{"vocabulary", vocab},
                                    {"hidden size", hidden},
                                    {"intermediate size", intermediate},
                                    {"number of layers", layers},
                                    {"number of heads", heads},
                                    {"number of key-value heads", kv_heads},
                                    {"head size", head_dim},
                                    {"number of positions", positions}}) {
    if (value < 1)
      refuse(std::string("the ") + name + " is " + std::to_string(value) + ", but at least 1 was expected");
  }
  if (heads % kv_heads != 0) {
    refuse(std::to_string(heads) + " heads cannot share " + std::to_string(kv_heads) +
           " key-value heads; a divisor was expected");
  }
  if (head_dim % 2 != 0)
    refuse("the head size " + std::to_string(head_dim) + " is odd, but rotary positions need an even one");
}

DecoderConfig read_decoder_config(const std::string& folder) {
  const std::string path = (std::filesystem::path(folder) / "config.json").string();
  std::ifstream stream(path, std::ios::binary);
  if (!stream)
    throw Error(Code::invalid_argument,
                path + ": cannot be opened; a folder with config.json and model.safetensors was expected");
  DecoderConfig config;
  config.source.assign(std::istreambuf_iterator<char>(stream), {});
  const json document = json::parse(config.source, nullptr, false);
  if (!document.is_object()) throw Error(Code::invalid_argument, path + ": is not a JSON object");
  const Reader reader(path, document);

  config.model_type = reader.text("model_type", "");
  if (config.model_type != "llama" && config.model_type != "mistral" && config.model_type != "qwen2") {
    reader.refuse("has model_type '" + config.model_type + "', but llama, mistral or qwen2 was expected");
  }
  if (const std::string act = reader.text("hidden_act", "silu"); act != "silu") {
    reader.refuse("has hidden_act '" + act + "', but silu was expected");
  }
  if (reader.number("partial_rotary_factor", 1) != 1)
    reader.refuse("rotates only a part of each head, which this decoder does not");
  config.vocab = reader.whole("vocab_size");
  config.hidden = reader.whole("hidden_size");
  config.intermediate = reader.whole("intermediate_size");
  config.layers = reader.whole("num_hidden_layers");
  config.heads = reader.whole("num_attention_heads");
  config.kv_heads = reader.whole("num_key_value_heads", config.heads);
  if (!reader.has("head_dim") && config.hidden % config.heads != 0) {
    reader.refuse("has hidden_size " + std::to_string(config.hidden) + ", which " + std::to_string(config.heads) +
                  " heads do not divide, and no head_dim");
  }
  config.head_dim = reader.whole("head_dim", config.hidden / config.heads);
  config.positions = reader.whole("max_position_embeddings", config.positions);
  config.norm_eps = reader.number("rms_norm_eps", 1e-6);
  config.init_std = reader.number("initializer_range", config.init_std);
  config.tied_head = reader.flag("tie_word_embeddings", false);
  config.qkv_bias = config.model_type == "qwen2" || reader.flag("attention_bias", false);
  config.output_bias = config.model_type != "qwen2" && reader.flag("attention_bias", false);
  config.mlp_bias = reader.flag("mlp_bias", false);
  const bool windowed = config.model_type == "mistral" || reader.flag("use_sliding_window", false);
  if (windowed && reader.has("sliding_window")) config.sliding_window = reader.whole("sliding_window");
  read_rope(reader, config);
  config.check(path);
  return config;
}

std::string decoder_config_json(const DecoderConfig& config, const std::string& dtype) {
  nlohmann::ordered_json document = nlohmann::ordered_json::object();
  if (!config.source.empty()) document = nlohmann::ordered_json::parse(config.source);
  if (config.source.empty()) {
    document["architectures"] = {config.model_type == "qwen2" ? "Qwen2ForCausalLM" : "LlamaForCausalLM"};
    document["model_type"] = config.model_type;
    document["vocab_size"] = config.vocab;
    document["hidden_size"] = config.hidden;
    document["intermediate_size"] = config.intermediate;
    document["num_hidden_layers"] = config.layers;
    document["num_attention_heads"] = config.heads;
    document["num_key_value_heads"] = config.kv_heads;
    document["head_dim"] = config.head_dim;
    document["hidden_act"] = "silu";
    document["max_position_embeddings"] = config.positions;
    document["rms_norm_eps"] = config.norm_eps;
    document["rope_theta"] = config.rope_theta;
    document["initializer_range"] = config.init_std;
    document["tie_word_embeddings"] = config.tied_head;
    document["attention_bias"] = config.qkv_bias;
    document["mlp_bias"] = config.mlp_bias;
    document["bos_token_id"] = nullptr;  // byte-level text has no special tokens
    document["eos_token_id"] = nullptr;
    document["use_cache"] = true;
  }
  document[document.contains("dtype") ? "dtype" : "torch_dtype"] = dtype;
  return document.dump(2) + "\n";
}

}  // namespace regatta::finetune
