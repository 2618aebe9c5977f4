#include "runtime/transport/nccl/launcher.h"

namespace regatta {

JobPlace job_place() { return job_place_from_environment(); }

}  // namespace regatta
