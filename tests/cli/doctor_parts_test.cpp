// The doctor's parts by themselves: what it says of a machine at each threshold, that its self-test finds wrong bytes,
// and how it takes what mpirun says, with a script in mpirun's place.

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "cli/doctor/findings.h"
#include "cli/doctor/machine.h"
#include "cli/doctor/self_test.h"
#include "runtime/error.h"
#include "tests/support/spmd.h"

namespace regatta::cli {
namespace {

constexpr std::int64_t gib = std::int64_t{1} << 30;

/// A machine and a build of which nothing is to be said.
Circumstances healthy() {
  Circumstances c;
  c.machine.cores_online = c.machine.cores_allowed = 8;
  c.machine.load = 4;
  c.machine.memory_bytes = 16 * gib;
  c.machine.memory_available_bytes = 2 * gib;
  c.machine.has_proc = c.machine.has_shared_memory = true;
  c.machine.shared_memory_bytes = 4 * gib;
  c.machine.shared_memory_free_bytes = gib;
  c.libraries.blas_kind = Blas::openblas_openmp;
  c.kernels = "avx2";
  c.build_type = "Release";
  c.built_with_mpi = c.built_with_torch = c.built_with_blas = true;
  c.omp_num_threads = "2";
  c.root_allowed = c.oversubscribe_allowed = true;
  return c;
}

struct FindingCase {
  const char* name;
  std::function<void(Circumstances&)> change;
  bool serious;
  const char* part;
};

const FindingCase finding_cases[] = {
    {"fewer cores", [](auto& c) { c.machine.cores_allowed = 7, c.machine.load = 3; }, false, "may use 7 of 8 cores"},
    {"quota", [](auto& c) { c.machine.cores_by_quota = 7.5; }, true, "may use 7.5 cores at a time though it sees 8"},
    {"small quota", [](auto& c) { c.machine.cores_by_quota = 0.4; }, true, "start ranks x threads for 1"},
    {"load", [](auto& c) { c.machine.load = 4.1; }, false, "other programs keep 4.1 cores busy"},
    {"no proc", [](auto& c) { c.machine.has_proc = false; }, true, "/proc is not mounted"},
    {"no shm", [](auto& c) { c.machine.has_shared_memory = false; }, true, "/dev/shm is missing or not writable"},
    {"little shm", [](auto& c) { c.machine.shared_memory_free_bytes = gib - 1; }, true, "/dev/shm has 1.00 GiB free"},
    {"little memory", [](auto& c) { c.machine.memory_available_bytes = gib; }, true, "1.0 GiB of memory are free"},
    {"debug", [](auto& c) { c.build_type = "Debug"; }, true, "this is a Debug build"},
    {"no build type", [](auto& c) { c.build_type = ""; }, true, "this is a flagless build"},
    {"baseline", [](auto& c) { c.kernels = "baseline"; }, false, "the baseline table is used"},
    {"no MPI", [](auto& c) { c.built_with_mpi = false; }, false, "built without MPI"},
    {"no torch", [](auto& c) { c.built_with_torch = false; }, false, "built without LibTorch"},
    {"no BLAS", [](auto& c) { c.built_with_blas = false; }, false, "built without OpenBLAS"},
    {"no CUDA", [](auto& c) { c.libraries.cuda_devices = 1; }, false,
     "1 CUDA device(s) found, but this build has no CUDA"},
    {"no NCCL", [](auto& c) { c.libraries.cuda_devices = 2, c.built_with_cuda = true; }, false, "has no NCCL"},
    {"reference BLAS", [](auto& c) { c.libraries.blas_kind = Blas::reference; }, true, "the reference one"},
    {"threads of BLAS", [](auto& c) { c.libraries.blas_kind = Blas::openblas_pthread; }, true, "threads of its own"},
    {"no OMP_NUM_THREADS", [](auto& c) { c.omp_num_threads = ""; }, false, "OMP_NUM_THREADS is unset"},
    {"root", [](auto& c) { c.machine.is_root = true, c.root_allowed = false; }, true, "mpirun refuses root"},
    {"no oversubscribing", [](auto& c) { c.oversubscribe_allowed = false; }, false, "refuses more than 8 ranks"},
};

TEST(DoctorFindings, SayNothingOfAHealthyMachine) {
  EXPECT_TRUE(find_problems(healthy()).empty());
  // What is not a problem, though it looks like one.
  Circumstances c = healthy();
  c.machine.cores_by_quota = 8;
  c.machine.is_root = true;
  c.libraries.cuda_devices = 1;
  c.built_with_cuda = true;
  c.machine.load = -1;
  c.machine.memory_available_bytes = 0;  // unknown
  EXPECT_TRUE(find_problems(c).empty());
  c = healthy();
  c.built_with_mpi = false;
  c.machine.is_root = true;
  c.root_allowed = c.oversubscribe_allowed = false;
  EXPECT_EQ(find_problems(c).size(), 1u) << "mpirun is no matter without MPI";
  c = healthy();
  c.built_with_torch = false;
  c.libraries.blas_kind = Blas::reference;
  c.omp_num_threads = "";
  EXPECT_EQ(find_problems(c).size(), 1u) << "nor are LibTorch's threads without LibTorch";
}

TEST(DoctorFindings, SayEachThingAlone) {
  for (const FindingCase& one : finding_cases) {
    Circumstances c = healthy();
    one.change(c);
    const std::vector<Finding> found = find_problems(c);
    ASSERT_EQ(found.size(), 1u) << one.name;
    EXPECT_EQ(found[0].serious, one.serious) << one.name;
    EXPECT_NE(found[0].text.find(one.part), std::string::npos) << one.name << ": " << found[0].text;
  }
}

TEST(DoctorFindings, SayTheSeriousThingsFirst) {
  Circumstances c = healthy();
  for (const FindingCase& one : finding_cases) one.change(c);
  const std::vector<Finding> found = find_problems(c);
  EXPECT_GT(found.size(), 10u);
  EXPECT_TRUE(std::is_partitioned(found.begin(), found.end(), [](const Finding& f) { return f.serious; }));
}

TEST(DoctorFindings, ExcuseLatenessOnABusyMachineOnly) {
  Machine machine;
  machine.cores_allowed = 2;
  for (const double idle : {-1.0, 0.0, 1.0}) {
    machine.load = idle;
    EXPECT_EQ(excuse_for_lateness(machine), "");
  }
  machine.load = 8.04;
  EXPECT_EQ(excuse_for_lateness(machine),
            "; other programs keep 8.0 cores busy, so it may only be slow: try again with a longer --deadline");
}

// ---- the body of the self-test

// The kernel counts in kibibytes, whatever it calls them.
TEST(DoctorMachine, CountsMemoryInBytes) {
  std::ifstream facts("/proc/meminfo");
  std::string name;
  std::int64_t kibibytes = 0;
  facts >> name >> kibibytes;
  ASSERT_EQ(name, "MemTotal:");
  EXPECT_EQ(read_machine().memory_bytes, kibibytes * 1024);
}

TEST(DoctorSelfTest, PassesOnThreads) {
  for (const int ranks : {1, 3}) {
    const SelfTest test = test_local(ranks, std::chrono::minutes(2));
    EXPECT_TRUE(test.ran && test.passed && !test.late) << test.detail;
    EXPECT_EQ(test.transport, "local");
    EXPECT_EQ(test.ranks, ranks);
    EXPECT_GT(test.reduce_scatter_gb_per_s, 0);
  }
}

/// Spoils what arrives under one label.
struct Spoiling final : TransportFaults {
  void arrived(int, std::string_view label, std::span<std::byte> bytes) override {
    if (label == spoiled && !bytes.empty()) bytes.back() ^= std::byte{1};
  }
  std::string spoiled;
};

TEST(DoctorSelfTest, FindsWrongBytes) {
  for (const auto& [label, what] :
       {std::pair{"self-test exchange", "exchange"}, {"self-test broadcast", "broadcast"}}) {
    Spoiling spoiling;
    spoiling.spoiled = label;
    TransportOptions options = testing::test_transport_options();
    options.faults = &spoiling;
    std::string said;
    try {
      testing::run_ranks(
          2, [](Transport& t) { exercise(t); }, options);
    } catch (const Error& error) {
      said = error.what();
    }
    EXPECT_NE(said.find("the self-test of transport local got a wrong value from " + std::string(what)),
              std::string::npos)
        << said;
  }
}

// ---- with a script in mpirun's place

class DoctorUnderMpirun : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "regatta_doctor_" + std::to_string(getpid());
    std::filesystem::create_directories(folder_);
    path_ = std::getenv("PATH");
    setenv("PATH", (folder_ + ":" + path_).c_str(), 1);
  }
  void TearDown() override {
    setenv("PATH", path_.c_str(), 1);
    std::filesystem::remove_all(folder_);
  }
  SelfTest test(const std::string& script, std::chrono::milliseconds deadline = std::chrono::minutes(2)) {
    const std::string file = folder_ + "/mpirun";
    std::ofstream(file) << "#!/bin/sh\n" << script << '\n';
    chmod(file.c_str(), 0755);
    return test_mpi("/bin/regatta", 2, deadline);
  }

  std::string folder_, path_;
};

constexpr const char* result =
    R"(echo '{"regatta_self_test": {"ranks": 2, "takes_cuda_memory": true, "reduce_scatter_gb_per_s": 3.5, "seconds": 0}}')";

TEST_F(DoctorUnderMpirun, TakesTheResultAmongOtherLines) {
  const SelfTest good =
      test("printf '%s ' \"$@\" > " + folder_ + "/arguments\necho a warning >&2\n" + result + "\necho more");
  EXPECT_TRUE(good.ran && good.passed && !good.late) << good.detail;
  EXPECT_EQ(good.ranks, 2);
  EXPECT_TRUE(good.takes_cuda_memory);
  EXPECT_EQ(good.reduce_scatter_gb_per_s, 3.5);
  EXPECT_GT(good.start_seconds, 0);
  std::string arguments;
  std::getline(std::ifstream(folder_ + "/arguments") >> std::ws, arguments);
  EXPECT_EQ(arguments.rfind("-n 2 /bin/regatta doctor --as-mpi-rank --deadline 120", 0), 0u) << arguments;
}

TEST_F(DoctorUnderMpirun, TellsWhatWentWrong) {
  SelfTest bad = test("echo ----; echo; echo the self-test goes on; echo mpirun refuses root; exit 3");
  EXPECT_TRUE(bad.ran && !bad.passed && !bad.late);
  EXPECT_EQ(bad.detail, "mpirun ended with code 3: mpirun refuses root");
  bad = test(std::string(result) + "; exit 3");
  EXPECT_TRUE(!bad.passed && bad.detail.rfind("mpirun ended with code 3: ", 0) == 0) << bad.detail;
  bad = test("exit 0");
  EXPECT_EQ(bad.detail, "mpirun ended with code 0: it said nothing");
  bad = test(
      "echo '{\"regatta_self_test\": {\"ranks\": 1, \"takes_cuda_memory\": false, "
      "\"reduce_scatter_gb_per_s\": 1, \"seconds\": 0}}'");
  EXPECT_TRUE(bad.ran && !bad.passed);
  EXPECT_EQ(bad.detail, "mpirun started 1 ranks");
  bad = test("echo \"barrier 'x' did not complete within the deadline of 120 s: rank 1 did not arrive\"; exit 1");
  EXPECT_TRUE(bad.late && !bad.passed);
}

TEST_F(DoctorUnderMpirun, EndsItWhenItStandsStill) {
  const SelfTest silent = test("echo begins; exec sleep 1000", std::chrono::milliseconds(1500));
  EXPECT_TRUE(silent.ran && silent.late && !silent.passed);
  EXPECT_EQ(silent.detail, "it said nothing for the deadline of 1.5 s and was ended");
}

// Slow is not broken: it takes longer in all than it may stand still.
TEST_F(DoctorUnderMpirun, WaitsForOneThatGetsOn) {
  const SelfTest slow =
      test("for i in 1 2 3 4 5 6 7; do echo the self-test goes on; sleep 0.5; done\n" + std::string(result),
           std::chrono::milliseconds(3000));
  EXPECT_TRUE(slow.passed && !slow.late) << slow.detail;
}

TEST_F(DoctorUnderMpirun, SaysWhenThereIsNone) {
  setenv("PATH", folder_.c_str(), 1);
  const SelfTest none = test_mpi("/bin/regatta", 2, std::chrono::minutes(2));
  EXPECT_TRUE(!none.ran && !none.passed);
  EXPECT_NE(none.detail.find("'mpirun' could not be started"), std::string::npos) << none.detail;
}

}  // namespace
}  // namespace regatta::cli
