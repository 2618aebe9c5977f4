#pragma once
// run_on_ranks for the subcommands that take --mesh, --transport and --deadline.

#include <functional>
#include <memory>
#include <string>

#include "cli/ranks.h"

namespace regatta::cli {

struct RankSettings {
  std::string program;  ///< begins each sentence, such as "regatta replay"
  std::string transport = "local";
  std::string mesh = "dp=1";
  double deadline_seconds = 600;
  std::shared_ptr<Device> device;  ///< null for the CPU
  TransportOptions::Reduction reduction = TransportOptions::Reduction::tree;
  TransportOptions::DeviceMessages device_messages = TransportOptions::DeviceMessages::automatic;
  bool drain_signals = false;  ///< as in RunOptions
};

/// As run_on_ranks; throws Error(invalid_argument) when the mesh is not one.
int run_on_ranks(const RankSettings& settings, const std::function<void(RankContext&)>& body);

}  // namespace regatta::cli
