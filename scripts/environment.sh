# Sourced by the other scripts: what they need from a shell that may be root, in a chroot, without a locale or a home.

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
build="$repository/build"
cd "$repository"

export LC_ALL="${LC_ALL:-C.UTF-8}"
if [[ -z "${HOME:-}" || ! -w "${HOME:-/nonexistent}" ]]; then
  mkdir -p "$build/home"
  export HOME="$build/home"
fi

# Before OMP_NUM_THREADS is set: nproc would answer with it.
cores="$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 1)"

# Open MPI refuses root and more ranks than cores unless told; both are normal for tests and containers.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
# Where /sys is not mounted (a plain chroot), hwloc would say so once per process; nothing here depends on it.
export HWLOC_HIDE_ERRORS="${HWLOC_HIDE_ERRORS:-2}"
# One compute thread per rank unless a program asks for more: ranks share the cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OPENBLAS_NUM_THREADS="${OPENBLAS_NUM_THREADS:-1}"


say() { printf '%s\n' "$*" >&2; }
die() {
  say "${0##*/}: $*"
  exit 1
}

# A file that includes LibTorch takes 1.2 GiB to compile, so memory bounds the jobs as well.
build_jobs() {
  local kib
  kib="$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo 2>/dev/null || true)"
  local by_memory=$((${kib:-4000000} / 1500000))
  ((by_memory < 1)) && by_memory=1
  echo $((cores < by_memory ? cores : by_memory))
}

# Configures and builds into build/; arguments go to cmake's configuration.
configure_and_build() {
  local generator=()
  [[ -f "$build/CMakeCache.txt" ]] || generator=(-G Ninja)
  say "Configuring (log: build/configure.log) ..."
  mkdir -p "$build"
  if ! cmake -S . -B "$build" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release "$@" >"$build/configure.log" 2>&1; then
    cat "$build/configure.log" >&2
    die "configuration failed"
  fi
  sed -n '/^-- Regatta /,/^--/p' "$build/configure.log" | grep -v '^-- Configuring' >&2 || true
  say "Building with $(build_jobs) jobs ..."
  cmake --build "$build" -j "$(build_jobs)" >&2 || die "the build failed"
}
