#include "cli/finetune/tensor_parallel.h"

#include <string_view>

#include "runtime/error.h"

namespace regatta::finetune {
namespace {

using sharding::Mesh;
using sharding::Placement;

Placement cut(int dim) { return Placement{{{"tp", dim}}}; }

}  // namespace

void check_tensor_parallel(const DecoderConfig& config, const Mesh& mesh) {
  const std::int64_t tp = mesh.size("tp");
  const auto refuse = [&](const std::string& what) {
    throw Error(Code::invalid_argument, "mesh " + mesh.text() + ": " + what);
  };
  const auto ways = " cannot be cut evenly " + std::to_string(tp) + " ways over tp; a tp that divides ";
  if (config.heads % tp != 0)
    refuse("the model's " + std::to_string(config.heads) + " attention heads" + ways + "them was expected");
  if (config.intermediate % tp != 0)
    refuse("the model's intermediate size " + std::to_string(config.intermediate) + ways + "it was expected");
  if (config.kv_heads % tp != 0 && tp % config.kv_heads != 0)
    refuse("the model's " + std::to_string(config.kv_heads) + " key-value heads" + ways +
           "them, or is a multiple of them, was expected");
}

bool replicates_key_values(const DecoderConfig& config, const Mesh& mesh) {
  return config.kv_heads % mesh.size("tp") != 0;
}

Placement decoder_placement(const DecoderConfig& config, const std::string& name, const Mesh& mesh) {
  check_tensor_parallel(config, mesh);
  const bool tp = mesh.size("tp") > 1;
  const Placement replicated, rows = tp ? cut(0) : replicated, columns = tp ? cut(1) : replicated;
  if (name == "model.embed_tokens.weight" || name == "lm_head.weight") return rows;
  if (name == "model.norm.weight") return replicated;

  // model.layers.K.MODULE.weight, or .bias
  constexpr std::string_view layers = "model.layers.";
  const std::string_view text = name;
  const std::size_t begin = text.find('.', layers.size()), end = text.rfind('.');
  if (text.starts_with(layers) && begin != std::string_view::npos && begin < end) {
    const std::string_view module = text.substr(begin + 1, end - begin - 1), kind = text.substr(end + 1);
    const bool weight = kind == "weight";
    if (weight || kind == "bias") {
      if (module == "self_attn.q_proj" || module == "mlp.gate_proj" || module == "mlp.up_proj") return rows;
      if (module == "self_attn.k_proj" || module == "self_attn.v_proj")
        return replicates_key_values(config, mesh) ? replicated : rows;
      if (module == "self_attn.o_proj" || module == "mlp.down_proj") return weight ? columns : replicated;
      if (weight && (module == "input_layernorm" || module == "post_attention_layernorm")) return replicated;
    }
  }
  throw Error(Code::invalid_argument, "parameter " + name +
                                          " is not one of a Llama-family decoder; expected a name such as "
                                          "model.layers.0.mlp.up_proj.weight");
}

}  // namespace regatta::finetune
