#pragma once
// The flags that say where ranks keep and sweep their parameters, shared by the subcommands that step.

#include <memory>
#include <string>

#include "runtime/device/device.h"
#include "runtime/transport/transport.h"

namespace CLI {
class App;
}

namespace regatta::cli {

struct DeviceFlags {
  std::string device = "cpu", reduction = "tree", device_messages = "auto";
  bool graph = false;
};

/// --device, --device-graph, --reduction, --device-messages.
void add_device_flags(CLI::App& app, DeviceFlags& flags);

/// The rank's device, null for the CPU: "cuda" takes the one of the rank's number on its host, counted round the
/// devices there are. Throws Error when there is none.
std::shared_ptr<Device> device_of(const DeviceFlags& flags);
TransportOptions::Reduction reduction_of(const DeviceFlags& flags);
TransportOptions::DeviceMessages device_messages_of(const DeviceFlags& flags);

}  // namespace regatta::cli
