# shellcheck shell=bash
# Sourced by the scripts beside it; no output, no side effects. Needs: set -euo pipefail.

root_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly root_dir

# What a Debian 12 needs to build and mount, to test, and to compare in benchmarks.
readonly build_packages=(g++ meson ninja-build pkg-config libfuse3-dev fuse3 liburing-dev libboost-dev
  libspdlog-dev libfmt-dev nlohmann-json3-dev xfslibs-dev libtirpc-dev rpcsvc-proto)
# shellcheck disable=SC2034
readonly test_packages=("${build_packages[@]}" libgtest-dev libgmock-dev clang-14 libclang-rt-14-dev clang-format-14
  ccache git python3 shellcheck acl attr jq e2fsprogs xfsprogs btrfs-progs util-linux procps rpcbind
  nfs-common)
# shellcheck disable=SC2034
readonly demo_packages=("${build_packages[@]}" git make gcc libc6-dev sqlite3 rsync jq python3
  util-linux bsdextrautils)
# shellcheck disable=SC2034
readonly bench_packages=("${build_packages[@]}" libgtest-dev bindfs mergerfs python3 git make gcc)

say() { printf '%s\n' "$*"; }
die() {
  printf 'scripts/%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# The named packages that are not installed.
missing_packages() {
  local package
  for package in "$@"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
      printf '%s\n' "$package"
  done
}

# Installs what is missing; quick when nothing is. A machine that never ran apt-get update has no
# lists, one that ran it long ago has stale ones: both show as a failed first try.
need_packages() {
  local missing
  mapfile -t missing < <(missing_packages "$@")
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null || die "needs these Debian packages: ${missing[*]}"
  ((EUID == 0)) || die "needs root to install: ${missing[*]}"
  say "installing ${missing[*]}"
  local -a install=(apt-get install -y -q --no-install-recommends
    -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300)
  export DEBIAN_FRONTEND=noninteractive
  if ! "${install[@]}" "${missing[@]}" >/dev/null 2>&1; then
    apt-get update -q >/dev/null || die "apt-get update failed"
    "${install[@]}" "${missing[@]}" >/dev/null || die "could not install ${missing[*]}"
  fi
}

need_fuse() {
  [[ -c /dev/fuse ]] || die "/dev/fuse is missing: load the fuse module, or give the container the device"
}

# meson_setup DIR OPTION...: configures once, and again only for other options (which are kept in
# DIR: telling meson the same again would cost seconds).
meson_setup() {
  local dir=$1 asked
  shift
  asked="${CXX:-} $*"
  if [[ -f $dir/build.ninja && $(cat "$dir/asked" 2>/dev/null) == "$asked" ]]; then return 0; fi
  if [[ -f $dir/build.ninja ]]; then
    meson configure "$dir" "$@" >/dev/null
  else
    meson setup "$dir" "$root_dir" "$@" >/dev/null || {
      tail -n 30 "$dir/meson-logs/meson-log.txt" >&2
      die "meson setup $dir failed"
    }
  fi
  printf '%s\n' "$asked" >"$dir/asked"
}

# build DIR TARGET...: says nothing but what went wrong.
build() {
  local output
  output=$(ninja --quiet -C "$@" 2>&1) || {
    printf '%s\n' "$output" >&2
    die "the build failed"
  }
}

# Mount points below a directory, deepest first.
mounts_below() {
  awk -v top="$1/" '{ gsub(/\\040/, " ", $5); if (index($5 "/", top) == 1) print $5 }' \
    /proc/self/mountinfo | tac
}

# Ends every mount below a directory of ours and removes the directory.
clean_up_dir() {
  local dir=$1 point
  [[ -n $dir && -d $dir ]] || return 0
  while read -r point; do
    fusermount3 -u -q -- "$point" 2>/dev/null || umount -l -- "$point" 2>/dev/null || true
  done < <(mounts_below "$dir")
  rm -rf --one-file-system -- "$dir"
}
