#!/usr/bin/env bash
# Installs the Debian packages of third_party/debian.txt that are missing. Run again, it says that all are there.
#
#   scripts/setup.sh           as root, or as a user who may sudo
#   scripts/setup.sh --check   installs nothing; exit 1 when something is missing
#   scripts/setup.sh --cuda    no root and no Debian needed: says what a build with CUDA will find, and puts NCCL,
#                              cuDNN and its frontend's headers into .venv-cuda from PyPI's wheels (0.8 GB) where
#                              they are missing; exit 1 without nvcc
#
# The first two need neither GPU nor CUDA.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

# What cmake/DeguCuda.cmake looks for, in the same places; CUDA's compiler itself comes from NVIDIA's toolkit.
setup_cuda() {
  local nvcc include library version major venv="$DEGU_ROOT/.venv-cuda"
  nvcc="${CUDACXX:-$(PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin:/usr/local/cuda/bin" command -v nvcc || true)}"
  if [[ -z "$nvcc" ]]; then
    echo "setup: CUDA Toolkit: missing; install it, or set CUDACXX or CUDA_HOME" >&2
    return 1
  fi
  version="$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')"
  major="${version%%.*}"
  echo "setup: CUDA Toolkit: $version, $nvcc"

  local toolkit
  toolkit="$(dirname "$(dirname "$(readlink -f "$nvcc")")")"
  find_nccl() {
    local root
    for root in ${NCCL_HOME:+"$NCCL_HOME"} "$toolkit" "$toolkit"/targets/*-linux /usr/local /usr \
                "$venv"/lib/python3*/site-packages/nvidia/nccl; do
      include="$root/include/nccl.h"
      [[ -f "$include" ]] || continue
      for library in "$root"/lib/libnccl.so* "$root"/lib64/libnccl.so* "$root"/lib/*-linux-gnu/libnccl.so*; do
        [[ -f "$library" ]] && return 0
      done
    done
    return 1
  }
  install() {  # NAME WHEEL…
    echo "setup: $1: not found; installing ${*:2} into $venv"
    [[ -x "$venv/bin/python" ]] || python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet "${@:2}"
  }
  if ! find_nccl; then
    install NCCL "nvidia-nccl-cu$major"
    find_nccl || { echo "setup: NCCL: the wheel has no nccl.h and libnccl.so where they were expected" >&2; return 1; }
  fi
  version="$(sed -nE 's/^#define NCCL_(MAJOR|MINOR|PATCH) +([0-9]+).*/\2/p' "$include" | paste -sd .)"
  echo "setup: NCCL: $version, $include, $library"

  find_header() {  # NAME FOLDER…: its folder to `include`
    local folder
    for folder in "${@:2}"; do
      include="$folder"
      [[ -f "$folder/$1" ]] && return 0
    done
    return 1
  }
  local places=(${CUDNN_HOME:+"$CUDNN_HOME/include"} "$toolkit/include" "$toolkit"/targets/*-linux/include
                /usr/local/include /usr/include)
  find_cudnn() { find_header cudnn_graph.h "${places[@]}" "$venv"/lib/python3*/site-packages/nvidia/cudnn/include; }
  find_frontend() { find_header cudnn_frontend.h "${places[@]}" "$venv"/lib/python3*/site-packages/include; }
  if ! find_cudnn; then
    # Its own dependencies are large, and the toolkit's.
    install cuDNN --no-deps "nvidia-cudnn-cu$major"
    find_cudnn || { echo "setup: cuDNN: the wheel has no cudnn_graph.h where it was expected" >&2; return 1; }
  fi
  version="$(sed -nE 's/^#define CUDNN_(MAJOR|MINOR|PATCHLEVEL) +([0-9]+).*/\2/p' "$include/cudnn_version.h" | paste -sd .)"
  echo "setup: cuDNN: $version, $include"
  if ! find_frontend; then
    install "cuDNN's frontend" --no-deps nvidia-cudnn-frontend
    find_frontend || { echo "setup: cuDNN's frontend: the wheel has no cudnn_frontend.h where it was expected" >&2; return 1; }
  fi
  echo "setup: cuDNN's frontend: $include"
  echo "setup: CUTLASS: not used, no code asks for it"
}
if [[ "${1:-}" == --cuda ]]; then
  setup_cuda
  exit
fi

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
