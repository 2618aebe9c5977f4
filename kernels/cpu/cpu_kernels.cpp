// Picks the kernel table at run time.

#include "kernels/kernels.h"

namespace regatta::kernels {

#ifdef REGATTA_X86_LEVELS
namespace x86_64_v4 {
extern const KernelTable table;
}
namespace x86_64_v3 {
extern const KernelTable table;
}
#endif
namespace baseline {
extern const KernelTable table;
}

std::vector<const KernelTable*> all_cpu_kernels() {
  std::vector<const KernelTable*> tables;
#ifdef REGATTA_X86_LEVELS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) tables.push_back(&x86_64_v4::table);
  if (__builtin_cpu_supports("x86-64-v3")) tables.push_back(&x86_64_v3::table);
#endif
  tables.push_back(&baseline::table);
  return tables;
}

const KernelTable& cpu_kernels() {
  static const KernelTable& best = *all_cpu_kernels().front();
  return best;
}

}  // namespace regatta::kernels
