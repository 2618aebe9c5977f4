#include "runtime/device/device.h"

#include <charconv>

#include "runtime/error.h"

namespace regatta {

void Device::check_launch(int code, std::string_view what) const {
  if (code == 0) return;
  throw Error(Code::device, name() + " did not accept " + std::string(what) + ": " + kernels::cuda::error_text(code));
}

std::shared_ptr<Device> open_device(const std::string& name, int usual_index) {
  if (name == "cpu") return nullptr;
  if (name == "cuda") return open_cuda_device(usual_index);
  int index = -1;
  if (name.rfind("cuda:", 0) == 0) {
    const char* const begin = name.data() + 5;
    const char* const end = name.data() + name.size();
    const auto [stopped, error] = std::from_chars(begin, end, index);
    if (error != std::errc() || stopped != end) index = -1;
  }
  if (index < 0) throw Error(Code::invalid_argument, "device is '" + name + "'; expected cpu, cuda or cuda:N");
  return open_cuda_device(index);
}

}  // namespace regatta
