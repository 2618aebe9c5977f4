#pragma once
// The one exception type of the runtime. The message is one sentence that names the thing, its value and what was
// expected. Library code throws it; only programs print it.

#include <stdexcept>
#include <string>

namespace regatta {

enum class Code {
  invalid_argument,  ///< the caller's mistake: wrong shape, dtype, name, flag, file
  timeout,           ///< a peer did not arrive within the deadline
  transport,         ///< the transport failed or a peer is gone; it can't be used any more
  device,            ///< allocation or device failure
  checkpoint,        ///< a file could not be written or is damaged
  non_finite,        ///< NaN or Inf where the run was told to stop on it
  aborted,           ///< another rank failed, or the job was told to stop
};

const char* name_of(Code code);

class Error : public std::runtime_error {
 public:
  Error(Code code, const std::string& sentence) : std::runtime_error(sentence), code_(code) {}
  Code code() const { return code_; }

 private:
  Code code_;
};

}  // namespace regatta
