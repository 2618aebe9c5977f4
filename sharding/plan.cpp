#include "sharding/plan.h"

#include <numeric>
#include <set>
#include <sstream>
#include <stdexcept>

#include "sharding/dtype.h"

namespace regatta::sharding {
namespace {

std::string text_of(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (std::int64_t extent : shape) {
    if (!text.empty()) text += 'x';
    text += std::to_string(extent);
  }
  return text;
}

bool holds(const std::vector<int>& ranks, int rank) { return std::binary_search(ranks.begin(), ranks.end(), rank); }

// A vector [n] is the matrix 1 x n, so its dim 0 are the columns.
Placement in_matrix_dims(const ParamSpec& param) {
  Placement placement = param.placement;
  for (AxisPlacement& cut : placement.cuts) {
    if (param.shape.size() != 1 || cut.dim == AxisPlacement::flat) continue;
    if (cut.dim == 1)
      throw std::invalid_argument("parameter " + param.name + " has one dim; placement " + placement.text() +
                                  " names dim 1, expected 0");
    cut.dim = 1;
  }
  return placement;
}

// Block rows per index of the first dim: above 1 where blocks count rows of further dims.
std::int64_t row_unit(const ParamSpec& param) {
  std::int64_t rows = 0;
  for (const MatrixShape& block : param.blocks) rows += block.rows;
  return param.shape.size() == 1 ? 1 : rows / param.shape[0];
}

}  // namespace

std::vector<MatrixShape> logical_blocks(const std::string& name, const std::vector<std::int64_t>& shape,
                                        const std::vector<std::int64_t>& block_rows) {
  if (shape.empty()) throw std::invalid_argument("parameter " + name + " has no dims; expected one or more");
  for (std::int64_t extent : shape)
    if (extent < 1)
      throw std::invalid_argument("parameter " + name + " has shape " + text_of(shape) +
                                  "; every extent must be at least 1");
  if (shape.size() == 1 && block_rows.empty()) return {{1, shape[0]}};
  const std::int64_t numel = std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
  if (block_rows.empty()) return {{shape[0], numel / shape[0]}};

  // Blocks may count rows of the first dim by the rest, or (stacked experts) rows of everything but the last dim.
  std::int64_t rows = 0;
  for (std::int64_t r : block_rows) {
    if (r < 1) throw std::invalid_argument("parameter " + name + " has a block of " + std::to_string(r) + " rows");
    rows += r;
  }
  if (shape.size() == 1 || (rows != shape[0] && rows != numel / shape.back()))
    throw std::invalid_argument("parameter " + name + " of shape " + text_of(shape) + " has blocks of " +
                                std::to_string(rows) + " rows in all; expected " + std::to_string(shape[0]));
  std::vector<MatrixShape> blocks;
  for (std::int64_t r : block_rows) blocks.push_back({r, numel / rows});
  return blocks;
}

Plan::Plan(Mesh mesh, std::vector<ParamSpec> params, PlanOptions options)
    : mesh_(std::move(mesh)), params_(std::move(params)), options_(options) {
  check();
  layouts_.resize(mesh_.world_size());
  for (RankLayout& layout : layouts_) layout.params.resize(params_.size());
  if (options_.sharded)
    lay_out_shards();
  else
    lay_out_buckets();
  find_open_lines();
  find_matrices();
}

void Plan::check() const {
  if (params_.empty()) throw std::invalid_argument("there are no parameters to plan for");
  if (options_.bucket_bytes < 1)
    throw std::invalid_argument("bucket_bytes is " + std::to_string(options_.bucket_bytes) + "; expected at least 1");
  std::set<std::string_view> names;
  for (const ParamSpec& param : params_) {
    if (!names.insert(param.name).second) throw std::invalid_argument("parameter " + param.name + " appears twice");
    if (param.views.size() != param.blocks.size())
      throw std::invalid_argument("parameter " + param.name + " has " + std::to_string(param.blocks.size()) +
                                  " blocks and " + std::to_string(param.views.size()) + " views");
    for (const AxisPlacement& cut : param.placement.cuts) {
      if (!options_.sharded && cut.axis == "dp")
        throw std::invalid_argument("parameter " + param.name + " is placed " + param.placement.text() +
                                    "; over dp the engine shards by itself unless the mode is sharded");
      bool known = cut.axis == "dp";
      for (const Axis& axis : mesh_.axes()) known = known || axis.name == cut.axis;
      if (!known)
        throw std::invalid_argument("parameter " + param.name + " is placed over axis " + cut.axis + ", which mesh " +
                                    mesh_.text() + " does not have");
    }
    bool rows_of_blocks = false;
    for (const AxisPlacement& cut : in_matrix_dims(param).cuts) {
      if (cut.dim == AxisPlacement::stacked && rows_of_blocks && row_unit(param) > 1)
        throw std::invalid_argument("parameter " + param.name + " of shape " + text_of(param.shape) + " is placed " +
                                    param.placement.text() + "; once its blocks are cut by rows, " + cut.axis +
                                    ":rows cannot cut between indices of its first dim");
      rows_of_blocks = rows_of_blocks || cut.dim == 0;
    }
  }
}

void Plan::lay_out_buckets() {
  const int dp = mesh_.size("dp");
  std::vector<std::vector<int>> groups;
  for (int rank = 0; rank < mesh_.world_size(); ++rank) {
    RankLayout& layout = layouts_[rank];
    std::vector<std::vector<BlockPart>> parts;
    std::vector<std::vector<LocalBlock>> blocks(params_.size());
    std::vector<std::int64_t> bytes;
    std::vector<int> kinds;
    for (std::size_t p = 0; p < params_.size(); ++p) {
      const ParamSpec& param = params_[p];
      parts.push_back(local_parts(rank, static_cast<int>(p)));
      std::int64_t numel = 0;
      for (std::size_t b = 0; b < param.blocks.size(); ++b) {
        const BlockPart& part = parts[p][b];
        blocks[p].push_back({part.rows.size(), part.cols.size(), param.views[b].kind != View::Kind::elements});
        numel += part.rect_numel();
      }
      bytes.push_back(numel * size_of(param.dtype));
      kinds.push_back(static_cast<int>(param.dtype) * 8 + static_cast<int>(param.grad_dtype));
    }
    // Rank 0 has the largest shards; everybody follows its grouping so that buckets have the same members everywhere.
    if (rank == 0) groups = group_params(bytes, kinds, options_.bucket_bytes);

    const int me = mesh_.coordinate(rank, "dp");
    for (std::size_t b = 0; b < groups.size(); ++b) {
      layout.buckets.push_back(lay_out(groups[b], blocks, dp, options_.cut));
      const Range chunk = layout.buckets[b].chunk(me);
      for (const BucketEntry& entry : layout.buckets[b].entries) {
        layout.params[entry.param] = {static_cast<int>(b), entry.offset, entry.numel};
        std::int64_t begin = entry.offset;
        for (std::size_t k = 0; k < parts[entry.param].size(); ++k) {
          BlockPart part = parts[entry.param][k];
          const Range mine = intersect(chunk, {begin, begin + part.rect_numel()});
          if (!mine.empty()) {
            part.run = {mine.begin - begin, mine.end - begin};
            layout.pieces.push_back({entry.param, static_cast<int>(k), part, static_cast<int>(b), mine.begin});
          }
          begin += part.rect_numel();
        }
      }
    }
  }
}

void Plan::lay_out_shards() {
  std::vector<std::vector<int>> groups;
  for (int rank = 0; rank < mesh_.world_size(); ++rank) {
    RankLayout& layout = layouts_[rank];
    std::vector<std::vector<BlockPart>> parts;
    std::vector<std::vector<LocalBlock>> runs(params_.size());
    std::vector<std::int64_t> bytes;
    std::vector<int> kinds;
    for (std::size_t p = 0; p < params_.size(); ++p) {
      const ParamSpec& param = params_[p];
      parts.push_back(local_parts(rank, static_cast<int>(p)));
      for (const BlockPart& part : parts[p]) runs[p].push_back({1, part.run.size(), false});
      bytes.push_back(0);
      for (const LocalBlock& run : runs[p]) bytes.back() += run.numel() * size_of(param.dtype);
      kinds.push_back(static_cast<int>(param.dtype) * 8 + static_cast<int>(param.grad_dtype));
    }
    if (rank == 0) groups = group_params(bytes, kinds, options_.bucket_bytes);

    for (std::size_t b = 0; b < groups.size(); ++b) {
      layout.buckets.push_back(lay_out(groups[b], runs, 1, Cut::element));
      for (const BucketEntry& entry : layout.buckets[b].entries) {
        layout.params[entry.param] = {static_cast<int>(b), entry.offset, entry.numel};
        std::int64_t begin = entry.offset;
        for (std::size_t k = 0; k < parts[entry.param].size(); ++k) {
          const BlockPart& part = parts[entry.param][k];
          if (!part.run.empty())
            layout.pieces.push_back({entry.param, static_cast<int>(k), part, static_cast<int>(b), begin});
          begin += part.run.size();
        }
      }
    }
  }
}

std::vector<BlockPart> Plan::local_parts(int rank, int param) const {
  return sharding::local_parts(mesh_, in_matrix_dims(params_[param]), rank, params_[param].blocks,
                               row_unit(params_[param]));
}

std::vector<std::vector<int>> Plan::replica_cells(int param) const {
  std::vector<std::string> axes;
  if (!options_.sharded) axes.push_back("dp");
  for (const AxisPlacement& cut : params_[param].placement.cuts) axes.push_back(cut.axis);
  std::vector<std::vector<int>> cells;
  for (int rank = 0; rank < mesh_.world_size(); ++rank) {
    std::vector<int> group = mesh_.group(rank, axes);
    if (group.front() == rank) cells.push_back(std::move(group));
  }
  return cells;
}

bool Plan::primary(int rank, int param) const {
  for (const Axis& axis : mesh_.axes()) {
    const bool sharded = params_[param].placement.find(axis.name) || (!options_.sharded && axis.name == "dp");
    if (!sharded && mesh_.coordinate(rank, axis.name) != 0) return false;
  }
  return true;
}

void Plan::find_open_lines() {
  // Which part of (param, block) each rank holds.
  std::vector<std::vector<std::vector<const BlockPart*>>> held(params_.size());
  for (std::size_t p = 0; p < params_.size(); ++p)
    held[p].assign(params_[p].blocks.size(), std::vector<const BlockPart*>(mesh_.world_size(), nullptr));
  for (int rank = 0; rank < mesh_.world_size(); ++rank)
    for (const Piece& piece : layouts_[rank].pieces) held[piece.param][piece.block][rank] = &piece.part;

  const auto round = [&](std::size_t k) -> std::vector<Share>& {
    if (rounds_.size() <= k) rounds_.resize(k + 1);
    return rounds_[k];
  };
  int turn = 0;
  for (int p = 0; p < static_cast<int>(params_.size()); ++p) {
    const std::vector<std::vector<int>> cells = replica_cells(p);
    for (int b = 0; b < static_cast<int>(params_[p].blocks.size()); ++b) {
      const View& view = params_[p].views[b];
      if (view.passes.empty()) continue;
      for (const std::vector<int>& cell : cells) {
        for (std::size_t pass = 0; pass < view.passes.size(); ++pass) {
          std::vector<LineHolder> holders;
          for (int rank : cell)
            if (const BlockPart* part = held[p][b][rank])
              holders.push_back({rank, touched_lines(*part, view.passes[pass])});
          for (const OpenLines& open : open_lines(holders)) {
            for (const OwnedLines& owned : share_lines(open, turn))
              round(pass).push_back({p, b, static_cast<int>(pass), owned.lines, owned.owner, open.ranks,
                                     view.bytes_per_line, static_cast<std::int64_t>(sizeof(float))});
            ++turn;
          }
        }
        if (!view.block_scale) continue;
        std::vector<int> holders;
        for (int rank : cell)
          if (held[p][b][rank]) holders.push_back(rank);
        if (holders.size() < 2) continue;
        const int owner = holders[turn++ % holders.size()];
        const auto last = static_cast<int>(view.passes.size());
        round(last).push_back({p,
                               b,
                               last,
                               {0, 1},
                               owner,
                               std::move(holders),
                               view.bytes_per_block,
                               static_cast<std::int64_t>(sizeof(double))});
      }
    }
  }
}

void Plan::find_matrices() {
  std::vector<std::vector<const Piece*>> pieces_of(params_.size());  // by parameter, ascending ranks
  std::vector<std::vector<int>> ranks_of(params_.size());
  for (int rank = 0; rank < mesh_.world_size(); ++rank)
    for (const Piece& piece : layouts_[rank].pieces) {
      pieces_of[piece.param].push_back(&piece);
      ranks_of[piece.param].push_back(rank);
    }

  std::vector<MatrixTask> tasks;
  int wave = 0;
  std::size_t wave_begin = 0;
  for (const BucketLayout& bucket : layouts_[0].buckets) {
    for (const BucketEntry& entry : bucket.entries) {
      const ParamSpec& param = params_[entry.param];
      const std::vector<std::vector<int>> cells = replica_cells(entry.param);
      for (int b = 0; b < static_cast<int>(param.blocks.size()); ++b) {
        if (param.views[b].kind != View::Kind::matrix) continue;
        for (const std::vector<int>& cell : cells) {
          MatrixShare share{entry.param, b, wave, 0, {}};
          MatrixTask task{newton_schulz_work(param.blocks[b]), {}, wave};
          for (std::size_t i = 0; i < pieces_of[entry.param].size(); ++i) {
            const int rank = ranks_of[entry.param][i];
            if (pieces_of[entry.param][i]->block != b || !holds(cell, rank)) continue;
            share.holders.push_back({rank, pieces_of[entry.param][i]->part});
            task.holders.push_back(rank);
          }
          matrices_.push_back(std::move(share));
          tasks.push_back(std::move(task));
        }
      }
    }
    if (matrices_.size() - wave_begin < static_cast<std::size_t>(mesh_.world_size())) continue;
    ++wave;
    wave_begin = matrices_.size();
  }
  wave_count_ = matrices_.size() > wave_begin ? wave + 1 : wave;
  const std::vector<int> owners = assign_owners(tasks, mesh_.world_size());
  for (std::size_t i = 0; i < owners.size(); ++i) matrices_[i].owner = owners[i];
}

std::vector<int> Plan::voted_params(int rank) const {
  std::set<int> voted;
  for (const Piece& piece : layouts_[rank].pieces)
    if (primary(rank, piece.param)) voted.insert(piece.param);
  return {voted.begin(), voted.end()};
}

std::int64_t Plan::vote_bytes(int rank) const {
  return vote_flag_bytes + (rank == 0 ? vote_command_bytes : 0) +
         vote_bytes_per_param * static_cast<std::int64_t>(voted_params(rank).size());
}

std::int64_t Plan::figure_bytes(int rank) const {
  return options_.figure_bytes * static_cast<std::int64_t>(voted_params(rank).size());
}

WireBytes Plan::wire_bytes(int rank) const {
  WireBytes bytes;
  const std::int64_t others = mesh_.world_size() - 1;
  bytes.vote = others * (vote_bytes(rank) + figure_bytes(rank));
  if (!options_.sharded) {
    const int dp = mesh_.size("dp"), me = mesh_.coordinate(rank, "dp");
    for (const BucketLayout& bucket : layouts_[rank].buckets) {
      const ParamSpec& first = params_[bucket.entries.front().param];
      const std::int64_t own = bucket.chunk(me).size();
      const DType wire = options_.accumulates_in_f32 ? DType::f32 : first.grad_dtype;
      bytes.reduce_scatter += (bucket.numel - own) * size_of(wire) * options_.reductions_per_step;
      bytes.all_gather += own * (dp - 1) * size_of(first.dtype);
    }
  }
  for (const std::vector<Share>& round : rounds_)
    for (const Share& share : round) {
      if (share.owner == rank)
        bytes.exchange +=
            share.lines.size() * share.answer_bytes * (static_cast<std::int64_t>(share.holders.size()) - 1);
      else if (holds(share.holders, rank))
        bytes.exchange += share.lines.size() * share.bytes_per_line;
    }
  for (const MatrixShare& share : matrices_) {
    const View& view = params_[share.param].views[share.block];
    for (const MatrixShare::Holder& holder : share.holders) {
      if (holder.rank == share.owner) continue;
      if (share.owner == rank) bytes.exchange += bytes_from_owner(view, holder.part);
      if (holder.rank == rank) bytes.exchange += bytes_to_owner(view, holder.part);
    }
  }
  return bytes;
}

std::string Plan::text() const {
  static constexpr const char* cut_names[] = {"element", "row", "matrix"};
  std::ostringstream out;
  out << "mesh " << mesh_.text() << (options_.sharded ? ", sharded by the trainer" : ", sharded by the engine")
      << ", cut " << cut_names[static_cast<int>(options_.cut)] << ", bucket_bytes " << options_.bucket_bytes
      << ", reductions per step " << options_.reductions_per_step << "\n";
  for (const ParamSpec& param : params_) {
    out << "parameter " << param.name << " " << text_of(param.shape) << " " << name_of(param.dtype) << ", gradient "
        << name_of(param.grad_dtype) << ", placed "
        << (param.placement.cuts.empty() ? "replicate" : param.placement.text());
    if (!param.note.empty()) out << ", " << param.note;
    for (std::size_t b = 0; b < param.blocks.size(); ++b) {
      const View& view = param.views[b];
      out << "; block " << param.blocks[b].rows << "x" << param.blocks[b].cols << " sees ";
      if (view.kind == View::Kind::elements) out << "elements";
      if (view.kind == View::Kind::matrix) {
        const View::Traffic& t = view.traffic;
        out << "matrix (" << t.element_bytes << " bytes an element, lines " << t.row_bytes << " " << t.column_bytes
            << " " << t.block_bytes << ", back " << t.row_answer_bytes << " " << t.column_answer_bytes << " "
            << t.block_answer_bytes << ") ";
      }
      for (Line line : view.passes) out << (line == Line::row ? "rows " : "columns ");
      if (view.block_scale) out << "block";
    }
    out << "\n";
  }
  for (std::size_t b = 0; b < bucket_count(); ++b) {
    const BucketLayout& bucket = layouts_[0].buckets[b];
    out << "bucket " << b << " of " << bucket.numel << " elements, chunks end at";
    for (std::size_t k = 1; k < bucket.bounds.size(); ++k) out << " " << bucket.bounds[k];
    out << "; parameters";
    for (const BucketEntry& entry : bucket.entries) out << " " << params_[entry.param].name << "@" << entry.offset;
    out << "\n";
  }
  for (std::size_t k = 0; k < rounds_.size(); ++k) {
    std::int64_t lines = 0, bytes = 0;
    for (const Share& share : rounds_[k]) {
      lines += share.lines.size();
      bytes += share.lines.size() * (share.bytes_per_line + share.answer_bytes) *
               (static_cast<std::int64_t>(share.holders.size()) - 1);
    }
    out << "exchange round " << k << ": " << lines << " open lines in " << rounds_[k].size() << " shares, " << bytes
        << " bytes in all\n";
  }
  for (int wave = 0; wave < wave_count_; ++wave) {
    std::int64_t bytes = 0;
    out << "matrices of wave " << wave << ", owners";
    for (const MatrixShare& share : matrices_) {
      if (share.wave != wave) continue;
      const View& view = params_[share.param].views[share.block];
      out << " " << params_[share.param].name << "." << share.block << "@" << share.owner;
      for (const MatrixShare::Holder& holder : share.holders)
        if (holder.rank != share.owner)
          bytes += bytes_to_owner(view, holder.part) + bytes_from_owner(view, holder.part);
    }
    out << "; " << bytes << " bytes in all\n";
  }
  return out.str();
}

std::uint64_t Plan::fingerprint() const {
  std::uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  const auto mix = [&](std::string_view bytes) {
    for (unsigned char byte : bytes) hash = (hash ^ byte) * 0x100000001b3;
  };
  mix(text());
  for (const RankLayout& layout : layouts_)
    for (const BucketLayout& bucket : layout.buckets)
      for (std::int64_t bound : bucket.bounds) mix(std::to_string(bound) + ",");
  return hash;
}

}  // namespace regatta::sharding
