#include "runtime/checkpoint/state_file.h"

#include <nlohmann/json.hpp>

#include "runtime/error.h"

namespace regatta::checkpoint {
namespace {

using Json = nlohmann::ordered_json;

// A block's part of a state lies on a rank in one piece, so the key makes a name of its own.
std::string tensor_name(const StateKey& key) { return key.state + "/" + key.param + "/" + std::to_string(key.block); }

Json json_of(Range range) { return {range.begin, range.end}; }

Range range_of(const Json& pair) { return {pair.at(0).get<std::int64_t>(), pair.at(1).get<std::int64_t>()}; }

bool within(Range part, std::int64_t extent) { return 0 <= part.begin && part.begin <= part.end && part.end <= extent; }

}  // namespace

std::vector<safetensors::Source> state_tensors(std::span<const GivenPart> parts) {
  std::vector<safetensors::Source> tensors;
  for (const GivenPart& part : parts)
    tensors.push_back({tensor_name(part.key), part.dtype, {part.part.run.size()}, part.data});
  return tensors;
}

safetensors::Metadata state_metadata(std::span<const GivenPart> parts, std::int64_t step) {
  Json list = Json::array();
  for (const GivenPart& part : parts) {
    list.push_back({{"tensor", tensor_name(part.key)},
                    {"param", part.key.param},
                    {"state", part.key.state},
                    {"block", part.key.block},
                    {"block_shape", {part.block.rows, part.block.cols}},
                    {"rows", json_of(part.part.rows)},
                    {"cols", json_of(part.part.cols)},
                    {"run", json_of(part.part.run)}});
  }
  return {{"format", "regatta.state.1"}, {"step", std::to_string(step)}, {"parts", list.dump()}};
}

std::vector<StoredPart> stored_parts(const safetensors::File& file) {
  const auto refuse = [&](const std::string& what) {
    throw Error(Code::invalid_argument, file.path() + " is no optimizer state of Regatta's: " + what);
  };
  const auto entry = file.metadata().find("parts");
  if (entry == file.metadata().end()) refuse("its metadata has no parts");
  std::vector<StoredPart> parts;
  try {
    for (const Json& each : Json::parse(entry->second)) {
      StoredPart part;
      part.key = {each.at("param").get<std::string>(), each.at("state").get<std::string>(),
                  each.at("block").get<int>()};
      part.block = {each.at("block_shape").at(0).get<std::int64_t>(), each.at("block_shape").at(1).get<std::int64_t>()};
      part.part = {range_of(each.at("rows")), range_of(each.at("cols")), range_of(each.at("run"))};
      const safetensors::Tensor* tensor = file.find(each.at("tensor").get<std::string>());
      if (tensor == nullptr || !tensor->element_type()) refuse("it lacks the tensor of " + part.key.text());
      if (!within(part.part.rows, part.block.rows) || !within(part.part.cols, part.block.cols) ||
          !within(part.part.run, part.part.rect_numel()) || tensor->numel != part.part.run.size())
        refuse("the part of " + part.key.text() + " does not fit its tensor");
      part.dtype = *tensor->element_type();
      part.offset = file.data_begin() + tensor->begin;
      parts.push_back(std::move(part));
    }
  } catch (const nlohmann::json::exception& error) {
    refuse(error.what());
  }
  return parts;
}

}  // namespace regatta::checkpoint
