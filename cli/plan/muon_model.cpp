#include "cli/plan/muon_model.h"

#include <algorithm>
#include <map>
#include <tuple>

namespace regatta::cli {
namespace {

struct Matrix {
  std::int64_t numel = 0;
  std::vector<std::pair<int, std::int64_t>> holders;  // rank, elements
};

// Replicas are gathered each by themselves: ranks of one replica share the coordinates of all axes that do not cut.
int replica_of(const sharding::Plan& plan, int rank, int param) {
  int replica = 0;
  for (const sharding::Axis& axis : plan.mesh().axes()) {
    const bool cut = plan.params()[param].placement.find(axis.name) || (!plan.options().sharded && axis.name == "dp");
    if (!cut) replica = replica * axis.size + plan.mesh().coordinate(rank, axis.name);
  }
  return replica;
}

}  // namespace

MatrixGather gather_matrices(const sharding::Plan& plan, std::int64_t payload) {
  const int ranks = plan.mesh().world_size();
  std::map<std::tuple<int, int, int>, Matrix> held;  // by parameter, block, replica
  for (int rank = 0; rank < ranks; ++rank)
    for (const sharding::Piece& piece : plan.layout(rank).pieces) {
      const sharding::ParamSpec& spec = plan.params()[piece.param];
      if (spec.views[piece.block].kind != sharding::View::Kind::lines) continue;
      Matrix& matrix = held[{piece.param, piece.block, replica_of(plan, rank, piece.param)}];
      matrix.numel = spec.blocks[piece.block].numel();
      matrix.holders.emplace_back(rank, piece.part.run.size());
    }
  std::vector<const Matrix*> largest_first;
  for (const auto& [where, matrix] : held) largest_first.push_back(&matrix);
  std::stable_sort(largest_first.begin(), largest_first.end(),
                   [](const Matrix* a, const Matrix* b) { return a->numel > b->numel; });

  MatrixGather gather{std::vector<std::int64_t>(ranks), std::vector<std::int64_t>(ranks),
                      static_cast<std::int64_t>(held.size()), 0};
  std::vector<std::int64_t> load(ranks);
  for (const Matrix* matrix : largest_first) {
    const int owner = std::min_element(matrix->holders.begin(), matrix->holders.end(), [&](auto a, auto b) {
                        return load[a.first] < load[b.first];
                      })->first;
    load[owner] += matrix->numel;
    if (matrix->holders.size() == 1) continue;
    ++gather.open;
    gather.gathered[owner] = std::max(gather.gathered[owner], matrix->numel * payload);
    for (const auto& [rank, numel] : matrix->holders) {
      if (rank == owner) continue;
      gather.sent[rank] += numel * payload;
      gather.sent[owner] += numel * payload;
    }
  }
  return gather;
}

}  // namespace regatta::cli
