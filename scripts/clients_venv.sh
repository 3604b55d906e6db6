#!/usr/bin/env bash
# A virtual environment with clients that others wrote, for the checks in scripts/clients/: the openai package,
# and lm-evaluation-harness with the transformers package that reads exported tokenizers. No PyTorch.
#
#   scripts/clients_venv.sh [FOLDER]      default: .venv-clients in the checkout; about 1 GB
#
# Run again, it only checks. The last line on standard output is the environment's Python.
set -euo pipefail

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${1:-${DEGU_CLIENTS_VENV:-$repo/.venv-clients}}"
python="$venv/bin/python"

imports() { "$python" -c 'import h5py, openai, lm_eval, transformers, sentencepiece, google.protobuf' 2>/dev/null; }

if [[ ! -x "$python" ]] || ! imports; then
  echo "clients_venv: making $venv (some minutes)" >&2
  [[ -x "$python" ]] || /usr/bin/python3 -m venv "$venv"
  "$python" -m pip install --disable-pip-version-check --progress-bar off --quiet \
    "${DEGU_OPENAI_SPEC:-openai}" "${DEGU_LM_EVAL_SPEC:-lm-eval[api]}" transformers sentencepiece protobuf h5py >&2
  imports || { "$python" -c 'import h5py, openai, lm_eval, transformers, sentencepiece, google.protobuf' >&2; exit 1; }
fi
"$python" - >&2 <<'PY'
from importlib.metadata import version

print("clients_venv:", ", ".join(f"{name} {version(name)}" for name in ("openai", "lm_eval", "transformers")))
PY
echo "$python"
