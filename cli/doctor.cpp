// `regatta doctor`: what was built in, what was found, whether every transport works here, and what would go wrong; one
// screen.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/doctor/findings.h"
#include "cli/doctor/libraries.h"
#include "cli/doctor/machine.h"
#include "cli/doctor/self_test.h"
#include "kernels/kernels.h"
#include "runtime/device/device.h"
#include "runtime/error.h"
#include "runtime/transport/factory.h"
#include "runtime/transport/nccl/nccl_transport.h"
#include "runtime/version.h"

namespace regatta::cli {
namespace {

struct Flags {
  bool json = false;
  bool as_mpi_rank = false;
  int ranks = 2;
  double deadline_seconds = 120;
};

struct Diagnosis {
  Circumstances circumstances;
  std::vector<std::string> kernel_tables;
  std::vector<SelfTest> self_tests;
  std::vector<Finding> findings;
};

bool built_with(std::string_view name) {
  for (const BuiltIn& dependency : build_facts().dependencies) {
    if (dependency.name == name) return dependency.on;
  }
  return false;
}

Diagnosis diagnose(const Flags& flags) {
  Diagnosis diagnosis;
  Circumstances& now = diagnosis.circumstances;
  now.machine = read_machine();
  now.libraries = read_libraries();
  now.kernels = kernels::cpu_kernels().isa;
  now.build_type = build_facts().build_type;
  now.built_with_mpi = built_with("MPI");
  now.built_with_torch = built_with("LibTorch");
  now.built_with_blas = built_with("OpenBLAS");
  now.built_with_cuda = built_with("CUDA");
  now.built_with_nccl = built_with("NCCL");
  now.omp_num_threads = environment("OMP_NUM_THREADS");
  now.root_allowed =
      environment("OMPI_ALLOW_RUN_AS_ROOT") == "1" && environment("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM") == "1";
  const std::string oversubscribe = environment("OMPI_MCA_rmaps_base_oversubscribe");
  now.oversubscribe_allowed = oversubscribe == "1" || oversubscribe == "true";
  for (const kernels::KernelTable* table : kernels::all_cpu_kernels()) diagnosis.kernel_tables.emplace_back(table->isa);

  const auto deadline = std::chrono::milliseconds(static_cast<std::int64_t>(flags.deadline_seconds * 1000));
  for (const std::string& name : transport_names()) {
    if (name == "nccl") {
      diagnosis.self_tests.push_back({.transport = name, .detail = "it needs GPUs; bench/gpu tests it on one"});
    } else if (ranks_are_threads(name)) {
      diagnosis.self_tests.push_back(test_local(flags.ranks, deadline));
    } else if (environment("OMPI_COMM_WORLD_SIZE").empty()) {
      diagnosis.self_tests.push_back(test_mpi(std::filesystem::canonical("/proc/self/exe"), flags.ranks, deadline));
    } else {
      diagnosis.self_tests.push_back(
          {.transport = name, .detail = "mpirun can't start inside mpirun; run doctor by itself"});
    }
  }
  for (SelfTest& test : diagnosis.self_tests) {
    if (test.late) test.detail += excuse_for_lateness(now.machine);
  }
  diagnosis.findings = find_problems(now);
  return diagnosis;
}

std::string gib(std::int64_t bytes) { return fmt::format("{:.1f} GiB", static_cast<double>(bytes) / (1 << 30)); }

std::string library_text(const Library& library, const std::string& absent) {
  if (!library.found) return absent;
  return (library.version.empty() ? "found" : library.version) + " (" + library.path + ")";
}

/// The device that --device cuda takes, or why there is none.
std::string device_text() {
  try {
    const std::shared_ptr<Device> device = open_device("cuda");
    const kernels::cuda::DeviceLimits limits = device->limits();
    return fmt::format("{}, compute capability {}.{}, {} multiprocessors", device->name(),
                       limits.compute_capability / 10, limits.compute_capability % 10, limits.multiprocessors);
  } catch (const Error& error) {
    return error.what();
  }
}

void row(const std::string& name, const std::string& text) { std::cout << fmt::format("  {:<16}{}\n", name, text); }

void print(const Diagnosis& diagnosis) {
  const Circumstances& now = diagnosis.circumstances;
  const Machine& machine = now.machine;
  const Libraries& libraries = now.libraries;

  std::cout << "Built in\n";
  row("regatta", version_text());
  for (const BuiltIn& dependency : build_facts().dependencies) {
    row(std::string(dependency.name),
        fmt::format("{} - {}", dependency.on ? "on " + std::string(dependency.version) : "off", dependency.why));
  }
  row("kernels", fmt::format("{} in use, of {}", now.kernels, fmt::join(diagnosis.kernel_tables, ", ")));

  std::cout << "Found at run time\n";
  row("MPI", library_text(libraries.mpi, "not loaded"));
  row("LibTorch", library_text(libraries.torch, "not loaded"));
  row("BLAS", libraries.blas.found
                  ? fmt::format("{}, {} thread(s), {:.0f} GFLOP/s fp32 ({})", name_of(libraries.blas_kind),
                                libraries.blas_threads, libraries.blas_gflops, libraries.blas.path)
                  : "not loaded");
  row("OpenMP", library_text(libraries.openmp, "not loaded"));
  row("CUDA driver", library_text(libraries.cuda_driver, "none") +
                         (libraries.cuda_driver.found ? fmt::format(", {} device(s)", libraries.cuda_devices) : ""));
  row("CUDA", device_text());
  row("NCCL", nccl_is_built_in() ? nccl_library() + ", built in"
                                 : library_text(libraries.nccl, "none") +
                                       (libraries.nccl.found ? ", but this build has no transport nccl" : ""));
  row("gRPC", library_text(libraries.grpc, "none"));

  std::cout << "Machine\n";
  row("system", machine.system + (machine.processor.empty() ? "" : ", " + machine.processor));
  row("cores", fmt::format("{} online, {} allowed by binding{}{}", machine.cores_online, machine.cores_allowed,
                           machine.cores_by_quota > 0 ? fmt::format(", {:.1f} by quota", machine.cores_by_quota) : "",
                           machine.load >= 0 ? fmt::format(", load {:.1f}", machine.load) : ""));
  row("threads", "OMP_NUM_THREADS " + (now.omp_num_threads.empty() ? "unset" : now.omp_num_threads));
  row("memory", fmt::format("{}, {} available", gib(machine.memory_bytes), gib(machine.memory_available_bytes)));
  row("/dev/shm", machine.has_shared_memory ? fmt::format("{}, {} free", gib(machine.shared_memory_bytes),
                                                          gib(machine.shared_memory_free_bytes))
                                            : "missing");

  std::cout << "Self-test of every transport\n";
  for (const SelfTest& test : diagnosis.self_tests) {
    const std::string cuda = !now.built_with_cuda || test.transport != "mpi" ? ""
                             : test.takes_cuda_memory                        ? "; takes CUDA memory"
                                                                             : "; CUDA memory goes through the host";
    row(test.transport, test.passed
                            ? fmt::format("passed on {} ranks; started in {:.2f} s; gradients summed at {:.2f} GB/s{}",
                                          test.ranks, test.start_seconds, test.reduce_scatter_gb_per_s, cuda)
                            : (test.late  ? "not finished: "
                               : test.ran ? "FAILED: "
                                          : "not run: ") +
                                  test.detail);
  }
  if (!now.built_with_mpi) row("mpi", "not built in");

  std::cout << "What would go wrong\n";
  if (diagnosis.findings.empty()) std::cout << "  nothing that the doctor knows of\n";
  for (const Finding& finding : diagnosis.findings) {
    std::cout << fmt::format("  {} {}\n", finding.serious ? "[!]" : "[i]", finding.text);
  }
}

nlohmann::json json_of(const Library& library) {
  return {{"found", library.found}, {"in_use", library.in_use}, {"version", library.version}, {"path", library.path}};
}

nlohmann::json json_of(const Diagnosis& diagnosis) {
  const Circumstances& now = diagnosis.circumstances;
  const Machine& machine = now.machine;
  const Libraries& libraries = now.libraries;
  nlohmann::json out;
  const BuildFacts& facts = build_facts();
  out["built"] = {{"version", facts.version}, {"compiler", facts.compiler}, {"build_type", facts.build_type}};
  for (const BuiltIn& dependency : facts.dependencies) {
    out["built"]["dependencies"][std::string(dependency.name)] = {
        {"on", dependency.on}, {"version", dependency.version}, {"why", dependency.why}};
  }
  out["kernels"] = {{"in_use", now.kernels}, {"available", diagnosis.kernel_tables}};
  out["found"] = {{"mpi", json_of(libraries.mpi)},
                  {"libtorch", json_of(libraries.torch)},
                  {"blas", json_of(libraries.blas)},
                  {"openmp", json_of(libraries.openmp)},
                  {"cuda_driver", json_of(libraries.cuda_driver)},
                  {"nccl", json_of(libraries.nccl)},
                  {"grpc", json_of(libraries.grpc)}};
  out["found"]["blas"]["kind"] = name_of(libraries.blas_kind);
  out["found"]["blas"]["threads"] = libraries.blas_threads;
  out["found"]["blas"]["gflops"] = libraries.blas_gflops;
  out["found"]["cuda_driver"]["devices"] = libraries.cuda_devices;
  out["machine"] = {{"system", machine.system},
                    {"processor", machine.processor},
                    {"cores_online", machine.cores_online},
                    {"cores_allowed", machine.cores_allowed},
                    {"cores_by_quota", machine.cores_by_quota},
                    {"load", machine.load},
                    {"memory_bytes", machine.memory_bytes},
                    {"memory_available_bytes", machine.memory_available_bytes},
                    {"shared_memory_bytes", machine.shared_memory_bytes},
                    {"shared_memory_free_bytes", machine.shared_memory_free_bytes},
                    {"omp_num_threads", now.omp_num_threads}};
  out["self_tests"] = nlohmann::json::array();
  for (const SelfTest& test : diagnosis.self_tests) {
    out["self_tests"].push_back({{"transport", test.transport},
                                 {"ranks", test.ranks},
                                 {"ran", test.ran},
                                 {"passed", test.passed},
                                 {"late", test.late},
                                 {"detail", test.detail},
                                 {"start_seconds", test.start_seconds},
                                 {"takes_cuda_memory", test.takes_cuda_memory},
                                 {"reduce_scatter_gb_per_s", test.reduce_scatter_gb_per_s}});
  }
  out["findings"] = nlohmann::json::array();
  for (const Finding& finding : diagnosis.findings) {
    out["findings"].push_back({{"serious", finding.serious}, {"text", finding.text}});
  }
  return out;
}

void run(const Flags& flags) {
  if (flags.as_mpi_rank) {
    run_as_mpi_rank(std::chrono::milliseconds(static_cast<std::int64_t>(flags.deadline_seconds * 1000)));
    return;
  }
  const Diagnosis diagnosis = diagnose(flags);
  if (flags.json) {
    std::cout << json_of(diagnosis).dump(2) << '\n';
  } else {
    print(diagnosis);
  }
  for (const SelfTest& test : diagnosis.self_tests) {
    if (test.ran && !test.passed) set_exit_code(exit_failure);
  }
}

}  // namespace

void add_doctor(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand("doctor", doctor_description);
  command->footer(
      "Run it first on a new machine, and as a job would run: under the same user, container and binding.\n"
      "  regatta doctor\n"
      "  regatta doctor --ranks 4 --json\n"
      "Exit code 1 when a self-test fails; advice alone is no failure.");
  command->add_option("--ranks", flags->ranks, "Ranks of the self-tests")
      ->capture_default_str()
      ->check(CLI::Range(1, 256));
  command->add_option("--deadline", flags->deadline_seconds, "Seconds that a self-test may stand still")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_flag("--json", flags->json, "One JSON document on stdout");
  command->add_flag("--as-mpi-rank", flags->as_mpi_rank)->group("");  // how doctor starts itself under mpirun
  command->callback([flags] { run(*flags); });
}

}  // namespace regatta::cli
