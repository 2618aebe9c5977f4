#include "sharding/mesh.h"

#include <algorithm>
#include <charconv>
#include <set>
#include <stdexcept>

namespace regatta::sharding {

Mesh::Mesh(std::vector<Axis> axes) : axes_(std::move(axes)) {
  std::set<std::string_view> names;
  for (const Axis& axis : axes_) {
    if (axis.name.empty()) throw std::invalid_argument("a mesh axis has no name; write it as dp=2,tp=2");
    if (axis.size < 1)
      throw std::invalid_argument("mesh axis " + axis.name + " has size " + std::to_string(axis.size) +
                                  "; expected at least 1");
    if (!names.insert(axis.name).second) throw std::invalid_argument("mesh axis " + axis.name + " is named twice");
    if (world_size_ > (1 << 24) / axis.size)
      throw std::invalid_argument("mesh " + text() + " has more ranks than 2^24");
    world_size_ *= axis.size;
  }
}

Mesh Mesh::parse(std::string_view text) {
  const auto wrong = [&](std::string_view part) {
    return std::invalid_argument("mesh '" + std::string(text) + "': '" + std::string(part) +
                                 "' is not NAME=SIZE; expected for example dp=2 or dp=2,tp=2");
  };
  std::vector<Axis> axes;
  for (std::string_view rest = text; !rest.empty();) {
    const std::size_t comma = rest.find(',');
    const std::string_view part = rest.substr(0, comma);
    rest = comma == std::string_view::npos ? std::string_view{} : rest.substr(comma + 1);
    const std::size_t equals = part.find('=');
    if (equals == std::string_view::npos || equals == 0) throw wrong(part);
    Axis axis{std::string(part.substr(0, equals)), 0};
    const std::string_view number = part.substr(equals + 1);
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), axis.size);
    if (error != std::errc{} || end != number.data() + number.size()) throw wrong(part);
    axes.push_back(std::move(axis));
  }
  return Mesh(std::move(axes));
}

int Mesh::size(std::string_view axis) const {
  for (const Axis& a : axes_)
    if (a.name == axis) return a.size;
  return 1;
}

int Mesh::coordinate(int rank, std::string_view axis) const {
  int coordinate = 0;
  for (auto a = axes_.rbegin(); a != axes_.rend(); ++a) {
    coordinate = rank % a->size;
    rank /= a->size;
    if (a->name == axis) return coordinate;
  }
  return 0;
}

std::vector<int> Mesh::group(int rank, const std::vector<std::string>& axes) const {
  std::vector<int> members{0};
  int stride = world_size_;
  for (const Axis& axis : axes_) {  // outermost first keeps the list ascending
    stride /= axis.size;
    const bool free = std::find(axes.begin(), axes.end(), axis.name) != axes.end();
    const int fixed = coordinate(rank, axis.name);
    std::vector<int> next;
    for (int base : members)
      for (int i = free ? 0 : fixed; i < (free ? axis.size : fixed + 1); ++i) next.push_back(base + i * stride);
    members = std::move(next);
  }
  return members;
}

std::string Mesh::text() const {
  std::string text;
  for (const Axis& axis : axes_) {
    if (!text.empty()) text += ',';
    text += axis.name + "=" + std::to_string(axis.size);
  }
  return text.empty() ? "1" : text;
}

}  // namespace regatta::sharding
