#include "runtime/error.h"

namespace regatta {

const char* name_of(Code code) {
  switch (code) {
    case Code::invalid_argument: return "invalid argument";
    case Code::timeout: return "timeout";
    case Code::transport: return "transport";
    case Code::device: return "device";
    case Code::checkpoint: return "checkpoint";
    case Code::non_finite: return "non-finite";
    case Code::aborted: return "aborted";
  }
  return "unknown";
}

}  // namespace regatta
