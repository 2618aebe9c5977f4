#pragma once
// Small random cases for the replay machinery: matrices of awkward shapes with widely scaled and dead rows.

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cli/replay/case.h"
#include "kernels/kernels.h"

namespace regatta::testing {

inline cli::WholeTensor tensor_of(const std::vector<float>& values, std::vector<std::int64_t> shape, DType dtype) {
  cli::WholeTensor tensor{dtype, std::move(shape), {}};
  tensor.values.resize(values.size() * size_of(dtype));
  if (dtype == DType::f32)
    std::memcpy(tensor.values.data(), values.data(), tensor.values.size());
  else
    kernels::cpu_kernels().from_f32(values.data(), tensor.values.data(), dtype,
                                    static_cast<std::int64_t>(values.size()));
  return tensor;
}

inline std::vector<float> floats_of(const cli::WholeTensor& tensor) {
  std::vector<float> values(tensor.values.size() / size_of(tensor.dtype));
  kernels::cpu_kernels().to_f32(tensor.values.data(), tensor.dtype, values.data(),
                                static_cast<std::int64_t>(values.size()));
  return values;
}

struct Shape {
  std::string name;
  std::vector<std::int64_t> shape;
};

/// Parameters around 1, gradients whose rows differ in scale by up to 10^4, some rows all zero.
class CaseBuilder {
 public:
  CaseBuilder(std::uint64_t seed, int steps) : random_(seed) { case_.gradients.resize(steps); }

  CaseBuilder& add(const Shape& shape, DType dtype = DType::f32, DType grad_dtype = DType::f32) {
    std::int64_t numel = 1;
    for (std::int64_t extent : shape.shape) numel *= extent;
    const std::int64_t cols = shape.shape.back();
    std::normal_distribution<float> normal;
    std::vector<float> values(numel);
    for (float& value : values) value = normal(random_);
    case_.names.push_back(shape.name);
    case_.params[shape.name] = tensor_of(values, shape.shape, dtype);
    std::vector<float> scale(numel / cols);
    std::uniform_real_distribution<float> exponent(-4, 0);
    for (float& s : scale) s = random_() % 6 == 0 ? 0.0F : std::pow(10.0F, exponent(random_));
    for (auto& gradients : case_.gradients) {
      for (std::int64_t i = 0; i < numel; ++i) values[i] = normal(random_) * scale[i / cols];
      gradients[shape.name] = tensor_of(values, shape.shape, grad_dtype);
    }
    return *this;
  }

  cli::ReplayCase take() {
    // Names are taken in the order of the map, as a file's would be.
    case_.names.clear();
    for (const auto& [name, tensor] : case_.params) case_.names.push_back(name);
    return std::move(case_);
  }

 private:
  std::mt19937_64 random_;
  cli::ReplayCase case_;
};

}  // namespace regatta::testing
