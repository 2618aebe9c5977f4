#include "cli/finetune/saver.h"

#include <filesystem>

#include "cli/finetune/resume.h"
#include "cli/finetune/weights.h"
#include "runtime/checkpoint/checkpoint_folder.h"
#include "runtime/error.h"

namespace regatta::finetune {
namespace {

namespace fs = std::filesystem;

checkpoint::SaveSettings settings_of(const Options& options) {
  checkpoint::SaveSettings settings;
  settings.folder = options.checkpoint_dir();
  settings.keep_last = options.checkpoints.keep_last;
  settings.keep_every = options.checkpoints.keep_every;
  settings.deadline_seconds = options.deadline_seconds;
  return settings;
}

}  // namespace

Saver::Saver(const Job& job, const sharding::Mesh& mesh, Engine& engine, Transport& transport)
    : job_(job), mesh_(mesh), engine_(engine), transport_(transport), writer_(settings_of(job.options), transport) {
  if (transport.rank() != 0) return;
  texts_.push_back({"config.json", config_text(*job.model)});
  if (job.options.random_init()) return;
  for (auto& [name, text] : tokenizer_texts(job.options.init)) texts_.push_back({name, std::move(text)});
}

void Saver::went_on_from(const std::string& path, std::int64_t step) {
  const fs::path own = fs::path(job_.options.checkpoint_dir()) / checkpoint::folder_name(step);
  if (fs::absolute(path).lexically_normal() == fs::absolute(own).lexically_normal()) saved_step_ = step;
}

std::string Saver::save(std::int64_t step) {
  if (step == saved_step_) return {};
  checkpoint::Contents contents;
  contents.step = step;
  contents.job = job_json(job_, mesh_, engine_, step);
  contents.texts = texts_;
  for (const StatePart& part : engine_.state_parts()) {
    if (!part.primary || part.part.run.empty()) continue;
    const sharding::ParamSpec& param = engine_.plan().params()[static_cast<std::size_t>(part.param)];
    checkpoint::GivenPart given;
    given.key = {param.name, part.state, part.block};
    given.block = part.shape;
    given.part = part.part;
    given.dtype = part.dtype;
    given.data = part.data;
    contents.state.push_back(std::move(given));
  }
  const WeightShare share = weights_of_rank(*job_.model, mesh_.size("dp"), mesh_.coordinate(transport_.rank(), "dp"));
  contents.weights = share.sources;
  try {
    writer_.save(contents);
  } catch (const Error& error) {
    if (error.code() != Code::checkpoint) throw;
    return error.what();
  }
  saved_step_ = step;
  return {};
}

void Saver::tell(const std::function<void(const checkpoint::SaveOutcome&)>& saved,
                 const std::function<void(const std::string&)>& failed) {
  while (const auto outcome = writer_.outcome()) {
    if (outcome->problem.empty())
      saved(*outcome);
    else
      failed("the checkpoint of step " + std::to_string(outcome->step) + " was not saved: " + outcome->problem);
  }
}

void Saver::save_last(std::int64_t step) {
  if (const std::string problem = save(step); !problem.empty()) throw Error(Code::checkpoint, problem);
  writer_.finish();
}

}  // namespace regatta::finetune
