#include "runtime/checkpoint/checkpoint_folder.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>

#include "runtime/error.h"

namespace regatta::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view prefix = "step-";

/// -1 for other names.
std::int64_t step_of(const std::string& name) {
  if (!name.starts_with(prefix)) return -1;
  std::int64_t step = -1;
  const char* end = name.data() + name.size();
  const auto [stopped, error] = std::from_chars(name.data() + prefix.size(), end, step);
  return error == std::errc() && stopped == end && folder_name(step) == name ? step : -1;
}

}  // namespace

std::string folder_name(std::int64_t step) {
  char text[40];
  std::snprintf(text, sizeof text, "step-%08lld", static_cast<long long>(step));
  return text;
}

std::vector<Listed> list_checkpoints(const std::string& folder) {
  std::vector<Listed> found;
  std::error_code failed;
  for (fs::directory_iterator entry(folder, failed), end; !failed && entry != end; entry.increment(failed)) {
    const std::int64_t step = step_of(entry->path().filename().string());
    if (std::error_code no_folder; step >= 0 && entry->is_directory(no_folder))
      found.push_back({step, entry->path().string()});
  }
  std::sort(found.begin(), found.end(), [](const Listed& a, const Listed& b) { return a.step < b.step; });
  return found;
}

void point_at(SystemCalls& calls, const std::string& folder, std::int64_t step) {
  const std::string latest = (fs::path(folder) / "latest").string();
  write_file(calls, latest + ".part", folder_name(step) + "\n");
  rename(calls, latest + ".part", latest);
}

void prune(SystemCalls& calls, const std::string& folder, std::int64_t step, int keep_last, std::int64_t keep_every) {
  if (keep_last <= 0) return;
  std::vector<Listed> all = list_checkpoints(folder);
  std::erase_if(all, [&](const Listed& each) { return each.step > step; });
  const std::size_t old = all.size() - std::min(all.size(), static_cast<std::size_t>(keep_last));
  for (std::size_t i = 0; i < old; ++i) {
    if (keep_every > 0 && all[i].step % keep_every == 0) continue;
    // Renamed first, so that a kill in the middle leaves no half of a checkpoint under its name.
    const std::string dying = all[i].path + ".part";
    rename(calls, all[i].path, dying);
    std::error_code failed;
    fs::remove_all(dying, failed);
    if (failed) throw Error(Code::checkpoint, dying + " cannot be removed: " + failed.message());
  }
}

void remove_leftovers(const std::string& folder) {
  std::error_code failed;
  std::vector<fs::path> leftovers;
  for (fs::directory_iterator entry(folder, failed), end; !failed && entry != end; entry.increment(failed))
    if (entry->path().extension() == ".part") leftovers.push_back(entry->path());
  for (const fs::path& path : leftovers) {
    fs::remove_all(path, failed);
    if (failed) throw Error(Code::checkpoint, path.string() + " cannot be removed: " + failed.message());
  }
}

}  // namespace regatta::checkpoint
