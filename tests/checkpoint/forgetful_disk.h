#pragma once
// A disk that keeps only what was flushed. While it watches a folder, every system call of this program that changes a
// file or a name below it is a point at which the machine may lose power; what a disk might then hold can be looked at
// afterwards, for each of these points.
//
// A file keeps the content of its last flush, a folder the names of its last flush; what came after them may be there,
// may be missing, or may be there in part. The calls are those of the C library, whoever makes them, so that a write
// that goes round checkpoint::SystemCalls is seen as well. Nothing is really flushed, which makes it quick.
//
// One at a time; the program that links forgetful_disk.cpp has its hooks. Any thread may make the calls.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace regatta::testing {

class ForgetfulDisk {
 public:
  /// Watches `root`; all that is there now is on disk.
  explicit ForgetfulDisk(std::string root);
  ~ForgetfulDisk();
  ForgetfulDisk(const ForgetfulDisk&) = delete;
  ForgetfulDisk& operator=(const ForgetfulDisk&) = delete;

  /// Goes with the points from now on; for what has been promised by then.
  void promise(std::int64_t value);

  /// What a disk holds: files by their path below the root, and folders, which end in '/'.
  using Tree = std::map<std::string, std::string>;
  enum class Kind {
    flushed,  ///< nothing that was not flushed
    names,    ///< all names, but of the files' contents only what was flushed
    all,      ///< everything: a program was killed, and the machine went on
    some,     ///< of what was not flushed some, and files in part
  };
  /// Calls body(tree, promise, kind) for all that might be there after losing power at any of the points, `some_each`
  /// of them drawn; the same tree under the same promise once.
  void each_loss(int some_each, const std::function<void(const Tree&, std::int64_t promise, Kind kind)>& body);
  /// How many points there are.
  std::size_t points() const;
  /// What would be left if the power went now.
  Tree now(Kind kind);

  static void make(const Tree& tree, const std::string& root);
  static std::string text_of(const Tree& tree);

  // For the hooks.
  void point();
  void flushed(int descriptor);
  bool watches(const std::string& path) const;

 private:
  using Id = std::uint64_t;  // an inode; held open, so that its number is not given away again
  struct Node {
    bool folder = false;
    std::shared_ptr<const std::string> content;
    std::map<std::string, Id> names;
    bool operator==(const Node&) const = default;
  };
  using Nodes = std::map<Id, Node>;
  struct Point {
    std::shared_ptr<const Nodes> there, on_disk;
    std::int64_t promise = 0;
  };
  Nodes scan();
  Id scan_into(Nodes& nodes, const std::string& path);
  Tree tree_of(const Point& point, Kind kind, std::mt19937_64& random) const;

  std::string root_;
  Id root_id_ = 0;
  std::map<Id, int> held_;
  std::set<Id> folders_;  // of all that were ever seen
  std::shared_ptr<const Nodes> there_;
  std::shared_ptr<Nodes> on_disk_;
  std::int64_t promise_ = 0;
  std::vector<Point> points_;
};

}  // namespace regatta::testing
