#include "cli/finetune/resume.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "runtime/error.h"

namespace regatta::finetune {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

[[noreturn]] void refuse(const std::string& sentence) { throw Error(Code::invalid_argument, sentence); }

bool allowed(const Options& options, const std::string& kind) {
  const std::vector<std::string>& allow = options.checkpoints.allow;
  return std::find(allow.begin(), allow.end(), kind) != allow.end();
}

/// A number that other data of the same length would hardly have; reads a few thousand tokens.
std::string fingerprint(const TokenData& tokens) {
  constexpr std::int64_t samples = 4096;
  std::uint64_t hash = mix(static_cast<std::uint64_t>(tokens.size()));
  for (std::int64_t i = 0; i < samples; ++i) {
    std::int64_t token = 0;
    tokens.read(static_cast<std::int64_t>(static_cast<__int128>(i) * tokens.size() / samples), {&token, 1});
    hash = mix(hash ^ static_cast<std::uint64_t>(token));
  }
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

/// What the shapes of a decoder's tensors do not tell.
Json facts_of(const DecoderConfig& c) {
  Json facts{{"heads", c.heads},
             {"kv_heads", c.kv_heads},
             {"head_dim", c.head_dim},
             {"norm_eps", c.norm_eps},
             {"rope_theta", c.rope_theta}};
  if (!c.rope_scaling) return facts;
  const RopeScaling& scaling = *c.rope_scaling;
  facts["rope_scaling"] = {{"kind", scaling.kind == RopeScaling::Kind::linear ? "linear" : "llama3"},
                           {"factor", scaling.factor}};
  if (scaling.kind == RopeScaling::Kind::linear) return facts;
  facts["rope_scaling"]["low_freq_factor"] = scaling.low_freq_factor;
  facts["rope_scaling"]["high_freq_factor"] = scaling.high_freq_factor;
  facts["rope_scaling"]["original_positions"] = scaling.original_positions;
  return facts;
}

/// What two jobs must share for one to go on where the other ended, by the word that --allow takes.
Json facts_of(const Job& job) {
  const Options& o = job.options;
  const Schedule& s = o.schedule;
  Json facts;
  facts["data"] = {{"tokens", job.train.tokens.size()},
                   {"fingerprint", fingerprint(job.train.tokens)},
                   {"seq", o.seq},
                   {"seed", o.seed}};
  facts["batch"] = {{"global_batch", o.global_batch}};
  facts["schedule"] = {{"kind", o.schedule_name}, {"lr", s.base}, {"warmup", s.warmup}};
  if (s.kind != Schedule::Kind::constant) {
    facts["schedule"]["steps"] = s.steps;
    facts["schedule"]["final_ratio"] = s.final_ratio;
  }
  for (const Schedule::Change& change : s.changes)
    facts["schedule"]["lr_at"][std::to_string(change.step + 1)] = change.lr;
  for (const Group& group : job.groups) facts["rules"][group.name] = group.rule->settings_text();
  facts["rules"]["clip"] = o.engine.clip;
  facts["arithmetic"] = {{"dtype", o.dtype_name}, {"accumulation", o.accumulation}};
  facts["tensors"] = facts_of(job.model->config());
  return facts;
}

Json json_of(const EngineProgress& progress) {
  Json json{{"steps", progress.steps},
            {"skipped_steps", progress.skipped_steps},
            {"loss_scale", progress.loss_scale},
            {"finite_steps", progress.finite_steps},
            {"clip", progress.clip},
            {"groups", Json::array()}};
  if (progress.commanded_lr) json["commanded_lr"] = *progress.commanded_lr;
  for (const EngineProgress::GroupSettings& group : progress.groups) {
    Json settings = Json::object();
    for (const auto& [name, value] : group.rule) settings[name] = value;
    Json one{{"name", group.name}, {"settings", settings}};
    if (group.own_lr) one["own_lr"] = *group.own_lr;
    json["groups"].push_back(std::move(one));
  }
  return json;
}

std::optional<double> optional_number(const Json& json, const char* name) {
  return json.contains(name) ? std::optional(json.at(name).get<double>()) : std::nullopt;
}

EngineProgress progress_of(const Json& json) {
  EngineProgress progress{json.at("steps").get<std::int64_t>(),
                          json.at("skipped_steps").get<std::int64_t>(),
                          json.at("loss_scale").get<double>(),
                          json.at("finite_steps").get<int>(),
                          optional_number(json, "commanded_lr"),
                          json.at("clip").get<double>(),
                          {}};
  for (const Json& each : json.at("groups")) {
    EngineProgress::GroupSettings group{each.at("name").get<std::string>(), {}, optional_number(each, "own_lr")};
    for (const auto& [name, value] : each.at("settings").items())
      group.rule.emplace_back(name, value.get<std::string>());
    progress.groups.push_back(std::move(group));
  }
  return progress;
}

/// Sentences about everything in which `now` differs from `then`.
std::vector<std::string> differences(const Json& then, const Json& now) {
  std::vector<std::string> found;
  const Json before = then.flatten(), after = now.flatten();
  const auto word = [](const Json& in, const std::string& key) {
    return in.contains(key) ? in[key].dump() : "not set";
  };
  const auto compare = [&](const Json& keys, bool skip_known) {
    for (const auto& [key, value] : keys.items()) {
      if (skip_known && before.contains(key)) continue;
      if (word(before, key) == word(after, key)) continue;
      std::string name = key.substr(1);
      std::replace(name.begin(), name.end(), '/', '.');
      found.push_back(name + " was " + word(before, key) + " and is " + word(after, key));
    }
  };
  compare(before, false);
  compare(after, true);
  return found;
}

std::string joined(const std::vector<std::string>& words) {
  constexpr std::size_t shown = 6;
  std::string text;
  for (std::size_t i = 0; i < words.size() && i < shown; ++i) text += (i > 0 ? "; " : "") + words[i];
  return text + (words.size() > shown ? "; and " + std::to_string(words.size() - shown) + " more" : "");
}

/// Whether this checkpoint is sound, on all ranks alike; the work is shared.
std::unique_ptr<checkpoint::Checkpoint> open_sound(const std::string& path, cli::RankContext& context,
                                                   std::string& problem) {
  std::unique_ptr<checkpoint::Checkpoint> found;
  std::string own;
  try {
    found = std::make_unique<checkpoint::Checkpoint>(path);
    found->verify(context.rank, context.world_size);
  } catch (const Error& error) {
    own = error.what();
  }
  problem.clear();
  for (const std::string& theirs : context.transport.gather_strings(own, "soundness of a checkpoint"))
    if (problem.empty()) problem = theirs;
  return problem.empty() ? std::move(found) : nullptr;
}

}  // namespace

std::unique_ptr<checkpoint::Checkpoint> choose_checkpoint(const Options& options, cli::RankContext& context,
                                                          const std::function<void(const std::string&)>& warned) {
  const std::string& wish = options.checkpoints.resume;
  const bool any = wish == "auto";
  std::vector<std::string> candidates;
  context.agree([&] {
    if (!options.checkpoints.wanted()) return;
    const std::string folder = wish.empty() || any ? options.checkpoint_dir() : wish;
    if (fs::exists(fs::path(folder) / checkpoint::manifest_name)) {
      if (wish.empty() || any) refuse(folder + " is a checkpoint itself; a folder of checkpoints was expected");
      // Otherwise --resume auto would later take those for this job's.
      const std::vector<checkpoint::Listed> own = checkpoint::list_checkpoints(options.checkpoint_dir());
      std::error_code ignored;
      if (!own.empty() && !fs::equivalent(own.back().path, folder, ignored) &&
          fs::equivalent(options.checkpoint_dir(), fs::weakly_canonical(folder).parent_path(), ignored))
        refuse("--resume " + folder + ": " + options.checkpoint_dir() + " has newer checkpoints, up to " +
               fs::path(own.back().path).filename().string() +
               "; move them away, or give another --checkpoint-dir for what comes now");
      candidates.push_back(folder);
      return;
    }
    for (const checkpoint::Listed& each : checkpoint::list_checkpoints(folder)) candidates.push_back(each.path);
    std::reverse(candidates.begin(), candidates.end());
    if (wish.empty() && !candidates.empty())
      refuse(folder + " holds checkpoints of an earlier job, up to " + fs::path(candidates[0]).filename().string() +
             "; give --resume auto to go on from there, or another --checkpoint-dir");
    if (!wish.empty() && !any && candidates.empty()) refuse("--resume " + wish + ": there is no checkpoint");
  });
  Json list = candidates;
  const Json told = Json::parse(context.transport.gather_strings(list.dump(), "checkpoints to go on from")[0]);
  if (wish.empty()) return nullptr;
  std::string problem;
  for (const Json& path : told) {
    if (auto found = open_sound(path.get<std::string>(), context, problem)) return found;
    if (warned) warned("skipped " + path.get<std::string>() + ": " + problem);
  }
  if (told.empty()) return nullptr;
  context.agree([&] { refuse("no checkpoint to go on from is sound; the last one tried: " + problem); });
  return nullptr;
}

std::string job_json(const Job& job, const sharding::Mesh& mesh, const Engine& engine, std::int64_t step) {
  const Options& o = job.options;
  Json json{{"step", step},
            {"tokens", step * o.global_batch * o.seq},
            {"engine", json_of(engine.progress())},
            {"facts", facts_of(job)},
            {"rule", o.rules.rule},
            {"mesh", mesh.text()},
            {"mode", o.engine_flags.mode},
            {"transport", o.transport},
            {"plan", engine.plan().fingerprint()},
            {"init", o.init},
            {"data", o.data}};
  return json.dump();
}

Resumed resume(checkpoint::Checkpoint& from, const Job& job, const sharding::Mesh& mesh, Engine& engine) {
  const Options& options = job.options;
  std::vector<std::string> refusals;
  const auto differ = [&](const std::string& kind, const std::vector<std::string>& sentences) {
    if (!sentences.empty() && !allowed(options, kind))
      refusals.push_back(joined(sentences) + " (--allow " + kind + " goes on all the same)");
  };
  Json saved;
  EngineProgress progress;
  bool same_rules = true;
  try {
    saved = Json::parse(from.manifest().job);
    progress = progress_of(saved.at("engine"));
    const Json now = facts_of(job);
    for (const auto& [kind, facts] : now.items()) {
      if (kind == "tensors" && !saved.at("facts").contains(kind)) continue;  // older ones do not say
      const std::vector<std::string> found = differences(saved.at("facts").at(kind), facts);
      if (kind == "rules") same_rules = found.empty();
      differ(kind, found);
    }
  } catch (const nlohmann::json::exception& error) {
    refuse(from.path() + " was not saved by regatta finetune: " + error.what());
  }

  std::vector<std::string> missing;
  std::size_t used = 0;
  struct Load {
    StatePart to;
    checkpoint::StateKey key;
    MatrixShape block;
  };
  std::vector<Load> loads;
  for (const StatePart& part : engine.state_parts()) {
    const sharding::ParamSpec& param = engine.plan().params()[static_cast<std::size_t>(part.param)];
    Load load{part, {param.name, part.state, part.block}, part.shape};
    const auto found = from.state().find(load.key);
    if (found == from.state().end())
      missing.push_back(load.key.text() + " is missing");
    else if (found->second.block != load.block || found->second.dtype != part.dtype)
      missing.push_back(load.key.text() + " has another shape or dtype");
    else
      loads.push_back(std::move(load));
  }
  for (const auto& [key, tensor] : from.state()) {
    const auto& params = engine.plan().params();
    const auto param = std::find_if(params.begin(), params.end(), [&](const auto& p) { return p.name == key.param; });
    bool known = false;
    if (param != params.end()) {
      const auto& group =
          job.groups[static_cast<std::size_t>(job.params[static_cast<std::size_t>(param - params.begin())].group)];
      for (const StateSpec& spec : group.rule->state(options.engine.momentum_dtype)) known |= spec.name == key.state;
      known |= key.state == "master" && param->dtype != DType::f32;
    }
    if (known) ++used;
    if (!known) missing.push_back(key.text() + " has no place in this job");
  }
  differ("state", missing);
  if (!refusals.empty()) refuse(from.path() + " is of another job: " + joined(refusals));

  std::vector<std::byte> values;
  for (const Load& load : loads) {
    values.resize(static_cast<std::size_t>(load.to.part.run.size() * size_of(load.to.dtype)));
    from.read(load.key, load.block, load.to.part, values.data());
    engine.load_state(load.to, values.data());
  }
  if (!same_rules) {  // the flags of this job win
    const EngineProgress mine = engine.progress();
    progress.groups = mine.groups;
    progress.clip = mine.clip;
  }
  engine.restore(progress);

  Resumed resumed;
  resumed.step = saved.at("step").get<std::int64_t>();
  resumed.told = "goes on after step " + std::to_string(resumed.step) + " and " +
                 std::to_string(saved.at("tokens").get<std::int64_t>()) + " tokens from " + from.path() + ": rule " +
                 saved.at("rule").get<std::string>() + ", mesh " + saved.at("mesh").get<std::string>() + " then and " +
                 mesh.text() + " now";
  return resumed;
}

}  // namespace regatta::finetune
