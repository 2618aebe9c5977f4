#pragma once
// Who the ranks are: a row-major arrangement of ranks over named axes ("dp" outermost by convention, then "tp").

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace regatta::sharding {

struct Axis {
  std::string name;
  int size = 1;
  bool operator==(const Axis&) const = default;
};

class Mesh {
 public:
  /// Axes in order, the last one fastest. An empty list is one rank. Throws std::invalid_argument on a repeated or
  /// empty name or a size below one.
  explicit Mesh(std::vector<Axis> axes = {});
  /// "dp=2,tp=2" -> Mesh. Throws std::invalid_argument with the text and what was expected.
  static Mesh parse(std::string_view text);

  int world_size() const { return world_size_; }
  const std::vector<Axis>& axes() const { return axes_; }
  /// Size of an axis; 1 when the mesh has no such axis.
  int size(std::string_view axis) const;
  /// Coordinate of `rank` on `axis`; 0 when the mesh has no such axis.
  int coordinate(int rank, std::string_view axis) const;
  /// The ranks that differ from `rank` only along `axes`, ascending; unknown axes have size 1.
  std::vector<int> group(int rank, const std::vector<std::string>& axes) const;
  /// "dp=2,tp=2".
  std::string text() const;
  bool operator==(const Mesh&) const = default;

 private:
  std::vector<Axis> axes_;
  int world_size_ = 1;
};

}  // namespace regatta::sharding
