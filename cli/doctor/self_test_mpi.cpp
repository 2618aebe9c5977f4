// The mpi transport can only be tried under mpirun, so the doctor starts itself there, with a time limit.

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "cli/doctor/machine.h"
#include "cli/doctor/self_test.h"
#include "runtime/error.h"
#include "runtime/transport/factory.h"
#include "runtime/transport/mpi/mpi_transport.h"
#include "runtime/transport/transport.h"

extern char** environ;

namespace regatta::cli {
namespace {

using Clock = std::chrono::steady_clock;

struct Finished {
  std::string output;
  int exit_code = -1;
  bool timed_out = false;
};

/// Politely first: mpirun then ends its ranks, which are in process groups of their own.
void end_group(pid_t leader) {
  kill(-leader, SIGTERM);
  siginfo_t info{};
  for (int i = 0; i < 200; ++i) {
    if (waitid(P_PID, static_cast<id_t>(leader), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == leader)
      return;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  kill(-leader, SIGKILL);
}

/// Runs a program in a process group of its own, so that a limit ends mpirun and all it started: how long it may say
/// nothing.
Finished run_limited(const std::vector<std::string>& words, const std::vector<std::string>& more_environment,
                     std::chrono::milliseconds limit) {
  std::array<int, 2> pipe_ends{};
  if (pipe2(pipe_ends.data(), O_CLOEXEC) != 0) {
    throw Error(Code::device, std::string("no pipe could be made: ") + std::strerror(errno));
  }
  std::vector<char*> arguments, variables;
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  for (char** entry = environ; *entry != nullptr; ++entry) variables.push_back(*entry);
  for (const std::string& entry : more_environment) variables.push_back(const_cast<char*>(entry.c_str()));
  variables.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], STDERR_FILENO);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  posix_spawnattr_setpgroup(&attributes, 0);
  pid_t child = 0;
  const int error = posix_spawnp(&child, arguments[0], &actions, &attributes, arguments.data(), variables.data());
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  close(pipe_ends[1]);
  if (error != 0) {
    close(pipe_ends[0]);
    throw Error(Code::invalid_argument, "'" + words[0] + "' could not be started: " + std::strerror(error));
  }

  Finished finished;
  Clock::time_point end = Clock::now() + limit;
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
    pollfd readable{pipe_ends[0], POLLIN, 0};
    const int ready = left > 0 ? poll(&readable, 1, static_cast<int>(left)) : 0;
    if (ready == 0) {
      finished.timed_out = true;
      end_group(child);
      break;
    }
    std::array<char, 4096> chunk{};
    const ssize_t count = ready > 0 ? read(pipe_ends[0], chunk.data(), chunk.size()) : -1;
    if (count == 0 || (count < 0 && errno != EINTR)) break;
    if (count <= 0) continue;
    finished.output.append(chunk.data(), static_cast<std::size_t>(count));
    end = Clock::now() + limit;
  }
  close(pipe_ends[0]);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  finished.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return finished;
}

constexpr const char* result_key = "regatta_self_test";
constexpr std::string_view progress_line = "the self-test goes on";

/// The line with the result, among whatever else mpirun has to say.
nlohmann::json result_in(const std::string& output) {
  std::size_t begin = 0;
  while (begin < output.size()) {
    std::size_t end = output.find('\n', begin);
    if (end == std::string::npos) end = output.size();
    nlohmann::json line = nlohmann::json::parse(output.substr(begin, end - begin), nullptr, false);
    if (line.is_object() && line.contains(result_key)) return line[result_key];
    begin = end + 1;
  }
  return nullptr;
}

/// What a person can use of mpirun's page of text: the first line that is a sentence.
std::string first_sentence(const std::string& output) {
  std::size_t begin = 0;
  while (begin < output.size()) {
    std::size_t end = output.find('\n', begin);
    if (end == std::string::npos) end = output.size();
    const std::string line = output.substr(begin, end - begin);
    if (line != progress_line && line.find_first_not_of("- \t\r") != std::string::npos) return line;
    begin = end + 1;
  }
  return "it said nothing";
}

}  // namespace

SelfTest test_mpi(const std::string& program, int ranks, std::chrono::milliseconds deadline) {
  SelfTest result{.transport = "mpi", .ranks = ranks};
  // The doctor says beside this what mpirun would say to a user who has not set these.
  const std::vector<std::string> allow = {"OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
                                          "OMPI_MCA_rmaps_base_oversubscribe=1"};
  const Clock::time_point start = Clock::now();
  try {
    const Finished finished = run_limited({"mpirun", "-n", std::to_string(ranks), program, "doctor", "--as-mpi-rank",
                                           "--deadline", std::to_string(static_cast<double>(deadline.count()) * 1e-3)},
                                          allow, deadline);
    const std::chrono::duration<double> whole = Clock::now() - start;
    result.ran = true;
    const nlohmann::json said = result_in(finished.output);
    if (finished.timed_out) {
      result.late = true;
      char seconds[32];
      std::snprintf(seconds, sizeof seconds, "%g", std::chrono::duration<double>(deadline).count());
      result.detail = "it said nothing for the deadline of " + std::string(seconds) + " s and was ended";
    } else if (finished.exit_code != 0 || said.is_null()) {
      result.late = finished.output.find("did not complete within the deadline") != std::string::npos;
      result.detail =
          "mpirun ended with code " + std::to_string(finished.exit_code) + ": " + first_sentence(finished.output);
    } else {
      result.ranks = said.at("ranks").get<int>();
      result.takes_cuda_memory = said.at("takes_cuda_memory").get<bool>();
      result.reduce_scatter_gb_per_s = said.at("reduce_scatter_gb_per_s").get<double>();
      result.start_seconds = whole.count() - said.at("seconds").get<double>();
      result.passed = result.ranks == ranks;
      if (!result.passed) result.detail = "mpirun started " + std::to_string(result.ranks) + " ranks";
    }
  } catch (const Error& error) {
    result.detail = error.what();
  }
  return result;
}

void run_as_mpi_rank(std::chrono::milliseconds deadline) {
  const auto transport = make_transport("mpi", TransportOptions{.deadline = deadline});
  const Clock::time_point start = Clock::now();
  const auto got_on = [&] {
    if (transport->rank() != 0) return;
    std::printf("%s\n", std::string(progress_line).c_str());
    std::fflush(stdout);
  };
  got_on();
  const double speed = exercise(*transport, got_on);
  const std::chrono::duration<double> seconds = Clock::now() - start;
  if (transport->rank() != 0) return;
  const nlohmann::json line = {{result_key,
                                {{"ranks", transport->world_size()},
                                 {"takes_cuda_memory", mpi_takes_cuda_memory()},
                                 {"reduce_scatter_gb_per_s", speed},
                                 {"seconds", seconds.count()}}}};
  std::printf("%s\n", line.dump().c_str());
}

}  // namespace regatta::cli
