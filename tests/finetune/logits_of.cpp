// Writes the logits that our decoder gives to the tokens of a file, for other programs to compare:
//   logits_of MODEL_FOLDER TOKENS.u32 OUT.safetensors

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <cstdio>
#include <exception>
#include <vector>

#include "cli/finetune/decoder.h"
#include "cli/finetune/token_data.h"
#include "cli/finetune/weights.h"
#include "runtime/checkpoint/safetensors.h"

namespace {

void write_logits(const std::string& folder, const std::string& data, const std::string& out) {
  using namespace regatta;
  const torch::NoGradGuard no_grad;
  const finetune::DecoderConfig config = finetune::read_decoder_config(folder);
  finetune::Decoder decoder(config, at::kFloat, sharding::Mesh({{"dp", 1}}), 0);
  finetune::load_weights(decoder, folder);
  const finetune::TokenData tokens({data}, config.vocab);
  std::vector<std::int64_t> ids(static_cast<std::size_t>(tokens.size()));
  tokens.read(0, ids);
  const at::Tensor input = at::empty({1, tokens.size()}, at::kLong);
  std::copy(ids.begin(), ids.end(), input.data_ptr<std::int64_t>());
  const at::Tensor logits = decoder.forward(input).contiguous();
  const safetensors::Source source{"logits", DType::f32, {tokens.size(), config.vocab}, logits.data_ptr()};
  safetensors::write(out, {&source, 1});
}

}  // namespace

int main(int count, char** arguments) {
  try {
    if (count != 4) throw std::runtime_error("usage: logits_of MODEL_FOLDER TOKENS.u32 OUT.safetensors");
    write_logits(arguments[1], arguments[2], arguments[3]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
