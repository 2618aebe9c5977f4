#include "runtime/transport/mpi/mapped_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "runtime/error.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

namespace regatta {
namespace {

std::string reason() { return std::strerror(errno); }

std::shared_ptr<void> map(int file, std::int64_t bytes) {
  const auto size = static_cast<std::size_t>(bytes);
  void* address = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (address == MAP_FAILED) return nullptr;
  // Helps where the system allows huge pages for shared memory on request; elsewhere it does nothing.
  madvise(address, size, MADV_HUGEPAGE);
  return std::shared_ptr<void>(address, [size](void* mapped) { munmap(mapped, size); });
}

}  // namespace

MappedSharing::~MappedSharing() {
  for (const auto& [handle, file] : files_) close(file);
}

MemorySharing::Piece MappedSharing::create(std::int64_t bytes) {
  const int file = memfd_create("regatta", MFD_CLOEXEC);
  if (file < 0) throw Error(Code::device, "cannot create shared memory: " + reason());
  std::string handle = "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(file);
  {
    std::lock_guard lock(mutex_);
    files_[handle] = file;
  }
  const std::string what = "cannot allocate " + std::to_string(bytes) + " bytes of shared memory: ";
  const auto fail = [&] {
    const std::string why = reason();
    retire(handle);
    throw Error(Code::device, what + why);
  };
  if (ftruncate(file, bytes) != 0) fail();
  std::shared_ptr<void> memory = map(file, bytes);
  if (!memory) fail();
  // Takes the pages now, near this rank: a lack of memory is an error here instead of a SIGBUS in the middle of a step.
  if (madvise(memory.get(), static_cast<std::size_t>(bytes), MADV_POPULATE_WRITE) != 0) {
    if (errno != EINVAL || fallocate(file, 0, 0, bytes) != 0) fail();
  }
  return {static_cast<std::byte*>(memory.get()), std::move(memory), std::move(handle)};
}

MemorySharing::Piece MappedSharing::open(const std::string& handle, std::int64_t bytes) {
  const int file = ::open(handle.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) throw Error(Code::transport, "cannot open the shared memory " + handle + ": " + reason());
  std::shared_ptr<void> memory = map(file, bytes);
  const std::string why = memory ? "" : reason();
  close(file);
  if (!memory) throw Error(Code::transport, "cannot map the shared memory " + handle + ": " + why);
  // Saves the page faults of the first step; kernels before 5.14 fault then.
  madvise(memory.get(), static_cast<std::size_t>(bytes), MADV_POPULATE_READ);
  return {static_cast<std::byte*>(memory.get()), std::move(memory), {}};
}

void MappedSharing::retire(const std::string& handle) noexcept {
  std::lock_guard lock(mutex_);
  const auto found = files_.find(handle);
  if (found == files_.end()) return;
  close(found->second);
  files_.erase(found);
}

}  // namespace regatta
