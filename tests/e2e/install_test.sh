#!/usr/bin/env bash
# Installs a build, moves the prefix, builds a user's project against it and runs both binaries.
#   install_test.sh BUILD_FOLDER
set -euo pipefail
build="$1"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

cmake --install "$build" --prefix "$work/first" >"$work/install.log" || { cat "$work/install.log"; exit 1; }
mv "$work/first" "$work/moved"
if grep -rIl -e "$work/first" -e "$build" "$work/moved"; then
  echo "install: the files above name the build or the old prefix"
  exit 1
fi
version="$("$work/moved/bin/degu" --version)"
[[ "$version" == degu\ [0-9]* ]] || { echo "install: --version said: $version"; exit 1; }

cmake -S "$here/consumer" -B "$work/build" -G Ninja -DCMAKE_PREFIX_PATH="$work/moved" -DCMAKE_BUILD_TYPE=Release
cmake --build "$work/build"
said="$("$work/build/consumer")"
# 1000*96 + 2 blocks of (4*96*96 + 2*96 + 3*96*256) + 96
[[ "$said" == "parameters 317664, last 81" ]] || { echo "install: the consumer said: $said"; exit 1; }
echo "install: $version and a consumer of it work"
