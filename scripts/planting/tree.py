"""The copy of the tree with all bugs in it, built."""
import os
import re
import shutil
import subprocess
import sys

# Read at run time. Internal linkage: sources compiled for other instruction sets keep their own copies. The file that
# REGATTA_PLANTED_REACHED names is mapped by every process of a test, and a byte per bug says that its place was reached.
HEADER = """// Written by scripts/plant-bugs.
#pragma once
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <type_traits>

namespace regatta_planted {
[[maybe_unused]] static unsigned char* map_reached() {
  const char* path = std::getenv("REGATTA_PLANTED_REACHED");
  if (path == nullptr) return nullptr;
  int file = ::open(path, O_RDWR | O_CLOEXEC);
  if (file < 0) return nullptr;
  void* memory = ::mmap(nullptr, COUNT, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  ::close(file);
  return memory == MAP_FAILED ? nullptr : static_cast<unsigned char*>(memory);
}
[[maybe_unused]] static int read_chosen() {
  const char* number = std::getenv("REGATTA_PLANTED_BUG");
  return number == nullptr ? 0 : std::atoi(number);
}
[[maybe_unused]] static bool is_on(int number) {
  static const int chosen = read_chosen();
  static unsigned char* const reached = map_reached();
  if (reached != nullptr) reached[number] = 1;
  return chosen == number;
}
[[maybe_unused]] static constexpr bool planted(int number) { return std::is_constant_evaluated() ? false : is_on(number); }
}  // namespace regatta_planted
#define REGATTA_PLANTED(number) ::regatta_planted::planted(number)
"""


def planted_text(text, bugs):
    """`text` with all of `bugs`, which do not overlap, behind their switches."""
    for bug in sorted(bugs, key=lambda b: -b.at):
        before, after = bug.before, bug.after
        if bug.form == "expression":
            change = f"(REGATTA_PLANTED({bug.number}) ? ({after}) : ({before}))"
        else:
            change = f"if (REGATTA_PLANTED({bug.number})) {{ {after} }} else {{ {before} }}"
        text = text[: bug.at] + change + text[bug.at + len(before):]
    return text


def write_if_changed(path, data, mode=None):
    if not path.exists() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if mode is not None:
        os.chmod(path, mode)


def make(root, build, bugs, jobs):
    """Copies the tracked and new files of the tree into `build`, plants `bugs`, and builds in `build`/build."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root, check=True,
                            capture_output=True, text=True).stdout.split("\0")
    files = {name for name in listed if name and (root / name).is_file()}
    by_file = {}
    for bug in bugs:
        if bug.at is not None and bug.form != "file":
            by_file.setdefault(bug.file, []).append(bug)
    header = build / "planted.h"
    # Room for more bugs, so that one more does not change the header and with it every file.
    write_if_changed(header, HEADER.replace("COUNT", str(max(4096, len(bugs) + 1))).encode())
    for old in build.glob("**/*"):
        relative = old.relative_to(build)
        if relative.parts[0] in ("build", ".deps") or old == header or old.is_dir() or relative.name in ("results.json", "baseline.json"):
            continue
        if str(relative) not in files:
            old.unlink()
    for name in files:
        data = (root / name).read_bytes()
        if name in by_file:
            depth = "../" * name.count("/")
            data = (f'#include "{depth}planted.h"\n' + planted_text(data.decode(), by_file[name])).encode()
        write_if_changed(build / name, data, (root / name).stat().st_mode)
    if (root / ".deps").is_dir() and not (build / ".deps").exists():
        shutil.copytree(root / ".deps", build / ".deps")

    def call(command, log):
        with open(build / log, "w") as out:
            if subprocess.run(command, stdout=out, stderr=subprocess.STDOUT).returncode != 0:
                return (build / log).read_text()
        return None

    print(f"Building {sum(len(b) for b in by_file.values())} bugs in {len(by_file)} files (logs: {build.name}/*.log) ...", file=sys.stderr)
    # The kernels' sources run on the emulator; what the CUDA compiler makes of them has no switch.
    failed = call(["cmake", "-S", build, "-B", build / "build", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DREGATTA_WITH_CUDA=OFF",
                   "-DREGATTA_BUILD_BENCH=OFF", "-DREGATTA_BUILD_TESTS=ON"], "configure.log")
    if failed:
        raise SystemExit("plant-bugs: cmake failed:\n" + failed)
    failed = call(["cmake", "--build", build / "build", "-j", str(jobs), "--", "-k", "0"], "build.log")
    if failed:
        raise SystemExit("plant-bugs: the build failed; " + blame(failed, build, by_file))


def blame(log, build, by_file):
    """Which bugs the compiler's errors are about."""
    lines = log.splitlines()
    named = []
    for name, bugs in by_file.items():
        text = (build / name).read_text()
        for bug in bugs:
            at = text.index(f"REGATTA_PLANTED({bug.number})")
            first = text.count("\n", 0, at) + 1
            last = first + bug.before.count("\n") + bug.after.count("\n")
            for line in lines:
                match = re.search(rf"{re.escape(name)}:(\d+):\d+: (error.*)", line)
                if match and first <= int(match[1]) <= last:
                    named.append(f"{bug.name}: {match[2]}")
                    break
    if named:
        return "bugs that do not compile:\n  " + "\n  ".join(named)
    return "\n".join(line for line in lines if "error" in line)[:4000]
