#include "cli/device_flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>

#include "runtime/transport/nccl/nccl_transport.h"

namespace regatta::cli {

void add_device_flags(CLI::App& app, DeviceFlags& flags) {
  app.add_option("--device", flags.device,
                 "cpu, cuda, or cuda:N: where parameters, gradients and state lie and are swept")
      ->capture_default_str();
  app.add_flag("--device-graph", flags.graph,
               "On a device, with one rank: put the launches of a step into a CUDA graph and launch that");
  app.add_option("--reduction", flags.reduction,
                 "Who adds gradients over transport nccl: tree (in rank order, the bits of every other transport) or "
                 "sum (NCCL itself)")
      ->capture_default_str()
      ->check(CLI::IsMember({"tree", "sum"}));
  app.add_option(
         "--device-messages", flags.device_messages,
         "Whether transport mpi gives MPI the devices' memory: auto (when the MPI library says that it takes it), "
         "always, or never (through pinned memory of the host)")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "always", "never"}));
}

std::shared_ptr<Device> device_of(const DeviceFlags& flags) {
  return open_device(flags.device, local_rank_of_job() % std::max(1, cuda_device_count()));
}

TransportOptions::Reduction reduction_of(const DeviceFlags& flags) {
  return flags.reduction == "sum" ? TransportOptions::Reduction::sum : TransportOptions::Reduction::tree;
}

TransportOptions::DeviceMessages device_messages_of(const DeviceFlags& flags) {
  using DeviceMessages = TransportOptions::DeviceMessages;
  if (flags.device_messages == "always") return DeviceMessages::always;
  return flags.device_messages == "never" ? DeviceMessages::never : DeviceMessages::automatic;
}

}  // namespace regatta::cli
