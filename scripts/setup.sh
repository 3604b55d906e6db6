#!/usr/bin/env bash
# Installs the Debian packages of third_party/debian.txt that are missing. Run again, it says that all are there.
#
#   scripts/setup.sh           as root, or as a user who may sudo
#   scripts/setup.sh --check   installs nothing; exit 1 when something is missing
#
# Nothing here needs a GPU or CUDA.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

mapfile -t wanted < <(grep -v '^#' "$DEGU_ROOT/third_party/debian.txt")
if ! command -v dpkg-query >/dev/null; then
  echo "setup: this is no Debian system; install the counterparts of: ${wanted[*]}" >&2
  echo "setup: then build with cmake --preset release, which names whatever it cannot find" >&2
  exit 1
fi

missing=()
for package in "${wanted[@]}"; do
  status="$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)"
  [[ "$status" == installed ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  echo "setup: all ${#wanted[@]} packages are there"
  exit 0
fi
echo "setup: missing: ${missing[*]}"
[[ "${1:-}" == --check ]] && exit 1

as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    echo "setup: run as root, or install sudo: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -q
# Kept on the command line, for sudo drops the environment.
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
echo "setup: installed ${#missing[@]} packages"
