#pragma once
// How ranks that run on one host see each other's memory. A rank creates a piece, passes its handle to the others as
// text, they open it, and when all have, the handle is retired; the memory lives on until the last owner lets go.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace regatta {

class MemorySharing {
 public:
  struct Piece {
    std::byte* data = nullptr;
    std::shared_ptr<void> owner;  ///< the memory is shared by all ranks that opened it
    std::string handle;           ///< empty in what open() returns
  };

  virtual ~MemorySharing() = default;
  /// Zeroed memory, aligned to 64 bytes or more. Throws Error(device) when there is not enough.
  virtual Piece create(std::int64_t bytes) = 0;
  /// Throws Error(transport) when it cannot be reached.
  virtual Piece open(const std::string& handle, std::int64_t bytes) = 0;
  /// Called by the rank that created the piece, once all have opened it (or it was given up).
  virtual void retire(const std::string& handle) noexcept = 0;
};

/// Zeroed private memory, aligned to 64 bytes; large pieces to 2 MiB with huge pages asked for. Throws Error(device).
std::shared_ptr<void> private_memory(std::int64_t bytes);

}  // namespace regatta
