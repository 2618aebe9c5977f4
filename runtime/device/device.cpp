#include "runtime/device/device.h"

#include <atomic>
#include <charconv>

#include "runtime/error.h"
#include "runtime/log.h"

namespace regatta {

void Device::check_launch(int code, std::string_view what) const {
  if (code == 0) return;
  throw Error(Code::device, name() + " did not accept " + std::string(what) + ": " + kernels::cuda::error_text(code));
}

HostPin::HostPin(Device& device, void* memory, std::int64_t bytes) {
  if (bytes == 0) return;
  const std::string why_not = device.pin(memory, bytes);
  if (why_not.empty()) {
    device_ = &device;
    memory_ = memory;
    return;
  }
  static std::atomic<bool> said = false;
  if (!said.exchange(true))
    log::warning(device.name() + " could not pin " + std::to_string(bytes) + " bytes of the host's memory (" + why_not +
                 "): copies through the host will be slower");
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
