#include "tests/checkpoint/forgetful_disk.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <mutex>
#include <set>
#include <stdexcept>

namespace regatta::testing {
namespace {

namespace fs = std::filesystem;

ForgetfulDisk* watching = nullptr;
std::recursive_mutex mutex;
thread_local bool inside = false;  // a scan makes calls of its own

}  // namespace

ForgetfulDisk::ForgetfulDisk(std::string root) : root_(fs::canonical(root).string()) {
  const std::lock_guard lock(mutex);
  if (watching != nullptr) throw std::logic_error("there is another forgetful disk");
  there_ = std::make_shared<const Nodes>(scan());
  on_disk_ = std::make_shared<Nodes>(*there_);
  points_.push_back({there_, on_disk_, promise_});
  watching = this;
}

ForgetfulDisk::~ForgetfulDisk() {
  const std::lock_guard lock(mutex);
  watching = nullptr;
  for (const auto& [id, descriptor] : held_) ::close(descriptor);
}

bool ForgetfulDisk::watches(const std::string& path) const { return path == root_ || path.starts_with(root_ + "/"); }

ForgetfulDisk::Id ForgetfulDisk::scan_into(Nodes& nodes, const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (descriptor < 0) return 0;  // gone meanwhile
  struct stat facts {};
  ::fstat(descriptor, &facts);
  const Id id = facts.st_ino;
  Node node;
  node.folder = S_ISDIR(facts.st_mode);
  if (node.folder) {
    folders_.insert(id);
    if (DIR* folder = ::opendir(path.c_str())) {
      while (const dirent* entry = ::readdir(folder)) {
        const std::string name = entry->d_name;
        if (name == "." || name == "..") continue;
        if (const Id below = scan_into(nodes, path + "/" + name); below != 0) node.names[name] = below;
      }
      ::closedir(folder);
    }
  } else {
    std::string text(static_cast<std::size_t>(facts.st_size), '\0');
    const ssize_t got = ::pread(descriptor, text.data(), text.size(), 0);
    text.resize(got < 0 ? 0 : static_cast<std::size_t>(got));
    // The same content as before is the same pointer, so that points are cheap to compare.
    const auto before = there_ ? there_->find(id) : Nodes::const_iterator{};
    if (there_ && before != there_->end() && before->second.content && *before->second.content == text)
      node.content = before->second.content;
    else
      node.content = std::make_shared<const std::string>(std::move(text));
  }
  if (held_.count(id) > 0)
    ::close(descriptor);
  else
    held_[id] = descriptor;
  nodes[id] = std::move(node);
  return id;
}

ForgetfulDisk::Nodes ForgetfulDisk::scan() {
  Nodes nodes;
  root_id_ = scan_into(nodes, root_);
  return nodes;
}

void ForgetfulDisk::point() {
  Nodes nodes = scan();
  if (nodes != *there_) there_ = std::make_shared<const Nodes>(std::move(nodes));
  const Point& last = points_.back();
  if (last.there != there_ || last.on_disk != on_disk_ || last.promise != promise_)
    points_.push_back({there_, on_disk_, promise_});
}

void ForgetfulDisk::flushed(int descriptor) {
  point();
  struct stat facts {};
  ::fstat(descriptor, &facts);
  const auto node = there_->find(facts.st_ino);
  if (node == there_->end()) return;
  on_disk_ = std::make_shared<Nodes>(*on_disk_);
  (*on_disk_)[node->first] = node->second;
  point();
}

void ForgetfulDisk::promise(std::int64_t value) {
  const std::lock_guard lock(mutex);
  promise_ = value;
  point();
}

std::size_t ForgetfulDisk::points() const {
  const std::lock_guard lock(mutex);
  return points_.size();
}

ForgetfulDisk::Tree ForgetfulDisk::now(Kind kind) {
  const std::lock_guard lock(mutex);
  point();
  std::mt19937_64 random(1);
  return tree_of(points_.back(), kind, random);
}

ForgetfulDisk::Tree ForgetfulDisk::tree_of(const Point& point, Kind kind, std::mt19937_64& random) const {
  Tree tree;
  const std::string nothing;
  const auto in = [](const Nodes& nodes, Id id) {
    const auto found = nodes.find(id);
    return found == nodes.end() ? nullptr : &found->second;
  };
  const std::function<void(Id, const std::string&)> add = [&](Id id, const std::string& path) {
    const Node* there = in(*point.there, id);
    const Node* on_disk = in(*point.on_disk, id);
    if (folders_.count(id) == 0) {
      const std::string& kept = on_disk != nullptr ? *on_disk->content : nothing;
      const std::string& meant = there != nullptr ? *there->content : kept;
      std::string text = kind == Kind::all ? meant : kept;
      if (kind == Kind::some && meant != kept) {
        const auto choice = random() % 3;
        if (choice == 0) text = meant;
        if (choice == 1) text = meant.substr(0, random() % (meant.size() + 1));
      }
      tree[path] = std::move(text);
      return;
    }
    if (!path.empty()) tree[path + "/"] = "";
    const std::map<std::string, Id> none;
    const auto& kept = on_disk != nullptr ? on_disk->names : none;
    const auto& meant = there != nullptr ? there->names : none;
    std::set<std::string> names;
    for (const auto& [name, below] : kept) names.insert(name);
    for (const auto& [name, below] : meant) names.insert(name);
    for (const std::string& name : names) {
      const auto id_in = [&](const std::map<std::string, Id>& of) {
        const auto found = of.find(name);
        return found == of.end() ? Id{0} : found->second;
      };
      const bool as_meant = kind == Kind::all || kind == Kind::names || (kind == Kind::some && random() % 2 == 0);
      if (const Id below = id_in(as_meant ? meant : kept); below != 0)
        add(below, path.empty() ? name : path + "/" + name);
    }
  };
  add(root_id_, "");
  return tree;
}

void ForgetfulDisk::each_loss(int some_each, const std::function<void(const Tree&, std::int64_t, Kind)>& body) {
  const std::lock_guard lock(mutex);
  inside = true;
  std::mt19937_64 random(20);
  std::set<std::pair<std::int64_t, std::string>> seen;
  for (const Point& point : points_) {
    const auto show = [&](Kind kind) {
      const Tree tree = tree_of(point, kind, random);
      if (seen.emplace(point.promise, text_of(tree)).second) body(tree, point.promise, kind);
    };
    for (const Kind kind : {Kind::flushed, Kind::names, Kind::all}) show(kind);
    for (int i = 0; i < some_each; ++i) show(Kind::some);
  }
  inside = false;
}

void ForgetfulDisk::make(const Tree& tree, const std::string& root) {
  fs::remove_all(root);
  fs::create_directories(root);
  for (const auto& [path, text] : tree) {
    if (path.ends_with("/"))
      fs::create_directory(root + "/" + path);
    else
      std::ofstream(root + "/" + path, std::ios::binary) << text;
  }
}

std::string ForgetfulDisk::text_of(const Tree& tree) {
  std::string text;
  for (const auto& [path, content] : tree) text += path + "\n" + std::to_string(content.size()) + " " + content + "\n";
  return text;
}

namespace {

std::string path_of(int descriptor) {
  char text[4096];
  const ssize_t length = ::readlink(("/proc/self/fd/" + std::to_string(descriptor)).c_str(), text, sizeof text);
  return length < 0 ? "" : std::string(text, static_cast<std::size_t>(length));
}

std::string absolute(const char* path) {
  std::error_code failed;
  const fs::path full = fs::absolute(path, failed).lexically_normal();
  const fs::path parent = fs::canonical(full.parent_path(), failed);
  return failed ? full.string() : (parent / full.filename()).string();
}

/// Whether a call on this path (or descriptor) is one to look at.
template <class Path>
bool of_interest(const Path& path) {
  return watching != nullptr && !inside && watching->watches(path());
}

/// Makes the call between two points.
template <class Call>
auto watched(const Call& call) {
  const std::lock_guard lock(mutex);
  inside = true;
  if (watching != nullptr) watching->point();
  const auto result = call();
  const int number = errno;
  if (watching != nullptr) watching->point();
  inside = false;
  errno = number;
  return result;
}

template <class Function>
Function* real(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

int flush(int descriptor) {
  if (!of_interest([&] { return path_of(descriptor); })) return 0;
  const std::lock_guard lock(mutex);
  inside = true;
  if (watching != nullptr) watching->flushed(descriptor);
  inside = false;
  return 0;
}

}  // namespace
}  // namespace regatta::testing

using namespace regatta::testing;

// The C library's own names: the linker takes these first, for this program and the libraries it loads.
extern "C" {

ssize_t write(int descriptor, const void* data, size_t bytes) {
  static auto* call = real<ssize_t(int, const void*, size_t)>("write");
  if (!of_interest([&] { return path_of(descriptor); })) return call(descriptor, data, bytes);
  return watched([&] { return call(descriptor, data, bytes); });
}

int fsync(int descriptor) { return flush(descriptor); }

int fdatasync(int descriptor) { return flush(descriptor); }

int rename(const char* from, const char* to) noexcept {
  static auto* call = real<int(const char*, const char*)>("rename");
  if (!of_interest([&] { return absolute(to); })) return call(from, to);
  return watched([&] { return call(from, to); });
}

int mkdir(const char* path, mode_t mode) noexcept {
  static auto* call = real<int(const char*, mode_t)>("mkdir");
  if (!of_interest([&] { return absolute(path); })) return call(path, mode);
  return watched([&] { return call(path, mode); });
}

int unlink(const char* path) noexcept {
  static auto* call = real<int(const char*)>("unlink");
  if (!of_interest([&] { return absolute(path); })) return call(path);
  return watched([&] { return call(path); });
}

int remove(const char* path) noexcept {
  static auto* call = real<int(const char*)>("remove");
  if (!of_interest([&] { return absolute(path); })) return call(path);
  return watched([&] { return call(path); });
}

int unlinkat(int folder, const char* path, int flags) noexcept {
  static auto* call = real<int(int, const char*, int)>("unlinkat");
  const auto full = [&] {
    return folder == AT_FDCWD || path[0] == '/' ? absolute(path) : path_of(folder) + "/" + path;
  };
  if (!of_interest(full)) return call(folder, path, flags);
  return watched([&] { return call(folder, path, flags); });
}

}  // extern "C"
