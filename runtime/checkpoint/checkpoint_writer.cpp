#include "runtime/checkpoint/checkpoint_writer.h"

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "runtime/checkpoint/checkpoint_folder.h"
#include "runtime/checkpoint/manifest.h"
#include "runtime/checkpoint/state_file.h"
#include "runtime/device/buffer.h"
#include "runtime/error.h"
#include "runtime/stopwatch.h"
#include "runtime/version.h"

namespace regatta::checkpoint {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// Beside the tensors: headers, manifest, the last block of each file.
constexpr std::int64_t room_to_spare = 4 << 20;
constexpr std::int64_t alignment = 64;

std::string numbered(const char* prefix, int number, const char* suffix) {
  char text[80];
  std::snprintf(text, sizeof text, "%s%05d%s", prefix, number, suffix);
  return text;
}

/// What a rank's thread writes, with copies of all values.
struct Copied {
  std::int64_t step = 0;
  std::string job;
  std::vector<GivenPart> state;
  std::vector<safetensors::Source> weights;
  std::vector<TextFile> texts;
  std::string weights_name;  ///< file of this rank's weights; empty without
  bool index = false;        ///< weights lie in several files
};

std::string read_text(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

}  // namespace

struct CheckpointWriter::Impl {
  SaveSettings settings;
  Transport& transport;
  int rank, ranks;
  Buffer memory;  // of the copies; kept from save to save
  Copied copied;
  std::string part_folder;
  std::thread thread;
  std::atomic<bool> leaving{false};
  mutable std::mutex mutex;
  std::string others_problem;  // that another rank told by message, its record being what could not be written
  std::optional<SaveOutcome> last;
  std::deque<SaveOutcome> untold;  // the next save may end before anybody asks how this one did

  Impl(SaveSettings given, Transport& t)
      : settings(std::move(given)), transport(t), rank(t.rank()), ranks(t.world_size()) {}

  std::string in_part(const std::string& name) const { return (fs::path(part_folder) / name).string(); }

  /// Runs `work` on rank 0; what it throws is thrown on all ranks.
  template <class Work>
  void first_rank(const Work& work, std::string_view label) {
    std::string problem;
    if (rank == 0) {
      try {
        work();
      } catch (const Error& error) {
        problem = error.what();
      }
    }
    const std::string told = transport.gather_strings(problem, label)[0];
    if (!told.empty()) throw Error(Code::checkpoint, told);
  }

  void make_part_folder() const {
    std::error_code failed;
    fs::create_directories(part_folder, failed);
    if (failed) throw Error(Code::checkpoint, part_folder + " cannot be made: " + failed.message());
  }

  void join() {
    if (thread.joinable()) thread.join();
  }

  /// Collective. Ends the save before, as rank 0 knows it: on a full disk a rank may be unable to leave a record of its
  /// failure, so the others' problems come by message too and end rank 0's wait. Gives back the problem, if any.
  std::string settle() {
    if (rank != 0) join();
    std::string own;
    if (rank != 0 && last) own = last->problem;
    const std::vector<std::string> told = transport.gather_strings(own, "parts of a checkpoint");
    if (rank == 0) {
      for (int r = 1; r < ranks; ++r) {
        const std::lock_guard lock(mutex);
        if (others_problem.empty() && !told[static_cast<std::size_t>(r)].empty())
          others_problem = "rank " + std::to_string(r) + ": " + told[static_cast<std::size_t>(r)];
      }
      join();
      if (last) own = last->problem;
      if (own.empty()) own = others_problem;
      others_problem.clear();
    }
    return transport.gather_strings(own, "end of a checkpoint")[0];
  }

  std::string problem_told() const {
    const std::lock_guard lock(mutex);
    return others_problem;
  }

  void copy(const Contents& contents) {
    copied = {contents.step, contents.job, contents.state, contents.weights, contents.texts, {}, false};
    std::int64_t bytes = 0;
    const auto padded = [](std::int64_t n) { return (n + alignment - 1) / alignment * alignment; };
    for (const GivenPart& part : copied.state) bytes += padded(part.part.run.size() * size_of(part.dtype));
    for (const safetensors::Source& tensor : copied.weights) bytes += padded(safetensors::bytes_of(tensor));
    if (memory.bytes() < bytes) memory = Buffer(bytes);
    std::int64_t at = 0;
    const auto take = [&](const void*& data, std::int64_t size) {
      if (size > 0) std::memcpy(memory.data() + at, data, static_cast<std::size_t>(size));
      data = memory.data() + at;
      at += padded(size);
    };
    for (GivenPart& part : copied.state) take(part.data, part.part.run.size() * size_of(part.dtype));
    for (safetensors::Source& tensor : copied.weights) take(tensor.data, safetensors::bytes_of(tensor));
  }

  FileSums write_tensors(const std::string& name, std::span<const safetensors::Source> tensors,
                         const safetensors::Metadata& metadata) const {
    const safetensors::Layout layout = safetensors::lay_out(in_part(name), tensors, metadata);
    std::vector<std::span<const std::byte>> pieces{std::as_bytes(std::span(layout.header))};
    for (const safetensors::Source* tensor : layout.order)
      pieces.emplace_back(static_cast<const std::byte*>(tensor->data),
                          static_cast<std::size_t>(safetensors::bytes_of(*tensor)));
    write_file(*settings.calls, in_part(name), pieces);
    Summer summer;
    for (const auto piece : pieces) summer.add(piece);
    return summer.finish(name);
  }

  FileSums write_text(const std::string& name, const std::string& text) const {
    write_file(*settings.calls, in_part(name), text);
    Summer summer;
    summer.add(std::as_bytes(std::span(text)));
    return summer.finish(name);
  }

  /// This rank's files and their record.
  Manifest write_own() const {
    Manifest record{copied.step, "", "", {}};
    if (!copied.state.empty())
      record.files.push_back(write_tensors(numbered("state-", rank, ".safetensors"), state_tensors(copied.state),
                                           state_metadata(copied.state, copied.step)));
    Json names = Json::object();
    if (!copied.weights.empty()) {
      record.files.push_back(write_tensors(copied.weights_name, copied.weights, {{"format", "pt"}}));
      for (const safetensors::Source& tensor : copied.weights) names[tensor.name] = safetensors::bytes_of(tensor);
    }
    record.job = Json{{"problem", ""}, {"weights", names}, {"weights_file", copied.weights_name}}.dump();
    return record;
  }

  void leave_record(const Manifest& record) const {
    const std::string name = in_part(numbered("rank-", rank, ".json"));
    write_file(*settings.calls, name + ".part", text_of(record));
    // Not flushed: as soon as it has its name, rank 0 may give the folder another.
    if (settings.calls->rename((name + ".part").c_str(), name.c_str()) != 0)
      throw Error(Code::checkpoint, name + " cannot be put in place: " + std::strerror(errno));
  }

  Manifest wait_for_record(int of, std::chrono::steady_clock::time_point give_up) const {
    const std::string name = in_part(numbered("rank-", of, ".json"));
    while (!fs::exists(name)) {
      if (leaving) throw Error(Code::aborted, "the job ended before all ranks had written");
      if (const std::string told = problem_told(); !told.empty()) throw Error(Code::checkpoint, told);
      if (std::chrono::steady_clock::now() > give_up)
        throw Error(Code::checkpoint, "rank " + std::to_string(of) + " has not written its part of " + part_folder +
                                          " within " + std::to_string(settings.deadline_seconds) +
                                          " s; is that a folder that all ranks see?");
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    Manifest record = parse_manifest(read_text(name), name);
    const std::string problem = Json::parse(record.job).at("problem").get<std::string>();
    if (!problem.empty()) throw Error(Code::checkpoint, "rank " + std::to_string(of) + ": " + problem);
    return record;
  }

  /// Rank 0, once its own files are written.
  void publish(Manifest own) const {
    const auto give_up =
        std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                                               std::chrono::duration<double>(settings.deadline_seconds));
    Manifest manifest{copied.step, std::string(build_facts().version), copied.job, {}};
    Json index{{"metadata", {{"total_size", 0}}}, {"weight_map", Json::object()}};
    std::int64_t total = 0;
    for (int r = 0; r < ranks; ++r) {
      Manifest record = r == 0 ? std::move(own) : wait_for_record(r, give_up);
      for (FileSums& file : record.files) manifest.files.push_back(std::move(file));
      const Json facts = Json::parse(record.job);
      for (const auto& [name, bytes] : facts.at("weights").items()) {
        index["weight_map"][name] = facts.at("weights_file");
        total += bytes.get<std::int64_t>();
      }
    }
    index["metadata"]["total_size"] = total;
    for (const TextFile& text : copied.texts) manifest.files.push_back(write_text(text.name, text.text));
    if (copied.index) manifest.files.push_back(write_text("model.safetensors.index.json", index.dump(2) + "\n"));
    for (int r = 1; r < ranks; ++r) fs::remove(in_part(numbered("rank-", r, ".json")));
    write_file(*settings.calls, in_part(manifest_name), text_of(manifest));
    flush_folder(*settings.calls, part_folder);
    const std::string place = (fs::path(settings.folder) / folder_name(copied.step)).string();
    // A damaged one that the job went on before has this name; no folder can be renamed onto it.
    if (fs::exists(place)) rename(*settings.calls, place, place + ".replaced.part");
    rename(*settings.calls, part_folder, place);
    std::error_code ignored;  // the next save removes what is left
    fs::remove_all(place + ".replaced.part", ignored);
  }

  void write(SaveOutcome outcome) {
    Stopwatch watch;
    try {
      Manifest own = write_own();
      if (rank == 0)
        publish(std::move(own));
      else
        leave_record(own);
    } catch (const std::exception& error) {
      outcome.problem = error.what();
      try {  // rank 0 hears of it; if even that cannot be written, its wait ends at the deadline
        if (rank != 0) leave_record({copied.step, "", Json{{"problem", outcome.problem}}.dump(), {}});
        std::error_code ignored;
        if (rank == 0 && !leaving) fs::remove_all(part_folder, ignored);
      } catch (const std::exception&) {
      }
    }
    if (rank == 0 && outcome.problem.empty()) {
      try {  // the checkpoint is there, whatever becomes of this
        point_at(*settings.calls, settings.folder, copied.step);
        prune(*settings.calls, settings.folder, copied.step, settings.keep_last, settings.keep_every);
      } catch (const std::exception& error) {
        outcome.problem = std::string("saved, but ") + error.what();
      }
    }
    outcome.write_seconds = watch.lap();
    const std::lock_guard lock(mutex);
    last = outcome;
    untold.push_back(std::move(outcome));
  }
};

CheckpointWriter::CheckpointWriter(SaveSettings settings, Transport& transport)
    : impl_(std::make_unique<Impl>(std::move(settings), transport)) {
  impl_->first_rank([&] { make_folder(*impl_->settings.calls, impl_->settings.folder); }, "folder of checkpoints");
}

CheckpointWriter::~CheckpointWriter() {
  impl_->leaving = true;
  impl_->join();
}

void CheckpointWriter::save(const Contents& contents) {
  Impl& s = *impl_;
  Stopwatch watch;
  s.settle();
  std::int64_t own_bytes = 0;
  for (const GivenPart& part : contents.state) own_bytes += part.part.run.size() * size_of(part.dtype);
  for (const safetensors::Source& tensor : contents.weights) own_bytes += safetensors::bytes_of(tensor);
  const std::string mine = std::to_string(own_bytes) + " " + (contents.weights.empty() ? "0" : "1");
  std::int64_t bytes = room_to_spare;
  int writers = 0, before = 0;
  const std::vector<std::string> sizes = s.transport.gather_strings(mine, "sizes of a checkpoint");
  for (int r = 0; r < s.ranks; ++r) {
    std::int64_t theirs = 0;
    int writes = 0;
    std::istringstream(sizes[static_cast<std::size_t>(r)]) >> theirs >> writes;
    bytes += theirs;
    writers += writes;
    if (r < s.rank) before += writes;
  }
  s.part_folder = (fs::path(s.settings.folder) / (folder_name(contents.step) + ".part")).string();
  s.first_rank(
      [&] {
        remove_leftovers(s.settings.folder);
        const std::int64_t room = s.settings.calls->free_bytes(s.settings.folder);
        if (room >= 0 && room < bytes)
          throw Error(Code::checkpoint, "the checkpoint of step " + std::to_string(contents.step) + " takes " +
                                            std::to_string(bytes) + " bytes, but " + s.settings.folder +
                                            " has room for " + std::to_string(room));
        s.make_part_folder();
      },
      "folder of a checkpoint");
  s.copy(contents);
  s.copied.index = writers > 1;
  if (!contents.weights.empty())
    s.copied.weights_name = writers == 1
                                ? "model.safetensors"
                                : numbered("model-", before + 1, "") + numbered("-of-", writers, ".safetensors");
  SaveOutcome outcome;
  outcome.step = contents.step;
  outcome.bytes = own_bytes;
  outcome.copy_seconds = watch.lap();
  s.thread = std::thread([&s, outcome] { s.write(outcome); });
}

std::optional<SaveOutcome> CheckpointWriter::outcome() {
  const std::lock_guard lock(impl_->mutex);
  if (impl_->untold.empty()) return {};
  SaveOutcome first = std::move(impl_->untold.front());
  impl_->untold.pop_front();
  return first;
}

void CheckpointWriter::finish() {
  const std::string problem = impl_->settle();
  if (!problem.empty()) throw Error(Code::checkpoint, problem);
}

}  // namespace regatta::checkpoint
