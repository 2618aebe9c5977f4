// The writer behind a running job: copies, not live memory; any spread of parts over the ranks; the room for them.

#include "runtime/checkpoint/checkpoint_writer.h"

#include <gtest/gtest.h>

#include <set>

#include "runtime/version.h"
#include "tests/checkpoint/sample.h"
#include "tests/checkpoint/writer_tools.h"
#include "tests/support/spmd.h"

namespace regatta::testing {
namespace {

namespace fs = std::filesystem;
using checkpoint::Checkpoint;
using checkpoint::CheckpointWriter;
using checkpoint::SaveOutcome;

TEST(Writer, WhateverTheRanksGiveIsThereWhole) {
  std::mt19937_64 random(2);
  for (std::uint64_t seed = 1; seed <= 24; ++seed) {
    const TestFolder folder;
    const int ranks = static_cast<int>(seed % 5) + 1;
    const Sample sample(seed, static_cast<std::int64_t>(seed) * 1000, ranks, seed % 3 == 0 ? 40 : 7,
                        seed % 4 == 0 ? 6 : 3);
    run_ranks(ranks, [&](Transport& transport) {
      const Sample::Given given = sample.of_rank(transport.rank());
      CheckpointWriter writer({.folder = folder.path(), .calls = &unflushed}, transport);
      writer.save(given.contents);
      writer.finish();
      std::int64_t bytes = 0;
      for (const Sample::Bytes& values : given.memory) bytes += static_cast<std::int64_t>(values.size());
      const SaveOutcome outcome = writer.outcome().value();
      EXPECT_EQ(outcome.step, sample.step());
      EXPECT_EQ(outcome.bytes, bytes);
      EXPECT_EQ(outcome.problem, "");
      EXPECT_GT(outcome.copy_seconds, 0);
      EXPECT_GT(outcome.write_seconds, 0);
      EXPECT_FALSE(writer.outcome().has_value());
    });
    const std::string step = step_in(folder, sample.step());
    ASSERT_EQ(sample.misfit(step), "") << "seed " << seed;
    // Any part of any state, as other layouts want it.
    Checkpoint saved(step);
    EXPECT_EQ(saved.manifest().version, build_facts().version);
    for (const Sample::State& state : sample.states()) {
      for (int i = 0; i < 8; ++i) {
        const auto range = [&](std::int64_t extent) {
          const auto a = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(extent + 1));
          const auto b = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(extent + 1));
          return Range{std::min(a, b), std::max(a, b)};
        };
        sharding::BlockPart part{range(state.block.rows), range(state.block.cols), {}};
        part.run = range(part.rect_numel());
        Sample::Bytes got(static_cast<std::size_t>(part.run.size() * size_of(state.dtype)));
        saved.read(state.key, state.block, part, got.data());
        EXPECT_EQ(got, Sample::part_of(state, part));
      }
    }
    // Files: those the manifest names and no more; a set of weights exactly when several ranks have some.
    std::vector<std::string> named{"manifest.json"};
    for (const auto& file : saved.manifest().files) named.push_back(file.name);
    std::sort(named.begin(), named.end());
    EXPECT_EQ(names_in(step), named);
    std::set<int> writers;
    std::int64_t total = 0;
    for (const Sample::Weight& weight : sample.weights()) {
      writers.insert(weight.rank);
      total += static_cast<std::int64_t>(weight.values.size());
    }
    const std::string index = step + "/model.safetensors.index.json";
    ASSERT_EQ(fs::exists(index), writers.size() > 1);
    EXPECT_EQ(fs::exists(step + "/model.safetensors"), writers.size() == 1);
    if (writers.size() > 1) {
      const auto document = nlohmann::json::parse(bytes_in(index));
      EXPECT_EQ(document.at("metadata").at("total_size"), total);
      EXPECT_EQ(document.at("weight_map").size(), sample.weights().size());
      std::size_t i = 0;
      for ([[maybe_unused]] const int rank : writers) {  // numbered without gaps
        char name[64];
        std::snprintf(name, sizeof name, "/model-%05zu-of-%05zu.safetensors", ++i, writers.size());
        EXPECT_TRUE(fs::exists(step + name)) << name;
      }
    }
  }
}

// The job goes on with its memory as soon as save() has returned.
TEST(Writer, WritesTheCopyNotTheLiveMemory) {
  const TestFolder folder;
  constexpr int ranks = 2;
  Gate gate;
  std::vector<Sample> samples;
  for (const int largest : {6, 160, 3})
    samples.emplace_back(9, samples.size() + 1, ranks, largest);  // the memory of copies is kept
  run_ranks(ranks, [&](Transport& transport) {
    CheckpointWriter writer({.folder = folder.path(), .calls = &gate}, transport);
    for (const Sample& sample : samples) {
      gate.open(false);
      transport.gather_strings("", "closed");
      {
        Sample::Given given = sample.of_rank(transport.rank());
        writer.save(given.contents);
        for (Sample::Bytes& values : given.memory) std::fill(values.begin(), values.end(), std::byte{0xEE});
      }
      EXPECT_FALSE(writer.outcome().has_value());
      transport.gather_strings("", "overwritten");
      gate.open();
      writer.finish();
      EXPECT_EQ(ended(writer).step, sample.step());
    }
  });
  for (const Sample& sample : samples) EXPECT_EQ(sample.misfit(step_in(folder, sample.step())), "");
}

// Three saves, one upon another, none of them waited for.
TEST(Writer, ASaveWaitsForTheOneBefore) {
  const TestFolder folder;
  constexpr int ranks = 3;
  std::vector<Sample> samples;
  for (int step = 1; step <= 4; ++step) samples.emplace_back(4, step, ranks, 12);
  run_ranks(ranks, [&](Transport& transport) {
    CheckpointWriter writer({.folder = folder.path(), .calls = &unflushed}, transport);
    for (const Sample& sample : samples) writer.save(sample.of_rank(transport.rank()).contents);
    writer.finish();
    for (const Sample& sample : samples) {  // each is told, in order
      const SaveOutcome outcome = writer.outcome().value();
      EXPECT_EQ(outcome.step, sample.step());
      EXPECT_EQ(outcome.problem, "");
    }
    EXPECT_FALSE(writer.outcome().has_value());
    writer.finish();
  });
  for (const Sample& sample : samples) EXPECT_EQ(sample.misfit(step_in(folder, sample.step())), "");
  EXPECT_EQ(bytes_in(folder.at("latest")), "step-00000004\n");
}

TEST(Writer, RoomIsAskedForAllRanksTogether) {
  constexpr int ranks = 3;
  struct Room : UnflushedCalls {
    std::int64_t bytes = 0;
    std::int64_t free_bytes(const std::string&) override { return bytes; }
  } room;
  const TestFolder folder;
  // Every rank has more than what is asked for beside the tensors.
  std::int64_t own = 0;
  std::vector<std::vector<float>> values;
  for (int r = 0; r < ranks; ++r)
    own += 4 * static_cast<std::int64_t>(values.emplace_back((3 << 18) + 1000 * r).size());
  const auto contents_of = [&](int rank) {
    const std::vector<float>& mine = values[static_cast<std::size_t>(rank)];
    checkpoint::Contents contents;
    contents.step = 5;
    const auto half = static_cast<std::int64_t>(mine.size() / 2);
    contents.weights.push_back({"w" + std::to_string(rank), DType::f32, {half}, mine.data()});
    checkpoint::GivenPart part;
    part.key = {"w" + std::to_string(rank), "momentum", 0};
    part.block = {1, static_cast<std::int64_t>(mine.size()) - half};
    part.part = {{0, 1}, {0, part.block.cols}, {0, part.block.cols}};
    part.data = mine.data() + half;
    contents.state.push_back(part);
    return contents;
  };
  const auto save = [&](std::int64_t bytes) {
    room.bytes = bytes;
    std::vector<std::string> said(ranks);
    run_ranks(ranks, [&](Transport& transport) {
      CheckpointWriter writer({.folder = folder.path(), .calls = &room}, transport);
      std::string& mine = said[static_cast<std::size_t>(transport.rank())];
      mine = error_of([&] { writer.save(contents_of(transport.rank())); });
      if (mine.empty()) writer.finish();
    });
    for (const std::string& each : said) EXPECT_EQ(each, said[0]);
    return said[0];
  };
  const std::string said = save(own - 1);
  expect_says(said, "step 5");
  expect_says(said, folder.path() + " has room for " + std::to_string(own - 1));
  std::int64_t wanted = 0;
  ASSERT_EQ(std::sscanf(said.c_str() + said.find("takes"), "takes %ld", &wanted), 1) << said;
  EXPECT_GE(wanted, own + 4096);  // headers and the manifest take some
  EXPECT_LE(wanted, own + (64 << 20));
  EXPECT_NE(save(wanted - 1), "");
  EXPECT_TRUE(names_in(folder.path()).empty());  // said before anything is written
  EXPECT_EQ(save(wanted), "");
  EXPECT_EQ(save(-1), "");  // nobody knows: tried
  Checkpoint(step_in(folder, 5)).verify();
}

}  // namespace
}  // namespace regatta::testing
