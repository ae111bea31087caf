#!/bin/sh
# Fetches the servers that tests need into .servers/: Debian's packages, unpacked and not installed, so that nothing is started. Newer
# and older ones than this machine's own come from other suites of the same mirror. What cannot be had is left out, and said.
set -u
cd "$(dirname "$0")/.." || exit 1
mkdir -p .servers/apt/lists/partial .servers/apt/cache/archives/partial
here=$(pwd)/.servers
mirror=$(apt-get indextargets --no-release-info --format '$(REPO_URI)' 2>/dev/null | grep '/debian/$' | head -n 1)
keys=/usr/share/keyrings/debian-archive-keyring.gpg

options() {
  printf ' -o %s' "Dir::Etc::sourcelist=$here/apt/$1.list" Dir::Etc::sourceparts=- "Dir::State::lists=$here/apt/lists" \
    "Dir::Cache=$here/apt/cache" APT::Sandbox::User=root
}

# fetch PROGRAM PACKAGE SUITE...: from the first suite whose program runs here.
fetch() {
  program=$1 package=$2
  shift 2
  for suite; do
    place=$here/$program-$suite
    [ -x "$place/usr/bin/$program" ] && return
    echo "deb [signed-by=$keys] $mirror $suite main" >"$here/apt/$suite.list"
    set_up=$(options "$suite")
    # shellcheck disable=SC2086
    rm -rf "$here/apt/new" && mkdir -p "$here/apt/new" "$place" && (cd "$here/apt/new" &&
      apt-get $set_up update -qq && apt-get $set_up download -qq "$package") >/dev/null 2>&1 &&
      dpkg -x "$here"/apt/new/*.deb "$place" && "$place/usr/bin/$program" --version >/dev/null 2>&1 &&
      echo "$program: $("$place/usr/bin/$program" --version | head -n 1)" && return
    rm -rf "$place"
  done
  echo "$program: none to be had" >&2
}

if [ -z "$mirror" ] || ! command -v dpkg >/dev/null; then
  echo "These come from Debian's packages, and this machine has none: install etcd (and consul) yourself." >&2
  exit 1
fi
fetch etcd etcd-server testing trixie bookworm
fetch consul consul bullseye
rm -rf "$here/apt"
