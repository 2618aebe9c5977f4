#include "cli/finetune/tensor_group.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/kernels.h"

namespace regatta::finetune {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Identity forward, sum backward.
struct Spread : public torch::autograd::Function<Spread> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, TensorGroup* group) {
    context->saved_data["group"] = reinterpret_cast<std::int64_t>(group);
    return x.view_as(x);
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    auto* group = reinterpret_cast<TensorGroup*>(context->saved_data["group"].toInt());
    return {group->reduce(grads[0], "gradient of an input of split linears"), at::Tensor()};
  }
};

/// Sum forward, identity backward.
struct Sum : public torch::autograd::Function<Sum> {
  static at::Tensor forward(AutogradContext*, const at::Tensor& x, TensorGroup* group) {
    return group->reduce(x, "partial outputs of a split linear");
  }
  static variable_list backward(AutogradContext*, variable_list grads) { return {grads[0], at::Tensor()}; }
};

void add_up(std::span<const float* const> pieces, std::int64_t count, float* out) {
  std::vector<const void*> from(pieces.begin(), pieces.end());
  kernels::WholeSum squares;
  std::int64_t non_finite = 0;
  kernels::cpu_kernels().reduce_tree(
      {from.data(), static_cast<int>(from.size()), DType::f32, count, out, &squares, &non_finite});
}

void take_largest(std::span<const float* const> pieces, std::int64_t count, float* out) {
  for (std::int64_t i = 0; i < count; ++i) {
    float largest = pieces[0][i];
    // NaN wins, so that a broken score shows.
    for (const float* piece : pieces) largest = piece[i] > largest || piece[i] != piece[i] ? piece[i] : largest;
    out[i] = largest;
  }
}

}  // namespace

std::shared_ptr<TensorGroup> TensorGroup::make(Transport& root, const sharding::Mesh& mesh) {
  if (mesh.size("tp") == 1) return alone();
  return std::shared_ptr<TensorGroup>(new TensorGroup(root.split(mesh.group(root.rank(), {"tp"}))));
}

std::shared_ptr<TensorGroup> TensorGroup::alone() { return std::shared_ptr<TensorGroup>(new TensorGroup(nullptr)); }

TensorGroup::~TensorGroup() {
  // Calls in flight use the buffer and the bounds.
  if (transport_) transport_->drain();
}

at::Tensor TensorGroup::spread(const at::Tensor& x) { return transport_ ? Spread::apply(x, this) : x; }
at::Tensor TensorGroup::sum(const at::Tensor& x) { return transport_ ? Sum::apply(x, this) : x; }

at::Tensor TensorGroup::largest(const at::Tensor& x) {
  return transport_ ? combine(x.detach(), take_largest, "largest scores") : x.detach();
}

at::Tensor TensorGroup::reduce(const at::Tensor& x, std::string_view label) {
  return transport_ ? combine(x.detach(), add_up, label) : x.detach();
}

at::Tensor TensorGroup::combine(const at::Tensor& x, Combine combine, std::string_view label) {
  const std::int64_t bytes = x.numel() * static_cast<std::int64_t>(sizeof(float));
  // Peers see the same sizes in the same order, so all of them grow at the same call.
  if (bytes > buffer_.bytes())
    buffer_ = transport_->allocate(static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(bytes))));
  float* const data = reinterpret_cast<float*>(buffer_.data());
  at::from_blob(data, x.sizes(), at::kFloat).copy_(x);

  constexpr std::int64_t line = 64;  // bytes
  const std::int64_t lines = (bytes + line - 1) / line;
  const int size = transport_->world_size();
  bounds_.resize(static_cast<std::size_t>(size) + 1);
  for (int r = 0; r <= size; ++r) bounds_[static_cast<std::size_t>(r)] = std::min(bytes, lines * r / size * line);
  std::byte* const own = buffer_.data() + bounds_[static_cast<std::size_t>(transport_->rank())];
  const std::int64_t own_begin = bounds_[static_cast<std::size_t>(transport_->rank())];
  // A peer reads this rank's part of its own chunk only, so the result may replace it.
  transport_->reduce_scatter(
      buffer_, 0, bounds_,
      [combine, own, own_begin](std::span<const std::byte* const> pieces, std::int64_t begin, std::int64_t end) {
        std::vector<const float*> from;
        for (const std::byte* piece : pieces) from.push_back(reinterpret_cast<const float*>(piece));
        combine(from, (end - begin) / static_cast<std::int64_t>(sizeof(float)),
                reinterpret_cast<float*>(own + (begin - own_begin)));
      },
      label);
  transport_->all_gather(buffer_, 0, bounds_, label).wait();
  return at::from_blob(data, x.sizes(), at::kFloat).to(x.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
}

std::vector<at::Tensor> TensorGroup::gather(const at::Tensor& mine, const std::vector<std::vector<std::int64_t>>& sizes,
                                            std::string_view label) {
  const at::Tensor whole = mine.detach().contiguous();
  if (!transport_) return {whole};
  const auto ranks = static_cast<std::size_t>(size());
  std::vector<std::int64_t> sent(ranks, 0), received(ranks, 0);
  std::vector<at::Tensor> all;
  std::vector<std::byte> arrived;
  if (rank() == 0) {
    for (std::size_t r = 0; r < ranks; ++r) {
      all.push_back(r == 0 ? whole : at::empty(sizes[r], whole.options()));
      received[r] = r == 0 ? 0 : all[r].numel() * whole.element_size();
      arrived.resize(arrived.size() + static_cast<std::size_t>(received[r]));
    }
  } else {
    sent[0] = whole.numel() * whole.element_size();
  }
  const auto* from = static_cast<const std::byte*>(whole.data_ptr());
  transport_->exchange({from, static_cast<std::size_t>(sent[0])}, sent, arrived, received, label).wait();
  std::size_t at = 0;
  for (std::size_t r = 1; r < all.size(); ++r) {
    if (received[r] > 0) std::memcpy(all[r].data_ptr(), arrived.data() + at, static_cast<std::size_t>(received[r]));
    at += static_cast<std::size_t>(received[r]);
  }
  return all;
}

}  // namespace regatta::finetune
