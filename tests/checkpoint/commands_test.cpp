// What `regatta inspect` and `regatta consolidate` print, write and refuse, beside what was saved.

#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <numeric>

#include "cli/commands.h"
#include "runtime/checkpoint/checkpoint_folder.h"
#include "runtime/error.h"
#include "runtime/version.h"
#include "tests/checkpoint/failing_calls.h"
#include "tests/checkpoint/sample.h"
#include "tests/support/spmd.h"

namespace regatta::testing {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct Said {
  std::string out, err, refused;
};

/// The command as the program runs it.
Said run(std::vector<std::string> words) {
  CLI::App app("regatta");
  app.require_subcommand(1);
  cli::add_inspect(app);
  cli::add_consolidate(app);
  std::reverse(words.begin(), words.end());
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  Said said;
  try {
    app.parse(words);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::invalid_argument) << error.what();
    said.refused = error.what();
  } catch (const CLI::ParseError& error) {
    said.refused = error.what();
  }
  std::fflush(stdout);
  said.out = ::testing::internal::GetCapturedStdout();
  said.err = ::testing::internal::GetCapturedStderr();
  return said;
}

#define EXPECT_SAYS(text, words) \
  EXPECT_NE((text).find(words), std::string::npos) << "'" << (text) << "' lacks '" << (words) << "'"

class Commands : public ::testing::Test {
 protected:
  static constexpr int ranks = 3;
  /// `without`: a rank that keeps its parts of the state to itself.
  void save(const Sample& sample, int without = -1) {
    run_ranks(ranks, [&](Transport& transport) {
      Sample::Given given = sample.of_rank(transport.rank());
      given.contents.job = job_.dump();
      if (transport.rank() == without) given.contents.state.clear();
      checkpoint::CheckpointWriter writer({.folder = folder_.path(), .calls = &calls_}, transport);
      writer.save(given.contents);
      writer.finish();
    });
  }
  std::string at(std::int64_t step) const { return folder_.at(checkpoint::folder_name(step)); }

  TestFolder folder_;
  UnflushedCalls calls_;
  Json job_{{"tokens", 4711},  {"rule", "some rule"},   {"mesh", "dp=3"},
            {"mode", "zero7"}, {"transport", "pigeon"}, {"more", {1, 2}}};
};

TEST_F(Commands, InspectHasEveryTensorFileAndFact) {
  const Sample sample(12, 31, ranks, 8, 4);
  save(sample);
  const Json document = Json::parse(run({"inspect", at(31), "--json"}).out);
  EXPECT_EQ(document.at("path"), at(31));
  EXPECT_EQ(document.at("step"), 31);
  EXPECT_EQ(document.at("version"), build_facts().version);
  EXPECT_EQ(document.at("job"), job_);
  std::set<std::string> files;
  for (const Json& file : document.at("files")) {
    const std::string name = file.at("name");
    EXPECT_EQ(file.at("bytes"), fs::file_size(at(31) + "/" + name));
    files.insert(name);
  }
  files.insert("manifest.json");
  const std::vector<std::string> there = names_in(at(31));
  EXPECT_EQ(files, std::set<std::string>(there.begin(), there.end()));
  EXPECT_EQ(document.at("weights").size(), sample.weights().size());
  const Said plain = run({"inspect", at(31)});
  for (const Sample::Weight& weight : sample.weights()) {
    const Json expected{{"name", weight.name},
                        {"dtype", safetensors::file_name_of(weight.dtype)},
                        {"shape", weight.shape},
                        {"bytes", weight.values.size()}};
    EXPECT_EQ(std::count(document.at("weights").begin(), document.at("weights").end(), expected), 1) << expected;
  }
  EXPECT_EQ(document.at("state").size(), sample.states().size());
  for (const Sample::State& state : sample.states()) {
    const Json expected{{"param", state.key.param},
                        {"state", state.key.state},
                        {"block", state.key.block},
                        {"shape", {state.block.rows, state.block.cols}},
                        {"dtype", safetensors::file_name_of(state.dtype)},
                        {"complete", true}};
    EXPECT_EQ(std::count(document.at("state").begin(), document.at("state").end(), expected), 1) << expected;
    const std::string line =
        "  " + state.key.param + (state.key.block > 0 ? " block " + std::to_string(state.key.block) : "") + " ";
    EXPECT_SAYS(plain.out, line);
  }
  EXPECT_SAYS(plain.out, at(31) + ": step 31, saved by regatta " + std::string(build_facts().version));
  for (const char* words :
       {"tokens      4711", "rule        some rule", "mesh        dp=3", "mode        zero7", "transport   pigeon"})
    EXPECT_SAYS(plain.out, words);
  EXPECT_EQ(plain.out.find("INCOMPLETE"), std::string::npos);
  EXPECT_EQ(plain.err, "");
}

TEST_F(Commands, VerifyReadsEveryFile) {
  const Sample sample(12, 31, ranks, 8, 4), later(12, 40, ranks, 8, 4);
  save(sample);
  save(later);
  const Said sound = run({"inspect", at(31), "--verify"});
  EXPECT_EQ(sound.refused, "");
  EXPECT_SAYS(sound.err, at(31) + " is sound");
  EXPECT_EQ(run({"inspect", folder_.path(), "--verify"}).refused, "");
  for (const std::string& name : names_in(at(31))) {
    const std::string line = name + " is sound, " + std::to_string(fs::file_size(at(31) + "/" + name));
    EXPECT_EQ(sound.err.find(line) != std::string::npos, name != "manifest.json") << line;
    const std::string path = at(31) + "/" + name, whole = bytes_in(path);
    if (whole.empty()) continue;
    std::string damaged = whole;
    damaged.back() ^= 2;
    put(path, damaged);
    const Said said = run({"inspect", at(31), "--verify"});
    EXPECT_SAYS(said.refused, path);
    EXPECT_EQ(said.out, "");
    // In a list, the one that is damaged is named and the others are not.
    const Said list = run({"inspect", folder_.path(), "--verify"});
    EXPECT_SAYS(list.refused, path);
    EXPECT_SAYS(list.out, "step 31");
    EXPECT_SAYS(list.out, path);
    EXPECT_SAYS(list.out, "step 40        sound\n");
    const Json json = Json::parse(run({"inspect", folder_.path(), "--verify", "--json"}).out);
    ASSERT_EQ(json.size(), 2U);
    for (std::size_t i = 0; i < 2; ++i) {
      EXPECT_EQ(json[i].at("step"), i == 0 ? 31 : 40);
      EXPECT_EQ(json[i].at("path"), at(i == 0 ? 31 : 40));
      EXPECT_EQ(json[i].at("problem") == "", i == 1);
    }
    put(path, whole);
  }
  EXPECT_SAYS(run({"inspect", folder_.path()}).out, "step 31        opens\nstep 40        opens\n");
}

TEST_F(Commands, AMissingPartIsSaid) {
  const Sample sample(13, 5, ranks, 8, 4);
  save(sample, 1);
  std::int64_t incomplete = 0;
  for (const Sample::State& state : sample.states())
    incomplete += state.parts[1] && !state.parts[1]->run.empty() ? 1 : 0;
  ASSERT_GT(incomplete, 0);
  const Json document = Json::parse(run({"inspect", at(5), "--json"}).out);
  for (const Json& one : document.at("state")) incomplete -= one.at("complete") == false ? 1 : 0;
  EXPECT_EQ(incomplete, 0);
  EXPECT_SAYS(run({"inspect", at(5)}).out, "INCOMPLETE");
  EXPECT_SAYS(run({"inspect", at(5), "--verify"}).refused, "is incomplete");
  EXPECT_SAYS(run({"consolidate", at(5), "--state", "--out", folder_.at("state")}).refused, "elements of the state");
  EXPECT_FALSE(fs::exists(folder_.at("state")));
  EXPECT_EQ(run({"consolidate", at(5), "--out", folder_.at("weights")}).refused, "");
}

TEST_F(Commands, ConsolidateWritesEveryValue) {
  for (const std::uint64_t seed : {21, 22, 23}) {
    const Sample sample(seed, 77, ranks, 8, 5);
    save(sample);
    const std::string weights = folder_.at("weights.safetensors"), states = folder_.at("state.safetensors");
    EXPECT_EQ(run({"consolidate", at(77), "--out", weights}).out,
              weights + ": " + std::to_string(sample.weights().size()) + " tensors of step 77\n");
    const safetensors::File file(weights);
    EXPECT_EQ(file.metadata(), (safetensors::Metadata{{"format", "pt"}}));
    EXPECT_EQ(file.tensors().size(), sample.weights().size());
    const auto values_of = [](const safetensors::File& in, const safetensors::Tensor& tensor) {
      Sample::Bytes values(static_cast<std::size_t>(tensor.bytes()));
      in.read(tensor, values);
      return values;
    };
    for (const Sample::Weight& weight : sample.weights()) {
      const safetensors::Tensor* tensor = file.find(weight.name);
      ASSERT_NE(tensor, nullptr);
      EXPECT_EQ(tensor->shape, weight.shape);
      EXPECT_EQ(tensor->element_type(), weight.dtype);
      EXPECT_EQ(values_of(file, *tensor), weight.values);
    }
    std::map<std::string, std::vector<const Sample::State*>> blocks;
    for (const Sample::State& state : sample.states())
      blocks["state." + state.key.state + "." + state.key.param].push_back(&state);
    const Said said = run({"consolidate", at(77), "--state", "--out", states});
    EXPECT_EQ(said.refused, "");
    const safetensors::File whole(states);
    EXPECT_EQ(whole.metadata(), (safetensors::Metadata{{"step", "77"}}));
    EXPECT_EQ(whole.tensors().size(), blocks.size());
    for (auto& [name, of] : blocks) {
      const safetensors::Tensor* tensor = whole.find(name);
      ASSERT_NE(tensor, nullptr) << name;
      Sample::Bytes expected;
      for (const Sample::State* one : of) expected.insert(expected.end(), one->whole.begin(), one->whole.end());
      EXPECT_EQ(values_of(whole, *tensor), expected);
      EXPECT_EQ(tensor->element_type(), of[0]->dtype);
    }
    fs::remove_all(at(77));
  }
}

TEST_F(Commands, StateHasItsWeightsShape) {
  run_ranks(1, [&](Transport& transport) {
    std::vector<float> values(24);
    std::iota(values.begin(), values.end(), 1.0F);
    checkpoint::Contents contents;
    contents.step = 2;
    for (int block = 0; block < 2; ++block) {
      checkpoint::GivenPart part;
      part.key = {"stacked", "momentum", block};
      part.block = {2, 6};
      part.part = {{0, 2}, {0, 6}, {0, 12}};
      part.data = values.data() + block * 12;
      contents.state.push_back(part);
    }
    contents.weights.push_back({"stacked", DType::f32, {4, 2, 3}, values.data()});
    checkpoint::CheckpointWriter writer({.folder = folder_.path(), .calls = &calls_}, transport);
    writer.save(contents);
    writer.finish();
  });
  EXPECT_EQ(run({"consolidate", at(2), "--state", "--out", folder_.at("state")}).refused, "");
  EXPECT_EQ(safetensors::File(folder_.at("state")).find("state.momentum.stacked")->shape,
            (std::vector<std::int64_t>{4, 2, 3}));
}

TEST_F(Commands, BlocksOfSeveralDtypesAreRefused) {
  run_ranks(1, [&](Transport& transport) {
    const std::vector<float> values(8);
    checkpoint::Contents contents;
    for (const DType dtype : {DType::bf16, DType::f32}) {
      checkpoint::GivenPart part;
      part.key = {"w", "momentum", static_cast<int>(contents.state.size())};
      part.block = {1, 8};
      part.part = {{0, 1}, {0, 8}, {0, 8}};
      part.dtype = dtype;
      part.data = values.data();
      contents.state.push_back(part);
    }
    contents.weights.push_back({"w", DType::f32, {8}, values.data()});
    checkpoint::CheckpointWriter writer({.folder = folder_.path(), .calls = &calls_}, transport);
    writer.save(contents);
    writer.finish();
  });
  EXPECT_SAYS(run({"consolidate", at(0), "--state", "--out", folder_.at("x")}).refused, "w momentum block 1");
}

TEST_F(Commands, FilesAndFoldersThatAreNone) {
  const float value = 3;
  const std::string file = folder_.at("a.safetensors");
  safetensors::write(file, std::vector<safetensors::Source>{{"w", DType::f32, {1, 1}, &value}}, {{"step", "9"}});
  const Json document = Json::parse(run({"inspect", file, "--json"}).out);
  EXPECT_EQ(document.at("path"), file);
  EXPECT_EQ(document.at("metadata"), (Json{{"step", "9"}}));
  EXPECT_EQ(document.at("tensors"),
            (Json::array({{{"name", "w"}, {"dtype", "F32"}, {"shape", {1, 1}}, {"bytes", 4}}})));
  EXPECT_SAYS(run({"inspect", file}).out, "[1, 1]");
  EXPECT_SAYS(run({"inspect", file, "--verify"}).refused, file + " is a file without checksums");
  for (const char* command : {"inspect", "consolidate"}) {
    std::vector<std::string> words{command, folder_.at("absent")};
    if (std::string(command) == "consolidate") words.insert(words.end(), {"--out", folder_.at("x")});
    EXPECT_SAYS(run(words).refused, folder_.at("absent/manifest.json"));
    words[1] = folder_.path();
    EXPECT_SAYS(run(words).refused, folder_.at("manifest.json"));
  }
  EXPECT_NE(run({"inspect"}).refused, "");
  EXPECT_NE(run({"consolidate", folder_.path()}).refused, "");
}

}  // namespace
}  // namespace regatta::testing
