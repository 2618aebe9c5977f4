#pragma once
// What would go wrong, or slow, on this machine, in sentences that say what to do. Pure functions of what was read.

#include <string>
#include <vector>

#include "cli/doctor/libraries.h"
#include "cli/doctor/machine.h"

namespace regatta::cli {

struct Finding {
  bool serious = false;  ///< wrong or very slow, not just good to know
  std::string text;
};

struct Circumstances {
  Machine machine;
  Libraries libraries;
  std::string kernels;  ///< instruction set of the kernel table
  std::string build_type;
  bool built_with_mpi = false;
  bool built_with_torch = false;
  bool built_with_blas = false;
  bool built_with_cuda = false;
  bool built_with_nccl = false;
  std::string omp_num_threads;         ///< of the environment; "" when unset
  bool root_allowed = false;           ///< Open MPI may run as root
  bool oversubscribe_allowed = false;  ///< Open MPI may start more ranks than cores
};

std::vector<Finding> find_problems(const Circumstances& circumstances);

/// What may be the matter with a self-test that was only late, to add to what it says; empty where nothing else runs.
std::string excuse_for_lateness(const Machine& machine);

}  // namespace regatta::cli
