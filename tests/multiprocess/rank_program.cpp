// A program as users write them, on run_on_ranks, whose rank 1 misbehaves as the first argument says. Driven by
// fault_test.
//   rank_program MODE [--transport=NAME] [--ranks=N] [--messages] [--deadline-ms=N] [--grace-ms=N]

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "cli/ranks.h"

namespace {

using regatta::Code;
using regatta::Error;

class Trainer {
 public:
  explicit Trainer(regatta::cli::RankContext& context) : context_(context) {
    for (int r = 0; r < context.world_size; ++r) bounds_.push_back(bounds_.back() + (1 << 20));
    buffer_ = context.transport.allocate(bounds_.back());
  }

  /// `in_the_middle` runs on rank 1 inside the reducer of the last step.
  void run(
      int steps, const std::function<void()>& in_the_middle = [] {}) {
    regatta::Transport& transport = context_.transport;
    for (int step = 1; step <= steps; ++step) {
      bool now = step == steps && context_.rank == 1;
      const auto reduce = [&](std::span<const std::byte* const>, std::int64_t, std::int64_t) {
        if (now) in_the_middle();
        now = false;
      };
      transport.reduce_scatter(buffer_, 0, bounds_, reduce, "gradients of bucket 3").wait();
      transport.all_gather(buffer_, 0, bounds_, "parameters of bucket 3").wait();
    }
  }

 private:
  regatta::cli::RankContext& context_;
  std::vector<std::int64_t> bounds_{0};
  regatta::SymmetricBuffer buffer_;
};

void sleep_seconds(int count) { std::this_thread::sleep_for(std::chrono::seconds(count)); }

void run_mode(const std::string& mode, regatta::cli::RankContext& context) {
  const bool culprit = context.rank == 1;
  if (mode == "agree-all") {
    context.agree([] { throw Error(Code::invalid_argument, "model.safetensors: no such file"); });
  } else if (mode == "agree-one") {
    context.agree([&] {
      if (culprit) throw Error(Code::invalid_argument, "model.safetensors: no such file");
    });
  } else if (mode == "bad-all") {
    throw std::invalid_argument("mesh: axis 'dp' has extent 0");
  }
  Trainer trainer(context);
  trainer.run(20);
  if (mode == "fine") {
    if (context.rank == 0) std::printf("trained on %d ranks\n", context.world_size);
    return;
  }
  if (mode == "kill") trainer.run(20, [] { raise(SIGKILL); });
  if (mode == "exit") trainer.run(20, [] { _exit(0); });
  if (mode == "reducer") trainer.run(20, [] { throw std::runtime_error("bad piece"); });
  if (culprit) {
    if (mode == "return") return;
    if (mode == "throw") throw Error(Code::checkpoint, "cannot write model.safetensors: disk full");
    if (mode == "bad-one") throw Error(Code::invalid_argument, "shape of W is 3 x 4, expected 4 x 3");
    if (mode == "busy") throw Error(Code::device, "out of memory");
    if (mode == "stall") sleep_seconds(1000);
    if (mode == "stop") raise(SIGTERM);
  }
  // The others compute for longer than the grace time, or train on.
  if (mode == "busy") sleep_seconds(1000);
  trainer.run(1'000'000);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "fine";
  std::string transport = "mpi";
  int ranks = 0;
  regatta::cli::RunOptions options;
  options.program = "rank_program";
  options.transport.deadline = std::chrono::minutes(2);
  options.grace = std::chrono::minutes(1);
  for (int i = 2; i < argc; ++i) {
    const std::string flag = argv[i];
    const auto value = [&](const char* name) -> const char* {
      return flag.rfind(name, 0) == 0 ? flag.c_str() + std::strlen(name) : nullptr;
    };
    if (const char* text = value("--transport=")) transport = text;
    if (const char* text = value("--ranks=")) ranks = std::atoi(text);
    if (const char* text = value("--deadline-ms="))
      options.transport.deadline = std::chrono::milliseconds(std::atoi(text));
    if (const char* text = value("--grace-ms=")) options.grace = std::chrono::milliseconds(std::atoi(text));
    if (flag == "--messages") options.transport.shared_memory = false;
  }
  options.world = "mesh dp=" + std::to_string(ranks);
  return regatta::cli::run_on_ranks(transport, ranks, options,
                                    [&](regatta::cli::RankContext& context) { run_mode(mode, context); });
}
