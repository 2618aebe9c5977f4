#pragma once
// What the opaque handles hold.

#include <memory>
#include <string>
#include <vector>

#include "runtime/c/call.h"
#include "runtime/engine/engine.h"
#include "runtime/transport/transport.h"

struct regatta_transport {
  std::shared_ptr<regatta::Transport> transport;  // shared with the engines over it
  std::string data_path;
};

struct regatta_engine {
  std::shared_ptr<regatta::Transport> transport;
  regatta::sharding::Mesh mesh;
  std::vector<regatta::Param> params;
  std::vector<regatta::Group> groups;
  regatta::EngineOptions options;
  // From build on.
  std::unique_ptr<regatta::Engine> engine;
  bool published = false;
  regatta::StepReport report;  // of the latest step
  std::vector<regatta::StatePart> parts;
  std::string plan_text;
};

namespace regatta::c_api {

inline regatta_transport& transport_of(const regatta_transport* handle, const char* function) {
  return Handles<regatta_transport>::get(handle, function, "transport");
}
inline regatta_engine& engine_of(const regatta_engine* handle, const char* function) {
  return Handles<regatta_engine>::get(handle, function, "engine");
}

/// Makes the handle of a transport.
regatta_transport* hand_out(std::unique_ptr<Transport> transport);
/// Reads "deadline_seconds=60,shared_memory=off".
TransportOptions transport_options(const char* text, const char* function);

}  // namespace regatta::c_api
