#include <sys/mman.h>

#include "runtime/error.h"
#include "runtime/transport/shared/memory_sharing.h"

namespace regatta {

std::shared_ptr<void> private_memory(std::int64_t bytes) {
  constexpr std::int64_t huge_page = 2 << 20;
  const bool huge = bytes >= 2 * huge_page;
  // Room to slide up to a huge page's boundary.
  const std::size_t mapped = static_cast<std::size_t>(bytes + (huge ? huge_page : 0));
  void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) {
    throw Error(Code::device, "cannot allocate " + std::to_string(bytes) + " bytes of memory");
  }
  auto address = reinterpret_cast<std::uintptr_t>(base);
  if (huge) {
    address = (address + huge_page - 1) / huge_page * huge_page;
    // A kernel that refuses only costs speed.
    madvise(reinterpret_cast<void*>(address), static_cast<std::size_t>(bytes), MADV_HUGEPAGE);
  }
  return std::shared_ptr<void>(reinterpret_cast<void*>(address), [base, mapped](void*) { munmap(base, mapped); });
}

}  // namespace regatta
