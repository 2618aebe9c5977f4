#include "cli/finetune/decoder_shapes.h"

namespace regatta::finetune {

std::vector<ParamShape> decoder_shapes(const DecoderConfig& c) {
  std::vector<ParamShape> shapes{{"model.embed_tokens.weight", {c.vocab, c.hidden}}};
  const auto projection = [&](const std::string& name, std::int64_t out, std::int64_t in, bool bias) {
    shapes.push_back({name + ".weight", {out, in}});
    if (bias) shapes.push_back({name + ".bias", {out}});
  };
  for (std::int64_t layer = 0; layer < c.layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    projection(prefix + "self_attn.q_proj", c.heads * c.head_dim, c.hidden, c.qkv_bias);
    projection(prefix + "self_attn.k_proj", c.kv_heads * c.head_dim, c.hidden, c.qkv_bias);
    projection(prefix + "self_attn.v_proj", c.kv_heads * c.head_dim, c.hidden, c.qkv_bias);
    projection(prefix + "self_attn.o_proj", c.hidden, c.heads * c.head_dim, c.output_bias);
    projection(prefix + "mlp.gate_proj", c.intermediate, c.hidden, c.mlp_bias);
    projection(prefix + "mlp.up_proj", c.intermediate, c.hidden, c.mlp_bias);
    projection(prefix + "mlp.down_proj", c.hidden, c.intermediate, c.mlp_bias);
    shapes.push_back({prefix + "input_layernorm.weight", {c.hidden}});
    shapes.push_back({prefix + "post_attention_layernorm.weight", {c.hidden}});
  }
  shapes.push_back({"model.norm.weight", {c.hidden}});
  if (!c.tied_head) shapes.push_back({"lm_head.weight", {c.vocab, c.hidden}});
  return shapes;
}

}  // namespace regatta::finetune
