#include "cli/finetune/run_rank.h"

#include <ATen/Context.h>
#include <c10/util/Exception.h>

#include <cstdio>
#include <fstream>
#include <memory>
#include <string>

#include "cli/finetune/job.h"
#include "cli/finetune/reporter.h"
#include "cli/finetune/resume.h"
#include "cli/finetune/trainer.h"
#include "runtime/control/audit_log.h"
#include "runtime/control/server.h"
#include "runtime/error.h"

namespace regatta::finetune {

namespace {

/// LibTorch's errors without their stack traces.
template <typename Work>
void without_traces(const Work& work) {
  try {
    work();
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    throw Error(Code::device, "LibTorch: " + text.substr(0, text.find('\n')));
  }
}

/// The control service of rank 0.
struct Control {
  explicit Control(const Options& options)
      : audit(options.control_audit.empty() ? options.out + "/audit.jsonl" : options.control_audit),
        server(options.control, mailbox),
        address_file(options.out + "/control.address") {
    std::ofstream(address_file) << server.address() << '\n';
    std::fprintf(stderr, "control on %s\n", server.address().c_str());
  }
  ~Control() { std::remove(address_file.c_str()); }

  control::Mailbox mailbox;
  control::AuditLog audit;
  control::Server server;
  std::string address_file;
};

}  // namespace

void check_device(const Options& options, const sharding::Mesh& mesh) {
  if (!at::hasCUDA())
    throw Error(Code::invalid_argument,
                "--device is " + options.device.device + ", but this program's LibTorch has no CUDA; expected cpu");
  if (mesh.size("tp") > 1)
    throw Error(Code::invalid_argument, "--device is " + options.device.device +
                                            " with tp=" + std::to_string(mesh.size("tp")) +
                                            "; the decoder is split over tp on cpu only, so expected tp=1");
}

void run_rank(const Options& options, const sharding::Mesh& mesh, cli::RankContext& context) {
  const auto say = [&](const std::string& sentence) {
    if (context.rank == 0) std::fprintf(stderr, "%s\n", sentence.c_str());
  };
  const std::unique_ptr<checkpoint::Checkpoint> resumed = choose_checkpoint(options, context, say);
  if (options.checkpoints.resume == "auto" && !resumed)
    say("--resume auto: " + options.checkpoint_dir() + " has no checkpoint; the job starts from the beginning");
  std::unique_ptr<Job> job;
  std::unique_ptr<Reporter> reporter;
  context.agree([&] {
    without_traces([&] { job = std::make_unique<Job>(options, mesh, context.rank, resumed.get()); });
    if (context.rank == 0) reporter = std::make_unique<Reporter>(options, resumed ? resumed->manifest().step : 0);
  });
  std::unique_ptr<Control> control;
  context.agree([&] {
    if (context.rank == 0 && !options.control.address.empty()) control = std::make_unique<Control>(options);
  });
  Observer observer;
  if (reporter) {
    observer.started = [&](const Summary& summary) { reporter->started(summary); };
    observer.stepped = [&](const StepRecord& record) { reporter->stepped(record); };
    observer.saved = [&](const checkpoint::SaveOutcome& save) { reporter->saved(save); };
    observer.evaluated = [&](const EvalRecord& record) { reporter->evaluated(record); };
    observer.told = say;
    observer.warned = [&](const std::string& sentence) { reporter->warned(sentence); };
  }
  without_traces([&] {
    Trainer trainer(*job, mesh, context.transport, control ? &control->mailbox : nullptr,
                    control ? &control->audit : nullptr, [&] { return context.drain_requested(); });
    if (resumed) context.agree([&] { trainer.go_on_from(*resumed); });
    const Summary summary = trainer.run(observer);
    if (reporter) reporter->finished(summary);
  });
}

}  // namespace regatta::finetune
