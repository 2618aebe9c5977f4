#include "cli/finetune/weights.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <span>

#include "runtime/checkpoint/safetensors.h"
#include "runtime/error.h"
#include "runtime/torch/adapter.h"

namespace regatta::finetune {

namespace {

namespace fs = std::filesystem;

constexpr std::int64_t largest_file = 5'000'000'000;

at::ScalarType scalar_type(DType dtype) {
  return dtype == DType::f32 ? at::kFloat : dtype == DType::bf16 ? at::kBFloat16 : at::kHalf;
}

std::span<std::byte> bytes_of(const at::Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.data_ptr()), static_cast<std::size_t>(tensor.numel() * tensor.element_size())};
}

/// "3 missing (a, b, c)", the first few by name.
std::string listed(const std::vector<std::string>& names, const char* what) {
  std::string text = std::to_string(names.size()) + " " + what + " (";
  for (std::size_t i = 0; i < names.size() && i < 4; ++i) text += (i > 0 ? ", " : "") + names[i];
  return text + (names.size() > 4 ? ", ...)" : ")");
}

/// Older exporters stored the rotary table, and a tied head beside the embedding it equals.
bool is_redundant(const std::string& name, const DecoderConfig& config) {
  return name.ends_with("rotary_emb.inv_freq") || (config.tied_head && name == "lm_head.weight");
}

/// Empty when all fits.
std::string misfits_of(const Decoder& decoder, const safetensors::Model& model) {
  std::vector<std::string> missing, misshapen, extra;
  std::set<std::string> expected;
  for (const ParamShard& param : decoder.shards()) {
    expected.insert(param.name);
    const auto entry = model.find(param.name);
    if (!entry) {
      missing.push_back(param.name);
    } else if (entry->tensor->shape != param.shape) {
      misshapen.push_back(param.name + " is " + safetensors::text_of(entry->tensor->shape) + " instead of " +
                          safetensors::text_of(param.shape));
    } else if (!entry->tensor->element_type()) {
      misshapen.push_back(param.name + " is " + entry->tensor->dtype + " instead of F32, BF16 or F16");
    }
  }
  for (const auto& entry : model.entries()) {
    const std::string& name = entry.tensor->name;
    if (expected.count(name) == 0 && !is_redundant(name, decoder.config())) extra.push_back(name);
  }
  std::string misfits;
  const auto add = [&](const std::vector<std::string>& names, const char* what) {
    if (!names.empty()) misfits += (misfits.empty() ? "" : ", ") + listed(names, what);
  };
  add(missing, "missing");
  add(misshapen, "of another shape or type");
  add(extra, "that the model does not have");
  return misfits;
}

/// The part of a whole tensor that a rank holds; a view.
at::Tensor part_of(const at::Tensor& whole, const ParamShard& shard) {
  if (whole.dim() == 1) return whole.narrow(0, shard.cols.begin, shard.cols.size());
  return whole.narrow(0, shard.rows.begin, shard.rows.size()).narrow(1, shard.cols.begin, shard.cols.size());
}

/// The whole tensor on the group's first rank, undefined on the others.
at::Tensor gather(TensorGroup& group, const at::Tensor& mine, const std::string& name,
                  const std::vector<std::vector<ParamShard>>& shards_by_rank) {
  const ParamShard& own = *find_shard(shards_by_rank[static_cast<std::size_t>(group.rank())], name);
  if (!own.placement.find("tp")) return group.rank() == 0 ? mine.detach().contiguous() : at::Tensor();
  std::vector<std::vector<std::int64_t>> sizes;
  for (const std::vector<ParamShard>& shards : shards_by_rank) sizes.push_back(find_shard(shards, name)->local_shape);
  const std::vector<at::Tensor> parts = group.gather(mine, sizes, name);
  if (parts.empty()) return {};
  at::Tensor whole = at::empty(own.shape, mine.options().requires_grad(false));
  for (std::size_t r = 0; r < parts.size(); ++r) part_of(whole, *find_shard(shards_by_rank[r], name)).copy_(parts[r]);
  return whole;
}

}  // namespace

void load_weights(Decoder& decoder, const std::string& folder) {
  const safetensors::Model model(folder);
  if (const std::string misfits = misfits_of(decoder, model); !misfits.empty())
    throw Error(Code::invalid_argument, folder + ": the weights do not fit config.json: " + misfits);
  load_weights(decoder, model, folder, false);
}

std::string load_weights(Decoder& decoder, const safetensors::Model& model, const std::string& where, bool partial) {
  std::string misfits = misfits_of(decoder, model);
  if (!misfits.empty() && !partial)
    throw Error(Code::invalid_argument, where + ": the weights do not fit this job's model: " + misfits +
                                            " (--allow tensors goes on with those that fit)");
  for (const auto& item : decoder.named_parameters()) {
    const ParamShard& shard = *find_shard(decoder.shards(), item.key());
    const auto found = model.find(item.key());
    if (!found || found->tensor->shape != shard.shape || !found->tensor->element_type()) continue;
    const auto entry = *found;
    at::Tensor values = item.value().detach();
    const at::ScalarType type = scalar_type(*entry.tensor->element_type());
    if (type == values.scalar_type() && shard.local_shape == shard.shape) {
      entry.read(bytes_of(values));
    } else {
      const at::Tensor stored = at::empty(shard.shape, type);
      entry.read(bytes_of(stored));
      values.copy_(part_of(stored, shard));
    }
    if (!at::isfinite(values).all().item<bool>()) {
      throw Error(Code::invalid_argument,
                  entry.file->path() + ": tensor '" + item.key() + "' has " +
                      std::to_string(values.numel() - at::isfinite(values).sum().item<std::int64_t>()) +
                      " values that are NaN or infinite");
    }
  }
  return misfits;
}

namespace {

std::vector<std::vector<ParamShard>> shards_by_tp_rank(const Decoder& decoder, int ranks) {
  const sharding::Mesh peers({{"tp", ranks}});
  std::vector<std::vector<ParamShard>> shards;
  for (int r = 0; r < ranks; ++r) shards.push_back(decoder_shards(decoder.config(), peers, r));
  return shards;
}

}  // namespace

WeightShare weights_of_rank(Decoder& decoder, int dp, int dp_rank) {
  TensorGroup& group = decoder.group();
  const std::vector<std::vector<ParamShard>> shards = shards_by_tp_rank(decoder, group.size());
  // Largest first, to whoever has least.
  std::vector<std::pair<std::int64_t, std::string>> order;
  for (const ParamShard& shard : decoder.shards()) order.emplace_back(-shard.numel(), shard.name);
  std::sort(order.begin(), order.end());
  std::vector<std::int64_t> load(static_cast<std::size_t>(dp), 0);
  std::set<std::string> own;
  for (const auto& [minus_numel, name] : order) {
    const auto least = std::min_element(load.begin(), load.end());
    *least -= minus_numel;
    if (least - load.begin() == dp_rank) own.insert(name);
  }
  WeightShare share;
  for (const auto& item : decoder.named_parameters()) {
    if (own.count(item.key()) == 0) continue;
    at::Tensor values = gather(group, item.value(), item.key(), shards);
    if (group.rank() != 0) continue;
    values = values.cpu();
    share.kept.push_back(values);
    share.sources.push_back({item.key(), dtype_of(values, item.key()), values.sizes().vec(), values.data_ptr()});
  }
  return share;
}

std::string config_text(const Decoder& decoder) {
  bool narrow = false;
  for (const auto& item : decoder.named_parameters())
    narrow = narrow || dtype_of(item.value(), item.key()) == DType::bf16;
  return decoder_config_json(decoder.config(), narrow ? "bfloat16" : "float32");
}

std::vector<std::string> save_weights(Decoder& decoder, const std::string& folder) {
  TensorGroup& group = decoder.group();
  const std::vector<std::vector<ParamShard>> shards_by_rank = shards_by_tp_rank(decoder, group.size());
  std::vector<safetensors::Source> sources;
  std::vector<at::Tensor> kept;
  for (const auto& item : decoder.named_parameters()) {
    at::Tensor values = gather(group, item.value(), item.key(), shards_by_rank);
    if (group.rank() != 0) continue;
    values = values.cpu();
    kept.push_back(values);
    sources.push_back({item.key(), dtype_of(values, item.key()), values.sizes().vec(), values.data_ptr()});
  }
  if (group.rank() != 0) return {};
  const std::string config_path = (fs::path(folder) / "config.json").string();
  std::ofstream config(config_path, std::ios::binary | std::ios::trunc);
  config << config_text(decoder);
  config.close();
  if (!config) throw Error(Code::checkpoint, config_path + ": cannot be written");
  std::vector<std::string> paths = safetensors::write_model(folder, "model", sources, {{"format", "pt"}}, largest_file);
  paths.insert(paths.begin(), config_path);
  return paths;
}

namespace {

constexpr const char* tokenizer_files[] = {
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "vocab.json",     "merges.txt",      "added_tokens.json",     "generation_config.json"};

}  // namespace

std::vector<std::pair<std::string, std::string>> tokenizer_texts(const std::string& from) {
  std::vector<std::pair<std::string, std::string>> texts;
  for (const char* name : tokenizer_files) {
    std::ifstream file(fs::path(from) / name, std::ios::binary);
    if (file) texts.emplace_back(name, std::string(std::istreambuf_iterator<char>(file), {}));
  }
  return texts;
}

void copy_tokenizer(const std::string& from, const std::string& to) {
  for (const char* name : tokenizer_files) {
    const fs::path source = fs::path(from) / name;
    std::error_code failed;
    if (!fs::exists(source, failed)) continue;
    fs::copy_file(source, fs::path(to) / name, fs::copy_options::overwrite_existing, failed);
    if (failed)
      throw Error(Code::checkpoint, source.string() + ": cannot be copied to " + to + ": " + failed.message());
  }
}

}  // namespace regatta::finetune
