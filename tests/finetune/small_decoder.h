#pragma once
// A decoder of a few numbers, every size another one.

#include "cli/finetune/decoder_config.h"

namespace regatta::finetune {

inline DecoderConfig small_config() {
  DecoderConfig config;
  config.vocab = 11;
  config.hidden = 12;
  config.intermediate = 20;
  config.layers = 2;
  config.heads = 6;
  config.kv_heads = 2;
  config.head_dim = 4;
  config.rope_theta = 100;
  config.norm_eps = 1e-5;
  config.init_std = 0.4;
  return config;
}

}  // namespace regatta::finetune
