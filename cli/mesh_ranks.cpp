#include "cli/mesh_ranks.h"

#include "cli/engine_flags.h"

namespace regatta::cli {

int run_on_ranks(const RankSettings& settings, const std::function<void(RankContext&)>& body) {
  const sharding::Mesh mesh = parse_mesh(settings.mesh);
  if (!(settings.deadline_seconds > 0) || settings.deadline_seconds > 1e6)
    throw Error(Code::invalid_argument, "--deadline is " + std::to_string(settings.deadline_seconds) +
                                            " seconds; expected above 0 and up to a million");
  RunOptions options;
  options.program = settings.program;
  options.drain_signals = settings.drain_signals;
  options.world = "mesh " + mesh.text();
  options.transport.deadline = std::chrono::milliseconds(static_cast<std::int64_t>(settings.deadline_seconds * 1000));
  options.transport.device = settings.device;
  options.transport.reduction = settings.reduction;
  options.transport.device_messages = settings.device_messages;
  return run_on_ranks(settings.transport, mesh.world_size(), options, body);
}

}  // namespace regatta::cli
