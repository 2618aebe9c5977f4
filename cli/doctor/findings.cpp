#include "cli/doctor/findings.h"

#include <fmt/format.h>

#include <algorithm>

namespace regatta::cli {
namespace {

constexpr double gib = 1024.0 * 1024.0 * 1024.0;

bool is_busy(const Machine& machine) { return machine.load > 0.5 * machine.cores_allowed; }

void of_machine(const Circumstances& c, std::vector<Finding>& out) {
  const Machine& m = c.machine;
  if (m.cores_allowed < m.cores_online) {
    out.push_back(
        {false, fmt::format("this process may use {} of {} cores (binding or taskset); mpirun binds each of up to 2 "
                            "ranks to one core: use --bind-to none for more threads per rank",
                            m.cores_allowed, m.cores_online)});
  }
  if (m.cores_by_quota > 0 && m.cores_by_quota < m.cores_allowed) {
    out.push_back(
        {true, fmt::format("the container may use {:.1f} cores at a time though it sees {}; start ranks x threads for "
                           "{:.0f}",
                           m.cores_by_quota, m.cores_allowed, std::max(1.0, m.cores_by_quota))});
  }
  if (is_busy(m)) {
    out.push_back(
        {false,
         fmt::format("other programs keep {:.1f} cores busy; timings taken now will not be trustworthy", m.load)});
  }
  if (!m.has_proc) {
    out.push_back(
        {true, "/proc is not mounted, so lost ranks are noticed late; in a chroot: mount -t proc proc /proc"});
  }
  if (!m.has_shared_memory) {
    out.push_back(
        {true,
         "/dev/shm is missing or not writable, so ranks of one host can't read each other's buffers directly; in "
         "a chroot: mount -t tmpfs tmpfs /dev/shm"});
  } else if (static_cast<double>(m.shared_memory_free_bytes) < gib) {
    out.push_back(
        {true,
         fmt::format("/dev/shm has {:.2f} GiB free and holds the buckets of all ranks (about 8 bytes per parameter "
                     "and rank); a container gets more with --shm-size=8g",
                     static_cast<double>(m.shared_memory_free_bytes) / gib)});
  }
  if (m.memory_available_bytes > 0 && static_cast<double>(m.memory_available_bytes) < 2 * gib) {
    out.push_back({true, fmt::format("{:.1f} GiB of memory are free; compiling a LibTorch file takes 1.2, a job more",
                                     static_cast<double>(m.memory_available_bytes) / gib)});
  }
}

void of_build(const Circumstances& c, std::vector<Finding>& out) {
  if (c.build_type == "Debug" || c.build_type.empty()) {
    out.push_back({true, fmt::format("this is a {} build; kernels run many times slower than in Release",
                                     c.build_type.empty() ? "flagless" : c.build_type)});
  }
  if (c.kernels == "baseline") {
    out.push_back(
        {false,
         "this processor offers none of the vector instruction sets the kernels were written for; the baseline "
         "table is used: same results, slower"});
  }
  if (!c.built_with_mpi) {
    out.push_back(
        {false,
         "built without MPI: ranks can only be threads of one process; install libopenmpi-dev openmpi-bin and "
         "configure again"});
  }
  if (!c.built_with_torch) {
    out.push_back(
        {false,
         "built without LibTorch: no regatta finetune; install libtorch-dev libopenblas0-openmp and configure "
         "again"});
  }
  if (!c.built_with_blas) {
    out.push_back({false,
                   "built without OpenBLAS: rules that see whole matrices (muon and its family) are refused; install "
                   "libopenblas-openmp-dev and configure again"});
  }
  if (c.libraries.cuda_devices > 0 && !c.built_with_cuda) {
    out.push_back({false, fmt::format("{} CUDA device(s) found, but this build has no CUDA: no --device cuda; install "
                                      "nvidia-cuda-toolkit, or put nvcc in PATH, and configure again",
                                      c.libraries.cuda_devices)});
  }
  if (c.libraries.cuda_devices > 1 && c.built_with_cuda && !c.built_with_nccl) {
    out.push_back(
        {false, fmt::format("{} CUDA devices found, but this build has no NCCL: what ranks send each other goes "
                            "through MPI or the host; run scripts/bootstrap, or install libnccl-dev, and "
                            "configure again",
                            c.libraries.cuda_devices)});
  }
}

void of_threads(const Circumstances& c, std::vector<Finding>& out) {
  if (c.built_with_torch) {
    switch (c.libraries.blas_kind) {
      case Blas::reference:
        out.push_back({true,
                       "the BLAS in use is the reference one, some thirty times slower than OpenBLAS; install "
                       "libopenblas0-openmp"});
        break;
      case Blas::openblas_pthread:
        out.push_back({true,
                       "OpenBLAS runs threads of its own, which fight OpenMP's and ignore --threads; install "
                       "libopenblas0-openmp, or set OPENBLAS_NUM_THREADS=1"});
        break;
      default: break;
    }
    if (c.omp_num_threads.empty()) {
      out.push_back(
          {false,
           "OMP_NUM_THREADS is unset: LibTorch then picks a thread count of its own per rank and may change it for "
           "the whole process; regatta finetune sets it from --threads, your own programs should set it"});
    }
  }
  if (c.built_with_mpi) {
    if (c.machine.is_root && !c.root_allowed) {
      out.push_back({true,
                     "you are root, and mpirun refuses root unless OMPI_ALLOW_RUN_AS_ROOT=1 and "
                     "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 are set"});
    }
    if (!c.oversubscribe_allowed) {
      out.push_back(
          {false, fmt::format("mpirun refuses more than {} ranks here (one per core) unless given --oversubscribe or "
                              "OMPI_MCA_rmaps_base_oversubscribe=1; ranks x threads beyond the cores run slower",
                              c.machine.cores_allowed)});
    }
  }
}

}  // namespace

std::string excuse_for_lateness(const Machine& machine) {
  if (!is_busy(machine)) return "";
  return fmt::format(
      "; other programs keep {:.1f} cores busy, so it may only be slow: try again with a longer --deadline",
      machine.load);
}

std::vector<Finding> find_problems(const Circumstances& circumstances) {
  std::vector<Finding> out;
  of_build(circumstances, out);
  of_threads(circumstances, out);
  of_machine(circumstances, out);
  std::stable_partition(out.begin(), out.end(), [](const Finding& finding) { return finding.serious; });
  return out;
}

}  // namespace regatta::cli
