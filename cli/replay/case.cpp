#include "cli/replay/case.h"

#include <charconv>
#include <cmath>
#include <optional>

#include "kernels/kernels.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/error.h"

namespace regatta::cli {
namespace {

Error refuse(const std::string& path, const std::string& sentence) {
  return Error(Code::invalid_argument, path + ": " + sentence);
}

void check_finite(const std::string& path, const std::string& name, const WholeTensor& tensor) {
  std::vector<float> values(tensor.values.size() / size_of(tensor.dtype));
  kernels::cpu_kernels().to_f32(tensor.values.data(), tensor.dtype, values.data(),
                                static_cast<std::int64_t>(values.size()));
  for (std::size_t i = 0; i < values.size(); ++i)
    if (!std::isfinite(values[i]))
      throw refuse(path, "tensor " + name + " holds " + (std::isnan(values[i]) ? "NaN" : "Inf") + " at element " +
                             std::to_string(i) + "; expected finite values");
}

WholeTensor load(const safetensors::File& file, const safetensors::Tensor& tensor) {
  const std::optional<DType> dtype = tensor.element_type();
  if (!dtype)
    throw refuse(file.path(), "tensor " + tensor.name + " has dtype " + tensor.dtype + "; expected F32, BF16 or F16");
  if (tensor.shape.empty())
    throw refuse(file.path(), "tensor " + tensor.name + " is a scalar; expected one dim or more");
  WholeTensor whole{*dtype, tensor.shape, {}};
  whole.values.resize(tensor.bytes());
  file.read(tensor, whole.values);
  check_finite(file.path(), tensor.name, whole);
  return whole;
}

std::optional<std::int64_t> number(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

}  // namespace

ReplayCase ReplayCase::read(const std::string& path) {
  const safetensors::File file(path);
  ReplayCase recorded;
  for (const safetensors::Tensor& tensor : file.tensors())
    if (tensor.name.starts_with("param.")) recorded.params.emplace(tensor.name.substr(6), load(file, tensor));
  if (recorded.params.empty()) throw refuse(path, "there is no tensor named param.NAME; expected at least one");
  for (const auto& [name, param] : recorded.params) recorded.names.push_back(name);

  const auto check_owner = [&](const safetensors::Tensor& tensor, const std::string& owner) {
    const auto param = recorded.params.find(owner);
    if (param == recorded.params.end())
      throw refuse(path,
                   "tensor " + tensor.name + " belongs to parameter " + owner + ", but there is no param." + owner);
    if (param->second.shape != tensor.shape)
      throw refuse(path, "tensor " + tensor.name + " has shape " + safetensors::text_of(tensor.shape) + "; expected " +
                             safetensors::text_of(param->second.shape) + " as param." + owner);
  };
  for (const safetensors::Tensor& tensor : file.tensors()) {
    if (tensor.name.starts_with("param.")) continue;
    const bool gradient = tensor.name.starts_with("grad.");
    const std::size_t first = tensor.name.find('.'), second = tensor.name.find('.', first + 1);
    if ((!gradient && !tensor.name.starts_with("state.")) || second == std::string::npos)
      throw refuse(path, "tensor " + tensor.name + " is not named param.NAME, grad.STEP.NAME or state.STATE.NAME");
    const std::string middle = tensor.name.substr(first + 1, second - first - 1),
                      owner = tensor.name.substr(second + 1);
    check_owner(tensor, owner);
    if (!gradient) {
      recorded.states[middle].emplace(owner, load(file, tensor));
      continue;
    }
    const std::optional<std::int64_t> step = number(middle);
    if (!step || *step > 1'000'000)
      throw refuse(path, "tensor " + tensor.name + " names step '" + middle + "'; expected 0, 1, 2, ...");
    if (static_cast<std::int64_t>(recorded.gradients.size()) <= *step) recorded.gradients.resize(*step + 1);
    recorded.gradients[*step].emplace(owner, load(file, tensor));
  }
  for (std::size_t k = 0; k < recorded.gradients.size(); ++k)
    for (const std::string& name : recorded.names) {
      const auto gradient = recorded.gradients[k].find(name);
      const std::string tensor = "grad." + std::to_string(k) + "." + name;
      if (gradient == recorded.gradients[k].end())
        throw refuse(path, "tensor " + tensor + " is missing; every parameter needs a gradient in every step");
      if (gradient->second.dtype != recorded.gradients[0].at(name).dtype)
        throw refuse(path, "tensor " + tensor + " has another dtype than grad.0." + name);
    }
  if (const auto step = file.metadata().find("step"); step != file.metadata().end()) {
    const std::optional<std::int64_t> value = number(step->second);
    if (!value) throw refuse(path, "metadata step is '" + step->second + "'; expected a number of updates");
    recorded.step = *value;
  }
  return recorded;
}

}  // namespace regatta::cli
