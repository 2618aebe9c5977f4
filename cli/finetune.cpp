// `regatta finetune`: fine-tunes (or pre-trains) a decoder, under mpirun or on threads.

#include <CLI/CLI.hpp>
#include <memory>

#include "cli/commands.h"
#include "cli/config_file.h"
#include "cli/finetune/options.h"
#include "cli/finetune/run_rank.h"
#include "cli/mesh_ranks.h"
#include "runtime/error.h"

namespace regatta::cli {

namespace {

using finetune::Options;

void run(Options options) {
  const sharding::Mesh mesh = finetune::mesh_of(options);
  finetune::complete(options, mesh);
  options.engine.device = device_of(options.device);
  options.engine.device_graph = options.device.graph;
  if (options.engine.device) finetune::check_device(options, mesh);
  const RankSettings settings{"regatta finetune",
                              options.transport,
                              options.engine_flags.mesh,
                              options.deadline_seconds,
                              options.engine.device,
                              reduction_of(options.device),
                              device_messages_of(options.device),
                              options.checkpoints.wanted()};
  set_exit_code(run_on_ranks(settings, [&](RankContext& context) { finetune::run_rank(options, mesh, context); }));
}

void add_model_flags(CLI::App& command, Options& o) {
  const char* group = "Model";
  command
      .add_option("--init", o.init, "'random', or a folder with config.json and model.safetensors (one file or a set)")
      ->capture_default_str()
      ->group(group);
  command.add_option("--hidden", o.sizes.hidden, "Hidden size of a random model")->capture_default_str()->group(group);
  command.add_option("--layers", o.sizes.layers, "Layers")->capture_default_str()->group(group);
  command.add_option("--heads", o.sizes.heads, "Attention heads")->capture_default_str()->group(group);
  command.add_option("--kv-heads", o.sizes.kv_heads, "Key-value heads; --heads by default")->group(group);
  command.add_option("--intermediate", o.sizes.intermediate, "Size inside the MLP; about 8/3 of --hidden by default")
      ->group(group);
  command.add_option("--vocab", o.sizes.vocab, "Vocabulary; 256 is bytes")->capture_default_str()->group(group);
  command.add_flag("--tie", o.sizes.tied_head, "The head is the embedding")->group(group);
  command.add_option("--init-std", o.sizes.init_std, "Standard deviation of random weights")
      ->capture_default_str()
      ->group(group);
  command.add_option("--dtype", o.dtype_name, "Of parameters and arithmetic: fp32, or bf16 with fp32 master weights")
      ->capture_default_str()
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->group(group);
}

void add_data_flags(CLI::App& command, Options& o) {
  const char* group = "Data";
  command.add_option("--data", o.data, "Text read as bytes, or .u16/.u32 files of little-endian token ids")
      ->group(group);
  command.add_option("--eval-data", o.eval_data, "The same for evaluation; before and after training")->group(group);
  command.add_option("--eval-every", o.eval_every, "Also after every so many steps")
      ->check(CLI::NonNegativeNumber)
      ->group(group);
  command.add_option("--eval-sequences", o.eval_sequences, "Sequences of an evaluation, evenly spread; 0 is all")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber)
      ->group(group);
  command.add_option("--seq", o.seq, "Tokens of a sequence")->capture_default_str()->group(group);
  command.add_option("--seed", o.seed, "Of random weights and of the order of the data")
      ->capture_default_str()
      ->group(group);
}

void add_training_flags(CLI::App& command, Options& o) {
  const char* group = "Training";
  command.add_option("--steps", o.steps, "Optimizer steps")->capture_default_str()->group(group);
  command.add_option("--micro-batch", o.micro_batch, "Sequences of one forward and backward")
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--global-batch", o.global_batch,
                  "Sequences of a step over all ranks; one micro-batch per rank by default")
      ->check(CLI::PositiveNumber)
      ->group(group);
  command
      .add_option("--accumulation", o.accumulation,
                  "How micro-batch gradients add up: sum, or tree for the same bits on 1, 2, 4 ... ranks")
      ->capture_default_str()
      ->check(CLI::IsMember({"sum", "tree"}))
      ->group(group);
  add_rule_flags(command, o.rules);
  command.add_option("--lr", o.schedule.base, "Learning rate; --set lr=X does the same")
      ->capture_default_str()
      ->group(group);
  command.add_option("--schedule", o.schedule_name, "constant, linear or cosine decay")
      ->capture_default_str()
      ->check(CLI::IsMember({"constant", "linear", "cosine"}))
      ->group(group);
  command
      .add_option("--lr-at", o.lr_at,
                  "STEP=VALUE: from that step on the schedule gives VALUE, as after `regatta ctl ADDRESS set lr=VALUE`")
      ->take_all()
      ->group(group);
  command.add_option("--warmup", o.schedule.warmup, "Steps of linear warm-up")->capture_default_str()->group(group);
  command.add_option("--final-lr-ratio", o.schedule.final_ratio, "Part of the learning rate that decay ends at")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0))
      ->group(group);
  command
      .add_option("--loss-scale", o.engine.loss_scaling.initial,
                  "Static factor of the loss, taken out of the gradients again")
      ->capture_default_str()
      ->check(CLI::PositiveNumber)
      ->group(group);
  command.add_option("--non-finite", o.non_finite, "What a gradient of NaN or Inf does: skip the step, or stop")
      ->capture_default_str()
      ->check(CLI::IsMember({"skip", "stop"}))
      ->group(group);
}

void add_rank_flags(CLI::App& command, Options& o) {
  add_engine_flags(command, o.engine_flags);
  command
      .add_option(
          "--proof-every", o.engine_flags.proof_every,
          "Steps between live proofs: one parameter, drawn anew, is computed again on one rank and compared bit "
          "by bit; 0 is off")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  command.add_flag("--proof-stops", o.engine_flags.proof_stops, "A live proof that fails ends the job");
  command
      .add_option("--transport", o.transport,
                  "local (ranks are threads), mpi (under mpirun) or nccl (GPUs, under torchrun or mpirun)")
      ->capture_default_str();
  add_device_flags(command, o.device);
  command.add_option("--deadline", o.deadline_seconds, "Seconds to wait for a peer")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
}

void add_metrics_flags(CLI::App& command, TelemetrySettings& metrics) {
  const char* group = "Metrics";
  command
      .add_option("--metrics-address", metrics.address,
                  "HOST:PORT that Prometheus reads, on PORT + local rank; 127.0.0.1 is seen by this machine alone")
      ->group(group);
  command.add_option("--job", metrics.job, "Name of the job in metrics")->capture_default_str()->group(group);
  command
      .add_option("--metrics-discovery", metrics.discovery_dir,
                  "Folder where the job writes JOB.json for Prometheus' file_sd")
      ->group(group);
  command.add_option("--metrics-push", metrics.push_address, "HOST:PORT of a push gateway, for short jobs")
      ->group(group);
  command
      .add_option("--metrics-top", metrics.top_params,
                  "Parameters that are named in metrics: those with the largest update RMS and line norm spread")
      ->capture_default_str()
      ->check(CLI::Range(0, 1000))
      ->group(group);
}

void add_checkpoint_flags(CLI::App& command, finetune::CheckpointFlags& c) {
  const char* group = "Checkpoints";
  command
      .add_option("--checkpoint-every", c.every,
                  "Save after every so many steps, at the end, and on SIGTERM or SIGUSR1, which end the job")
      ->check(CLI::PositiveNumber)
      ->group(group);
  command
      .add_option("--checkpoint-dir", c.dir,
                  "Folder of checkpoints, seen by all ranks; OUT/checkpoints by default. Given alone, only the end, a "
                  "signal or regatta ctl saves")
      ->group(group);
  command.add_option("--keep-last", c.keep_last, "Checkpoints that stay; 0 is all")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber)
      ->group(group);
  command.add_option("--keep-every", c.keep_every, "Those at multiples of so many steps stay as well")
      ->check(CLI::PositiveNumber)
      ->group(group);
  command
      .add_option(
          "--resume", c.resume,
          "'auto': go on from the newest sound checkpoint of the folder, from the beginning when there is none; or a "
          "checkpoint's folder. On any mesh, mode, cut or transport")
      ->group(group);
  command
      .add_option(
          "--allow", c.allow,
          "With --resume: what may differ from the job that saved: data, batch, schedule, rules, arithmetic, state, "
          "tensors")
      ->delimiter(',')
      ->check(CLI::IsMember({"data", "batch", "schedule", "rules", "arithmetic", "state", "tensors"}))
      ->group(group);
}

void add_control_flags(CLI::App& command, Options& o) {
  const char* group = "Control";
  command
      .add_option("--control-address", o.control.address,
                  "HOST:PORT that regatta ctl talks to, on rank 0; port 0 takes a free one. OUT/control.address has it")
      ->group(group);
  command.add_option("--control-audit", o.control_audit, "Log of all commands; OUT/audit.jsonl by default")
      ->group(group);
  command
      .add_option(
          "--control-token-file", o.control.token_file,
          "Clients must know the token in this file; with the TLS flags, addresses of other machines are served")
      ->group(group);
  command.add_option("--control-tls-cert", o.control.tls_cert, "PEM certificate of the service")->group(group);
  command.add_option("--control-tls-key", o.control.tls_key, "PEM key of the service")->group(group);
  command.add_option("--control-tls-ca", o.control.tls_ca, "PEM certificate of the authority that signs clients")
      ->group(group);
}

}  // namespace

void add_finetune(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("finetune", finetune_description);
  command->footer(
      "Examples:\n"
      "  regatta finetune --init random --data text.txt --eval-data other.txt --steps 200 --out base\n"
      "  regatta finetune --init base --data mine.txt --mesh dp=2 --rule reg --lr 0.003 --out tuned\n"
      "  mpirun -n 4 regatta finetune --init base --data mine.txt --mesh dp=4 --transport mpi \\\n"
      "      --micro-batch 4 --global-batch 32 --accumulation tree --out tuned\n"
      "  mpirun -n 4 regatta finetune --init base --data mine.txt --mesh dp=2,tp=2 --transport mpi --out tuned\n"
      "tp splits the decoder's heads, MLP and vocabulary; dp splits the batch and the optimizer's state.\n"
      "The weights end in OUT/model.safetensors beside OUT/config.json; OUT/log.jsonl has a line per step.\n"
      "  mpirun -n 4 regatta finetune ... --checkpoint-every 100 --keep-last 3 --resume auto --out tuned\n"
      "Run again, the last one goes on where it was killed, on as many ranks as there are now, to the same bits.\n"
      "With --accumulation tree the weights have the same bits on 1, 2, 4, ... dp ranks.");
  add_model_flags(*command, *options);
  add_data_flags(*command, *options);
  add_training_flags(*command, *options);
  add_rank_flags(*command, *options);
  add_metrics_flags(*command, options->metrics);
  add_checkpoint_flags(*command, options->checkpoints);
  add_control_flags(*command, *options);
  command->add_option("--out", options->out, "Folder for the results")->group("Output");
  command->add_flag("--json", options->json, "Also a summary as one JSON document on stdout")->group("Output");
  command->add_option("--config", options->config, "TOML file of flags, NAME = VALUE; the command line wins")
      ->group("Output");
  command->callback([options, command] {
    if (!options->config.empty()) apply_config(*command, options->config);
    for (const char* flag : {"--data", "--out"}) {
      if (command->count(flag) == 0)
        throw Error(Code::invalid_argument, std::string(flag) + " is required; see regatta finetune --help");
    }
    finetune::DecoderConfig& sizes = options->sizes;
    options->bucket_bytes_given = command->count("--bucket-bytes") > 0;
    if (command->count("--kv-heads") == 0) sizes.kv_heads = sizes.heads;
    if (command->count("--intermediate") == 0) sizes.intermediate = (sizes.hidden * 8 / 3 + 15) / 16 * 16;
    if (options->random_init() && sizes.heads > 0) {
      if (sizes.hidden % sizes.heads != 0) {
        throw Error(Code::invalid_argument, "--hidden " + std::to_string(sizes.hidden) + " is no multiple of --heads " +
                                                std::to_string(sizes.heads));
      }
      sizes.head_dim = sizes.hidden / sizes.heads;
      sizes.positions = std::max(sizes.positions, options->seq);
    }
    for (const char* flag :
         {"--hidden", "--layers", "--heads", "--kv-heads", "--intermediate", "--vocab", "--tie", "--init-std"}) {
      if (!options->random_init() && command->count(flag) > 0) {
        throw Error(Code::invalid_argument, std::string(flag) + " describes a random model, but --init is " +
                                                options->init + ", whose config.json decides");
      }
    }
    run(*options);
  });
}

}  // namespace regatta::cli
