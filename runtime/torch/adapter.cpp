#include "runtime/torch/adapter.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/utils/lambda_post_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/nn/modules/embedding.h>

#include <cstring>
#include <unordered_set>
#include <utility>

#include "runtime/error.h"
#include "runtime/torch/current_stream.h"

namespace regatta {

namespace {

at::ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::bf16: return at::kBFloat16;
    case DType::f16: return at::kHalf;
    case DType::f32: break;
  }
  return at::kFloat;
}

ParamKind kind_of(const std::string& name, const at::Tensor& tensor, bool in_embedding) {
  if (tensor.dim() < 2) return ParamKind::vector;
  if (in_embedding || name.find("embed") != std::string::npos) return ParamKind::embedding;
  if (name.find("lm_head") != std::string::npos) return ParamKind::head;
  return ParamKind::matrix;
}

}  // namespace

DType dtype_of(const at::Tensor& tensor, const std::string& name) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return DType::f32;
    case at::kBFloat16: return DType::bf16;
    case at::kHalf: return DType::f16;
    default: break;
  }
  throw Error(Code::invalid_argument, "parameter '" + name + "' has the element type " +
                                          c10::toString(tensor.scalar_type()) +
                                          ", but Float, BFloat16 or Half was expected");
}

std::vector<ModuleParam> module_params(const torch::nn::Module& module) {
  std::unordered_set<const at::TensorImpl*> embeddings;
  const auto note = [&](const torch::nn::Module& part) {
    if (const auto* embedding = part.as<torch::nn::EmbeddingImpl>())
      embeddings.insert(embedding->weight.unsafeGetTensorImpl());
  };
  note(module);  // which need not be owned by a shared_ptr, as modules() with itself would want
  for (const auto& part : module.modules(/*include_self=*/false)) note(*part);
  std::vector<ModuleParam> params;
  std::unordered_set<const at::TensorImpl*> seen;
  for (const auto& item : module.named_parameters()) {
    const at::Tensor& tensor = item.value();
    if (!tensor.defined() || !tensor.requires_grad() || !seen.insert(tensor.unsafeGetTensorImpl()).second) continue;
    params.push_back(
        {item.key(), tensor, kind_of(item.key(), tensor, embeddings.count(tensor.unsafeGetTensorImpl()) > 0)});
  }
  return params;
}

std::string usual_rule(ParamKind kind, const std::string& matrix_rule) {
  return kind == ParamKind::matrix ? matrix_rule : "adamw";
}

std::vector<Param> describe(const std::vector<ModuleParam>& params) {
  std::vector<Param> described;
  for (const ModuleParam& param : params) {
    if (!param.tensor.device().is_cpu() && !param.tensor.device().is_cuda()) {
      throw Error(Code::invalid_argument, "parameter '" + param.name + "' is on " + param.tensor.device().str() +
                                              ", but the CPU or a CUDA device was expected");
    }
    Param& entry = described.emplace_back();
    entry.name = param.name;
    entry.shape = param.tensor.sizes().vec();
    entry.dtype = dtype_of(param.tensor, param.name);
  }
  return described;
}

struct EngineAttachment::Hooks {
  // A shared_ptr or an intrusive_ptr, as LibTorch's version has it; autograd itself only keeps a weak reference.
  using Accumulator = decltype(torch::autograd::impl::grad_accumulator(std::declval<const at::Tensor&>()));
  struct Hook {
    Accumulator accumulator;
    std::uintptr_t key = 0;
  };
  std::vector<Hook> all;
};

EngineAttachment::EngineAttachment(const std::vector<ModuleParam>& params, Engine& engine)
    : engine_(engine), params_(params), hooks_(std::make_unique<Hooks>()) {
  for (std::size_t i = 0; i < params_.size(); ++i) {
    const int index = static_cast<int>(i);
    const at::Tensor& tensor = params_[i].tensor;
    const ParamView view = engine_.param(index);
    if (view.numel != tensor.numel() || view.dtype != dtype_of(tensor, params_[i].name)) {
      throw Error(Code::invalid_argument, "parameter '" + params_[i].name + "' has " + std::to_string(tensor.numel()) +
                                              " elements, but the engine's parameter " + std::to_string(index) +
                                              " has " + std::to_string(view.numel) + " of " +
                                              std::string(name_of(view.dtype)));
    }
  }
  const bool on_device = engine_.options().device != nullptr;
  for (const ModuleParam& param : params_) {
    if (!param.tensor.device().is_cuda() || on_device) continue;
    throw Error(Code::invalid_argument, "parameter '" + param.name + "' is on " + param.tensor.device().str() +
                                            ", but the engine is on the CPU; give EngineOptions a device");
  }
  // All fit: from here on the module's tensors change.
  for (std::size_t i = 0; i < params_.size(); ++i) {
    at::Tensor& tensor = params_[i].tensor;
    const ParamView view = engine_.param(static_cast<int>(i));
    // Of CUDA memory, torch asks the driver which device it is on.
    at::Tensor home = at::from_blob(
        view.data, tensor.sizes(),
        at::TensorOptions().dtype(scalar_type(view.dtype)).device(on_device && view.numel > 0 ? at::kCUDA : at::kCPU));
    home.copy_(tensor.detach());
    tensor.set_data(home);
  }
  use_current_stream();
  synchronize_current_stream();
  engine_.publish_params();

  for (std::size_t i = 0; i < params_.size(); ++i) {
    const int index = static_cast<int>(i);
    Hooks::Hook hook{torch::autograd::impl::grad_accumulator(params_[i].tensor)};
    using torch::autograd::variable_list;
    hook.key = hook.accumulator->add_post_hook(std::make_unique<torch::autograd::utils::LambdaPostHook>(
        [this, index](const variable_list& outputs, const variable_list& /*inputs*/) {
          take_grad(index);
          return outputs;
        }));
    hooks_->all.push_back(std::move(hook));
  }
}

EngineAttachment::~EngineAttachment() {
  for (Hooks::Hook& hook : hooks_->all) hook.accumulator->del_post_hook(hook.key);
  for (ModuleParam& param : params_) param.tensor.set_data(param.tensor.detach().clone());
}

void EngineAttachment::use_current_stream() {
  if (engine_.options().device) engine_.use_stream(current_stream());
}

void EngineAttachment::take_grad(int index) {
  at::Tensor& slot = params_[static_cast<std::size_t>(index)].tensor.mutable_grad();
  if (!slot.defined()) return;
  const at::Tensor grad = slot.contiguous();
  slot.reset();
  engine_.add_grad(index, grad.data_ptr(), dtype_of(grad, params_[static_cast<std::size_t>(index)].name));
}

}  // namespace regatta
