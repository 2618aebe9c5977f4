#include "sharding/placement.h"

#include <stdexcept>

namespace regatta::sharding {
namespace {

// Part `index` of the rows of all blocks, one after another, cut `count` ways.
void cut_stacked(std::vector<BlockPart>& parts, std::int64_t unit, int count, int index) {
  std::int64_t rows = 0;
  for (const BlockPart& part : parts) rows += part.rows.size();
  const Range units = chunk(rows / unit, count, index);
  const Range mine{units.begin * unit, units.end * unit};
  std::int64_t above = 0;
  for (BlockPart& part : parts) {
    const Range here = intersect({mine.begin - above, mine.end - above}, {0, part.rows.size()});
    above += part.rows.size();
    part.rows = here.empty() ? Range{part.rows.begin, part.rows.begin}
                             : Range{part.rows.begin + here.begin, part.rows.begin + here.end};
  }
}

}  // namespace

Placement Placement::parse(std::string_view text) {
  Placement placement;
  for (std::string_view rest = text; !rest.empty();) {
    const std::size_t comma = rest.find(',');
    const std::string_view part = rest.substr(0, comma);
    rest = comma == std::string_view::npos ? std::string_view{} : rest.substr(comma + 1);
    const std::size_t colon = part.find(':');
    const std::string_view dim = colon == std::string_view::npos ? std::string_view{} : part.substr(colon + 1);
    AxisPlacement cut{std::string(part.substr(0, colon)), 0};
    if (dim == "0" || dim == "1") {
      cut.dim = dim[0] - '0';
    } else if (dim == "rows") {
      cut.dim = AxisPlacement::stacked;
    } else if (dim == "flat" && cut.axis == "dp") {
      cut.dim = AxisPlacement::flat;
    } else {
      throw std::invalid_argument("placement '" + std::string(text) + "': '" + std::string(part) +
                                  "' is not AXIS:0, AXIS:1, AXIS:rows or dp:flat");
    }
    if (placement.find(cut.axis) != nullptr)
      throw std::invalid_argument("placement '" + std::string(text) + "' names axis " + cut.axis + " twice");
    placement.cuts.push_back(std::move(cut));
  }
  for (std::size_t i = 0; i + 1 < placement.cuts.size(); ++i)
    if (placement.cuts[i].dim == AxisPlacement::flat)
      throw std::invalid_argument("placement '" + std::string(text) + "': dp:flat must come last");
  return placement;
}

const AxisPlacement* Placement::find(std::string_view axis) const {
  for (const AxisPlacement& cut : cuts)
    if (cut.axis == axis) return &cut;
  return nullptr;
}

std::string Placement::text() const {
  std::string text;
  for (const AxisPlacement& cut : cuts) {
    if (!text.empty()) text += ",";
    text += cut.axis + ":";
    text += cut.dim == AxisPlacement::flat      ? "flat"
            : cut.dim == AxisPlacement::stacked ? "rows"
                                                : std::to_string(cut.dim);
  }
  return text;
}

Range chunk(std::int64_t extent, int count, int index) {
  const std::int64_t each = (extent + count - 1) / count;
  return {std::min(extent, each * index), std::min(extent, each * (index + 1))};
}

std::vector<BlockPart> local_parts(const Mesh& mesh, const Placement& placement, int rank,
                                   const std::vector<MatrixShape>& blocks, std::int64_t row_unit) {
  std::vector<BlockPart> parts;
  parts.reserve(blocks.size());
  for (const MatrixShape& block : blocks) parts.push_back({{0, block.rows}, {0, block.cols}, {}});
  for (const AxisPlacement& cut : placement.cuts) {
    if (cut.dim == AxisPlacement::flat) continue;
    const int count = mesh.size(cut.axis), index = mesh.coordinate(rank, cut.axis);
    if (cut.dim == AxisPlacement::stacked) {
      cut_stacked(parts, row_unit, count, index);
      continue;
    }
    for (BlockPart& part : parts) {
      Range& range = cut.dim == 0 ? part.rows : part.cols;
      const Range sub = chunk(range.size(), count, index);
      range = {range.begin + sub.begin, range.begin + sub.end};
    }
  }
  for (BlockPart& part : parts) part.run = {0, part.rect_numel()};
  if (!placement.cuts.empty() && placement.cuts.back().dim == AxisPlacement::flat) {
    const std::string& axis = placement.cuts.back().axis;
    std::int64_t total = 0;
    for (const BlockPart& part : parts) total += part.rect_numel();
    const Range mine = chunk(total, mesh.size(axis), mesh.coordinate(rank, axis));
    std::int64_t offset = 0;
    for (BlockPart& part : parts) {
      const std::int64_t numel = part.rect_numel();
      const Range here = intersect({mine.begin - offset, mine.end - offset}, {0, numel});
      part.run = here.empty() ? Range{0, 0} : here;
      offset += numel;
    }
  }
  return parts;
}

}  // namespace regatta::sharding
