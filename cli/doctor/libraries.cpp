#include "cli/doctor/libraries.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <initializer_list>

namespace regatta::cli {
namespace {

std::string resolved(const std::string& path) {
  std::error_code error;
  const std::filesystem::path real = std::filesystem::canonical(path, error);
  return error ? path : real.string();
}

std::vector<std::string> loaded_files() {
  std::vector<std::string> files;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* out) {
        if (info->dlpi_name != nullptr && info->dlpi_name[0] != '\0') {
          static_cast<std::vector<std::string>*>(out)->emplace_back(info->dlpi_name);
        }
        return 0;
      },
      &files);
  return files;
}

/// A loaded library whose file name starts with one of `prefixes`.
Library loaded(const std::string& name, std::initializer_list<const char*> prefixes) {
  for (const std::string& path : loaded_files()) {
    const std::string file = std::filesystem::path(path).filename().string();
    for (const char* prefix : prefixes) {
      if (file.rfind(prefix, 0) == 0) return {name, true, true, "", resolved(path)};
    }
  }
  return {name};
}

template <typename Function>
Function symbol(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

template <typename Function>
Function symbol(void* handle, const char* name) {
  return reinterpret_cast<Function>(dlsym(handle, name));
}

/// Opens a library that this program does not link. Stays open: some of them do not survive being closed.
void* opened(Library& library, std::initializer_list<const char*> files) {
  for (const char* file : files) {
    void* handle = dlopen(file, RTLD_LAZY | RTLD_LOCAL);
    if (handle == nullptr) continue;
    library.found = true;
    link_map* map = nullptr;
    if (dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0) library.path = resolved(map->l_name);
    return handle;
  }
  return nullptr;
}

/// "22809" -> "2.28.9", "13000" -> "13.0".
std::string nccl_version(int code) {
  return std::to_string(code / 10000) + "." + std::to_string(code / 100 % 100) + "." + std::to_string(code % 100);
}
std::string cuda_version(int code) { return std::to_string(code / 1000) + "." + std::to_string(code % 1000 / 10); }

double measured_gflops() {
  constexpr int n = 512;
  constexpr int row_major = 101, no_transpose = 111;
  using Gemm = void (*)(int, int, int, int, int, int, float, const float*, int, const float*, int, float, float*, int);
  const Gemm gemm = symbol<Gemm>("cblas_sgemm");
  if (gemm == nullptr) return 0;
  std::vector<float> a(n * n, 0.5F), b(n * n, 0.25F), c(n * n, 0.0F);
  double best = 0;
  for (int round = 0; round < 5; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    gemm(row_major, no_transpose, no_transpose, n, n, n, 1.0F, a.data(), n, b.data(), n, 0.0F, c.data(), n);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    if (c[0] == 0.125F * n) best = std::max(best, 2e-9 * n * n * n / seconds.count());
  }
  return best;
}

void read_blas(Libraries& libraries) {
  libraries.blas = loaded("BLAS", {"libblas.so", "libopenblas", "libblis", "libmkl"});
  if (!libraries.blas.found) return;
  libraries.blas_kind = Blas::reference;
  if (const auto config = symbol<char* (*)()>("openblas_get_config")) {
    libraries.blas.version = config();
    const auto parallel = symbol<int (*)()>("openblas_get_parallel");
    const int kind = parallel == nullptr ? -1 : parallel();
    libraries.blas_kind = kind == 2   ? Blas::openblas_openmp
                          : kind == 1 ? Blas::openblas_pthread
                          : kind == 0 ? Blas::openblas_serial
                                      : Blas::other;
    if (const auto threads = symbol<int (*)()>("openblas_get_num_threads")) libraries.blas_threads = threads();
  } else if (libraries.blas.path.find("blis") != std::string::npos ||
             libraries.blas.path.find("mkl") != std::string::npos) {
    libraries.blas_kind = Blas::other;
  }
  libraries.blas_gflops = measured_gflops();
}

}  // namespace

std::string name_of(Blas kind) {
  switch (kind) {
    case Blas::none: return "none";
    case Blas::reference: return "reference BLAS";
    case Blas::openblas_openmp: return "OpenBLAS with OpenMP";
    case Blas::openblas_pthread: return "OpenBLAS with its own threads";
    case Blas::openblas_serial: return "OpenBLAS without threads";
    case Blas::other: return "BLAS of another make";
  }
  return "unknown";
}

Libraries read_libraries() {
  Libraries libraries;
  libraries.mpi = loaded("MPI", {"libmpi.so", "libmpich.so"});
  if (const auto version = symbol<int (*)(char*, int*)>("MPI_Get_library_version")) {
    char text[8192] = {};  // MPI_MAX_LIBRARY_VERSION_STRING of every MPI at hand; this call works before MPI_Init
    int length = 0;
    if (version(text, &length) == 0) {
      libraries.mpi.version = std::string(text, static_cast<std::size_t>(length));
      libraries.mpi.version.resize(std::min(libraries.mpi.version.find_first_of(",\n"), libraries.mpi.version.size()));
    }
  }
  libraries.torch = loaded("LibTorch", {"libtorch_cpu.so", "libtorch.so"});
  libraries.openmp = loaded("OpenMP", {"libgomp", "libomp", "libiomp"});
  read_blas(libraries);

  libraries.cuda_driver = {"CUDA driver"};
  if (void* handle = opened(libraries.cuda_driver, {"libcuda.so.1"})) {
    int code = 0;
    const auto version = symbol<int (*)(int*)>(handle, "cuDriverGetVersion");
    const auto initialise = symbol<int (*)(unsigned)>(handle, "cuInit");
    const auto count = symbol<int (*)(int*)>(handle, "cuDeviceGetCount");
    if (version != nullptr && version(&code) == 0) libraries.cuda_driver.version = cuda_version(code);
    int devices = 0;
    if (initialise != nullptr && count != nullptr && initialise(0) == 0 && count(&devices) == 0) {
      libraries.cuda_devices = devices;
    }
  }
  libraries.nccl = {"NCCL"};
  if (void* handle = opened(libraries.nccl, {"libnccl.so.2"})) {
    int code = 0;
    const auto version = symbol<int (*)(int*)>(handle, "ncclGetVersion");
    if (version != nullptr && version(&code) == 0) libraries.nccl.version = nccl_version(code);
  }
  // The number in gRPC's file name changes with its versions: 29 is Debian 12's, later ones are of newer systems.
  libraries.grpc = {"gRPC"};
  if (void* handle = opened(libraries.grpc, {"libgrpc.so", "libgrpc.so.29", "libgrpc.so.30", "libgrpc.so.37"})) {
    if (const auto version = symbol<const char* (*)()>(handle, "grpc_version_string"))
      libraries.grpc.version = version();
  }
  return libraries;
}

}  // namespace regatta::cli
