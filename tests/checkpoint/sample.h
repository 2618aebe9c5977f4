#pragma once
// What a job of some ranks might save, drawn from a seed: states of uneven blocks cut over the ranks in rectangles and
// runs, weights dealt out among them, texts. Knows the whole, so that whatever comes back can be compared with it.

#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/checkpoint_writer.h"
#include "tests/checkpoint/test_folder.h"

namespace regatta::testing {

class Sample {
 public:
  using Bytes = std::vector<std::byte>;
  struct State {
    checkpoint::StateKey key;
    MatrixShape block;
    DType dtype = DType::f32;
    Bytes whole;
    std::vector<std::optional<sharding::BlockPart>> parts;  ///< by rank
  };
  struct Weight {
    std::string name;
    DType dtype = DType::f32;
    std::vector<std::int64_t> shape;
    Bytes values;
    int rank = 0;
  };
  /// What a rank hands over; the values lie in `memory`.
  struct Given {
    std::vector<Bytes> memory;
    checkpoint::Contents contents;
  };

  /// `largest`: rows and columns of blocks.
  Sample(std::uint64_t seed, std::int64_t step, int ranks, int largest = 9, int tensors = 3)
      : step_(step), ranks_(ranks), random_(seed * 1'000'003 + static_cast<std::uint64_t>(step)) {
    job_ = nlohmann::ordered_json{{"step", step}, {"name", "job " + std::to_string(draw(0, 999'999))}}.dump();
    for (int i = 0; i < tensors; ++i) {
      const std::map<std::string, DType> dtypes{{"momentum", dtype()}, {"moment2", dtype()}};
      for (std::int64_t block = 0, blocks = draw(1, 3); block < blocks; ++block)
        for (const auto& [name, type] : dtypes)
          if (draw(0, 3) > 0)
            add_state({"layer." + std::to_string(i) + ".weight", name, static_cast<int>(block)}, type, largest);
      std::vector<std::int64_t> shape;
      for (int d = 0; d < draw(0, 2); ++d) shape.push_back(draw(0, 9) == 0 ? 0 : draw(1, largest));
      Weight weight{"layer." + std::to_string(i) + ".weight", dtype(), shape, {}, static_cast<int>(draw(0, ranks - 1))};
      std::int64_t bytes = size_of(weight.dtype);
      for (const std::int64_t dim : shape) bytes *= dim;
      weight.values = noise(bytes);
      weights_.push_back(std::move(weight));
    }
    texts_ = {{"config.json", "{\"of\": " + std::to_string(draw(0, 999'999)) + "}"}, {"tokenizer.json", ""}};
    if (draw(0, 1) == 0) texts_.pop_back();
  }

  std::int64_t step() const { return step_; }
  const std::string& job() const { return job_; }
  const std::vector<State>& states() const { return states_; }
  const std::vector<Weight>& weights() const { return weights_; }
  const std::vector<checkpoint::TextFile>& texts() const { return texts_; }

  static Bytes part_of(const State& state, const sharding::BlockPart& part) {
    const std::int64_t size = size_of(state.dtype);
    Bytes values(static_cast<std::size_t>(part.run.size() * size));
    for (std::int64_t i = 0; i < part.run.size(); ++i) {
      const std::int64_t at = part.run.begin + i, width = part.cols.size();
      const std::int64_t row = part.rows.begin + at / width, col = part.cols.begin + at % width;
      std::memcpy(values.data() + i * size, state.whole.data() + (row * state.block.cols + col) * size,
                  static_cast<std::size_t>(size));
    }
    return values;
  }

  Given of_rank(int rank) const {
    Given given;
    given.contents.step = step_;
    // Only rank 0's count.
    given.contents.job = rank == 0 ? job_ : R"({"of":"another rank"})";
    given.contents.texts = rank == 0 ? texts_ : std::vector<checkpoint::TextFile>{{"of-another-rank.json", "{}"}};
    for (const State& state : states_) {
      const auto& part = state.parts[static_cast<std::size_t>(rank)];
      if (!part) continue;
      given.memory.push_back(part_of(state, *part));
      checkpoint::GivenPart one;
      one.key = state.key;
      one.block = state.block;
      one.part = *part;
      one.dtype = state.dtype;
      one.data = given.memory.back().data();
      given.contents.state.push_back(std::move(one));
    }
    for (const Weight& weight : weights_) {
      if (weight.rank != rank) continue;
      given.memory.push_back(weight.values);
      given.contents.weights.push_back({weight.name, weight.dtype, weight.shape, given.memory.back().data()});
    }
    return given;
  }

  /// What is wrong with the checkpoint in `folder`, if it should hold this; empty when nothing is. Throws what the
  /// reader throws.
  std::string misfit(const std::string& folder) const {
    checkpoint::Checkpoint found(folder);
    found.verify();
    if (found.manifest().step != step_) return "its step is " + std::to_string(found.manifest().step);
    if (found.manifest().job != job_) return "its job is " + found.manifest().job;
    std::size_t texts = 0;
    for (const auto& file : found.manifest().files) {
      if (file.name.ends_with(".safetensors") || file.name == "model.safetensors.index.json") continue;
      ++texts;
      const bool fits = std::any_of(texts_.begin(), texts_.end(), [&](const checkpoint::TextFile& text) {
        return text.name == file.name && text.text == bytes_in(folder + "/" + file.name);
      });
      if (!fits) return file.name + " is another";
    }
    if (texts != texts_.size()) return "it has " + std::to_string(texts) + " texts";
    if (found.state().size() != states_.size()) return "it has " + std::to_string(found.state().size()) + " states";
    for (const State& state : states_) {
      const auto there = found.state().find(state.key);
      if (there == found.state().end()) return state.key.text() + " is missing";
      if (there->second.block != state.block || there->second.dtype != state.dtype ||
          there->second.stored != state.block.numel())
        return state.key.text() + " is described otherwise";
      const MatrixShape block = state.block;
      Bytes values(state.whole.size());
      found.read(state.key, block, {{0, block.rows}, {0, block.cols}, {0, block.numel()}}, values.data());
      if (values != state.whole) return state.key.text() + " has other values";
    }
    const safetensors::Model model = found.weights();
    if (model.entries().size() != weights_.size()) return "it has other weights";
    for (const Weight& weight : weights_) {
      const auto entry = model.find(weight.name);
      if (!entry || entry->tensor->shape != weight.shape || entry->tensor->element_type() != weight.dtype)
        return weight.name + " is another";
      Bytes values(static_cast<std::size_t>(entry->tensor->bytes()));
      entry->read(values);
      if (values != weight.values) return weight.name + " has other values";
    }
    return "";
  }

  std::int64_t draw(std::int64_t from, std::int64_t to) {
    return std::uniform_int_distribution<std::int64_t>(from, to)(random_);
  }

 private:
  DType dtype() { return std::vector{DType::f32, DType::bf16, DType::f16}[static_cast<std::size_t>(draw(0, 2))]; }
  Bytes noise(std::int64_t bytes) {
    Bytes values(static_cast<std::size_t>(bytes));
    for (std::byte& value : values) value = static_cast<std::byte>(random_());
    return values;
  }

  void add_state(const checkpoint::StateKey& key, DType type, int largest) {
    State state{key, {draw(1, largest), draw(1, largest)}, type, {}, {}};
    state.whole = noise(state.block.numel() * size_of(state.dtype));
    state.parts.resize(static_cast<std::size_t>(ranks_));
    // Rectangles side by side or one above another, each cut into runs over some of the ranks.
    const bool by_rows = draw(0, 1) == 0;
    const std::int64_t extent = by_rows ? state.block.rows : state.block.cols;
    const int rectangles = static_cast<int>(draw(1, std::min<std::int64_t>(ranks_, extent)));
    std::int64_t begin = 0;
    for (int r = 0, rank = 0; r < rectangles; ++r) {
      const int left = rectangles - r - 1;
      const std::int64_t end = left == 0 ? extent : draw(begin + 1, extent - left);
      const Range cut{begin, end}, rows{0, state.block.rows}, cols{0, state.block.cols};
      const sharding::BlockPart rectangle{by_rows ? cut : rows, by_rows ? cols : cut, {}};
      const int ranks = left == 0 ? ranks_ - rank : static_cast<int>(draw(1, ranks_ - rank - left));
      std::int64_t at = 0;
      for (int k = 0; k < ranks; ++k, ++rank) {
        const std::int64_t until = k + 1 == ranks ? rectangle.rect_numel() : draw(at, rectangle.rect_numel());
        const bool empty = until == at;
        if (!empty || draw(0, 1) == 0) {  // an empty part may be given or not
          state.parts[static_cast<std::size_t>(rank)] = rectangle;
          state.parts[static_cast<std::size_t>(rank)]->run = {at, until};
        }
        at = until;
      }
      begin = end;
    }
    states_.push_back(std::move(state));
  }

  std::int64_t step_;
  int ranks_;
  std::mt19937_64 random_;
  std::string job_;
  std::vector<State> states_;
  std::vector<Weight> weights_;
  std::vector<checkpoint::TextFile> texts_;
};

}  // namespace regatta::testing
