// Meshes and transports.

#include <algorithm>

#include "runtime/c/handles.h"
#include "runtime/c/text.h"
#include "runtime/transport/factory.h"
#include "runtime/transport/local/local_transport.h"
#include "runtime/transport/nccl/nccl_transport.h"
#include "sharding/mesh.h"

namespace regatta::c_api {

regatta_transport* hand_out(std::unique_ptr<Transport> transport) {
  auto handle = std::make_unique<regatta_transport>();
  handle->data_path = transport->data_path();
  handle->transport = std::move(transport);
  Handles<regatta_transport>::add(handle.get());
  return handle.release();
}

TransportOptions transport_options(const char* text, const char* function) {
  TransportOptions options;
  for (const auto& [name, value] : settings_of(text, function)) {
    if (name == "deadline_seconds") {
      const double seconds = number_of(name, value, 0.001, 1e9, "a number of seconds above 0");
      options.deadline = std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000));
    } else if (name == "shared_memory") {
      options.shared_memory = choice_of(name, value, std::array{std::pair{"on", true}, std::pair{"off", false}});
    } else if (name == "device") {
      options.device = open_device(value, local_rank_of_job() % std::max(1, cuda_device_count()));
    } else if (name == "device_messages") {
      using DeviceMessages = TransportOptions::DeviceMessages;
      options.device_messages =
          choice_of(name, value,
                    std::array{std::pair{"auto", DeviceMessages::automatic},
                               std::pair{"always", DeviceMessages::always}, std::pair{"never", DeviceMessages::never}});
    } else if (name == "reduction") {
      using Reduction = TransportOptions::Reduction;
      options.reduction =
          choice_of(name, value, std::array{std::pair{"tree", Reduction::tree}, std::pair{"sum", Reduction::sum}});
    } else {
      refuse(std::string(function) + ": there is no option '" + name +
             "'; expected one of deadline_seconds, shared_memory, device, device_messages, reduction");
    }
  }
  return options;
}

}  // namespace regatta::c_api

using namespace regatta;
using namespace regatta::c_api;

int regatta_mesh_size(const char* mesh, const char* axis, int* size) {
  return guarded([&] {
    require(mesh, "regatta_mesh_size", "mesh", "text such as dp=2,tp=2");
    require(size, "regatta_mesh_size", "size", "where to write it");
    const sharding::Mesh parsed = sharding::Mesh::parse(mesh);
    *size = axis == nullptr ? parsed.world_size() : parsed.size(axis);
  });
}

int regatta_mesh_coordinate(const char* mesh, int rank, const char* axis, int* coordinate) {
  return guarded([&] {
    require(mesh, "regatta_mesh_coordinate", "mesh", "text such as dp=2,tp=2");
    require(axis, "regatta_mesh_coordinate", "axis", "an axis such as tp");
    require(coordinate, "regatta_mesh_coordinate", "coordinate", "where to write it");
    const sharding::Mesh parsed = sharding::Mesh::parse(mesh);
    if (rank < 0 || rank >= parsed.world_size())
      refuse("regatta_mesh_coordinate: rank is " + std::to_string(rank) + "; mesh " + parsed.text() + " has " +
             std::to_string(parsed.world_size()) + " ranks");
    *coordinate = parsed.coordinate(rank, axis);
  });
}

int regatta_transport_local(int world_size, const char* options, regatta_transport** ranks) {
  return guarded([&] {
    require(ranks, "regatta_transport_local", "ranks", "room for one handle per rank");
    std::vector<std::unique_ptr<Transport>> made =
        make_local_transports(world_size, transport_options(options, "regatta_transport_local"));
    std::vector<regatta_transport*> handles;
    for (std::unique_ptr<Transport>& transport : made) handles.push_back(hand_out(std::move(transport)));
    std::copy(handles.begin(), handles.end(), ranks);
  });
}

int regatta_transport_mpi(const char* options, regatta_transport** transport) {
  return guarded([&] {
    require(transport, "regatta_transport_mpi", "transport", "where to write the handle");
    *transport = hand_out(make_transport("mpi", transport_options(options, "regatta_transport_mpi")));
  });
}

int regatta_transport_nccl(const char* options, regatta_transport** transport) {
  return guarded([&] {
    require(transport, "regatta_transport_nccl", "transport", "where to write the handle");
    *transport = hand_out(make_transport("nccl", transport_options(options, "regatta_transport_nccl")));
  });
}

int regatta_transport_rank(const regatta_transport* transport, int* rank) {
  return guarded([&] {
    const regatta_transport& handle = transport_of(transport, "regatta_transport_rank");
    require(rank, "regatta_transport_rank", "rank", "where to write it");
    *rank = handle.transport->rank();
  });
}

int regatta_transport_world_size(const regatta_transport* transport, int* world_size) {
  return guarded([&] {
    const regatta_transport& handle = transport_of(transport, "regatta_transport_world_size");
    require(world_size, "regatta_transport_world_size", "world_size", "where to write it");
    *world_size = handle.transport->world_size();
  });
}

int regatta_transport_data_path(const regatta_transport* transport, const char** text) {
  return guarded([&] {
    const regatta_transport& handle = transport_of(transport, "regatta_transport_data_path");
    require(text, "regatta_transport_data_path", "text", "where to write the pointer");
    *text = handle.data_path.c_str();
  });
}

int regatta_transport_abort(regatta_transport* transport, const char* reason) {
  return guarded([&] {
    const regatta_transport& handle = transport_of(transport, "regatta_transport_abort");
    require(reason, "regatta_transport_abort", "reason", "a sentence for the other ranks");
    handle.transport->abort(reason);
  });
}

int regatta_transport_destroy(regatta_transport* transport) {
  return guarded([&] {
    if (transport == nullptr) return;
    regatta_transport& handle = transport_of(transport, "regatta_transport_destroy");
    Handles<regatta_transport>::remove(&handle);
    delete &handle;
  });
}
