#!/usr/bin/env bash
# A virtual environment with llama.cpp (llama-cpp-python, built from its source package for this processor) and
# the package that writes its files, for scripts/bench/decode_vs_llamacpp.py. Nothing else in degu needs it.
#
#   scripts/llamacpp_venv.sh [FOLDER]      default: .venv-llamacpp in the checkout; about 0.3 GB, 5 minutes
#
# Run again, it only checks. The last line on standard output is the environment's Python:
#   $(scripts/llamacpp_venv.sh | tail -n 1) scripts/bench/decode_vs_llamacpp.py ...
set -euo pipefail

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${1:-${DEGU_LLAMACPP_VENV:-$repo/.venv-llamacpp}}"
spec="${DEGU_LLAMACPP_SPEC:-llama-cpp-python}"
python="$venv/bin/python"

imports() {
  "$python" -c 'import gguf, llama_cpp, numpy, yaml; llama_cpp.llama_print_system_info()' 2>/dev/null
}

if [[ -x "$python" ]] && imports; then
  echo "llamacpp_venv: $venv is complete" >&2
  echo "$python"
  exit 0
fi

echo "llamacpp_venv: making $venv (llama.cpp is compiled: about 5 minutes on two cores)" >&2
[[ -x "$python" ]] || /usr/bin/python3 -m venv "$venv"
"$python" -m pip install --disable-pip-version-check --progress-bar off --quiet "$spec" gguf numpy pyyaml

if ! imports; then
  echo "llamacpp_venv: $venv is installed but does not import; the reason:" >&2
  "$python" -c 'import gguf, llama_cpp, numpy, yaml' >&2 || true
  exit 1
fi
"$python" -c 'import llama_cpp; print("llamacpp_venv: llama-cpp-python", llama_cpp.__version__)' >&2
echo "$python"
