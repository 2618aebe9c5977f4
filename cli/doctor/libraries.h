#pragma once
// The libraries this process runs with, asked at run time: what was linked may be another version than what was built
// against, and some of it (CUDA, NCCL, gRPC) is only looked for.

#include <string>
#include <vector>

namespace regatta::cli {

struct Library {
  std::string name;  ///< "OpenBLAS", "NCCL"
  bool found = false;
  bool in_use = false;  ///< loaded into this process
  std::string version;  ///< as it tells itself; empty when it does not
  std::string path;     ///< the file, links resolved; empty when not found
};

enum class Blas { none, reference, openblas_openmp, openblas_pthread, openblas_serial, other };

struct Libraries {
  Library mpi, torch, blas, openmp, cuda_driver, nccl, grpc;
  Blas blas_kind = Blas::none;
  int blas_threads = 0;    ///< as the BLAS tells; 0 when it does not
  double blas_gflops = 0;  ///< fp32 matrix product of 512, best of five; 0 when there is no BLAS
  int cuda_devices = 0;
};

/// Loads NCCL, gRPC and the CUDA driver, if they are there, into this process.
Libraries read_libraries();

/// "OpenBLAS with OpenMP", ...
std::string name_of(Blas kind);

}  // namespace regatta::cli
