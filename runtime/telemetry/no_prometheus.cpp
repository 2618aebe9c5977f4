// Stand-in for builds without prometheus-cpp.

#include "runtime/error.h"
#include "runtime/telemetry/telemetry.h"

namespace regatta {

struct Telemetry::Impl {
  std::string address;
};

Telemetry::Telemetry(TelemetrySettings settings, const TelemetryIdentity&, Transport&) {
  throw Error(Code::invalid_argument, "metrics were asked for (" +
                                          (settings.address.empty() ? settings.push_address : settings.address) +
                                          "), but this program was built without prometheus-cpp and cpp-httplib");
}

Telemetry::~Telemetry() = default;

void Telemetry::record(const StepReport&, std::span<const ParamReport>, const TrainerFacts&) {}

void Telemetry::saved() {}

const std::string& Telemetry::address() const { return impl_->address; }

std::string Telemetry::page() const { return {}; }

std::string telemetry_library() { return "not built in"; }

}  // namespace regatta
