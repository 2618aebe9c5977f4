#pragma once
// Puts an Engine under a torch::nn::Module: parameters live in the engine's memory, and every gradient goes to the
// engine the moment autograd has it, so that reductions run behind the rest of backward.
//
//     std::vector<ModuleParam> params = module_params(*model);
//     Engine engine(describe(params), groups, mesh, transport, options);
//     EngineAttachment attachment(params, engine);          // collective: publishes the module's values
//     for each micro-batch: loss.backward();                // gradients are handed over and dropped
//     engine.step(lr);                                      // the module sees the new values
//
// One attachment per module and engine, on the engine's thread; backward must be called there as well. With an engine
// on a CUDA device the module moves there; hooks then run on autograd's thread for the device while backward waits for
// it, and everything is on torch's current stream of that moment. Errors: Error(invalid_argument) naming the parameter.
// An error of the engine inside a hook comes out of backward().

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/engine/engine.h"

namespace regatta {

enum class ParamKind : std::uint8_t { matrix, vector, embedding, head };

struct ModuleParam {
  std::string name;
  at::Tensor tensor;
  ParamKind kind = ParamKind::matrix;  ///< of the first name, when tied
};

/// The trainable parameters of a module in its own order; tied ones once, under their first name. Embeddings are the
/// weights of torch::nn::Embedding and names with "embed"; heads are names with "lm_head".
std::vector<ModuleParam> module_params(const torch::nn::Module& module);

/// Matrices get `matrix_rule`; embeddings, heads and everything of fewer than two dims get "adamw".
std::string usual_rule(ParamKind kind, const std::string& matrix_rule);

/// For the engine; groups are left at 0.
std::vector<Param> describe(const std::vector<ModuleParam>& params);

DType dtype_of(const at::Tensor& tensor, const std::string& name);

class EngineAttachment {
 public:
  /// Copies the values into the engine, makes the tensors views of it and publishes them. Requires params as given to
  /// the engine, in its order.
  EngineAttachment(const std::vector<ModuleParam>& params, Engine& engine);
  /// Gives the tensors memory of their own again. Must run before the engine ends.
  ~EngineAttachment();
  EngineAttachment(const EngineAttachment&) = delete;
  EngineAttachment& operator=(const EngineAttachment&) = delete;

  /// The engine's work goes on torch's current stream from now on; call it before step() after changing streams. Does
  /// nothing on the CPU. The constructor does so too.
  void use_current_stream();

 private:
  void take_grad(int index);
  struct Hooks;
  Engine& engine_;
  std::vector<ModuleParam> params_;
  std::unique_ptr<Hooks> hooks_;
};

}  // namespace regatta
