#!/usr/bin/env bash
# A virtual environment with PyTorch and transformers, for the scripts that compare degu with them
# (scripts/check_vs_torch.py, scripts/bench/train_vs_torch.py). Nothing else in degu needs it.
#
#   scripts/torch_venv.sh [FOLDER]      default: .venv-torch in the checkout; about 4.3 GB
#
# Run again, it only checks. The last line on standard output is the environment's Python:
#   $(scripts/torch_venv.sh | tail -n 1) scripts/check_vs_torch.py ...
#
# PyTorch's package is linked against NVIDIA's libraries and does not import without them, GPU or not, so
# those it names are installed at the versions it names. Triton, cuSOLVER and a few others, which neither
# importing nor the CPU needs, stay out; so pip is kept from resolving torch's dependencies by itself.
set -euo pipefail

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${1:-${DEGU_TORCH_VENV:-$repo/.venv-torch}}"
torch_spec="${DEGU_TORCH_SPEC:-torch}"
transformers_spec="${DEGU_TRANSFORMERS_SPEC:-transformers}"
python="$venv/bin/python"

imports() {
  "$python" - <<'PY' 2>/dev/null
import torch, transformers, safetensors, h5py
torch.ones(2, 2) @ torch.ones(2, 2)
PY
}

if [[ -x "$python" ]] && imports; then
  echo "torch_venv: $venv is complete" >&2
  echo "$python"
  exit 0
fi

echo "torch_venv: making $venv (about 4.3 GB, some minutes)" >&2
[[ -x "$python" ]] || /usr/bin/python3 -m venv "$venv"
# pip notes each time that torch's other dependencies are absent: meant so, and not worth a reader's alarm
install() {
  "$python" -m pip install --disable-pip-version-check --progress-bar off --quiet "$@" \
    2> >(grep -v -e "dependency resolver" -e "^torch .* which is not installed" >&2)
}

install --no-deps "$torch_spec" "$transformers_spec" tokenizers
install numpy typing_extensions sympy networkx jinja2 filelock fsspec huggingface_hub safetensors \
  pyyaml regex tqdm packaging requests typer h5py 'setuptools>=77.0.3'

# The libraries torch is linked with, at the versions its own metadata names.
mapfile -t libraries < <("$python" - <<'PY'
import importlib.metadata as metadata
import re
import sys

TOOLKIT = ("cublas", "cudart", "cufft", "cufile", "cupti", "cusparse", "nvjitlink", "nvrtc")
OTHERS = ("nvidia-cudnn", "nvidia-cusparselt", "nvidia-nccl", "nvidia-nvshmem")
for line in metadata.requires("torch") or []:
    requirement, _, marker = (part.strip() for part in line.partition(";"))
    if "extra" in marker:
        continue
    name = re.split(r"[\s\[=<>!~(]", requirement, maxsplit=1)[0].lower()
    if name == "cuda-toolkit":
        version = re.sub(r"^[^=<>!~]*(\[[^\]]*\])?", "", requirement).strip(" ()")
        print(f"cuda-toolkit[{','.join(TOOLKIT)}]{version}")
    elif name.startswith(OTHERS):
        print(requirement.replace(" ", ""))
    else:
        print(f"torch_venv: left out or already there: {requirement}", file=sys.stderr)
PY
)
printf 'torch_venv: %s\n' "${libraries[@]}" >&2
install "${libraries[@]}"

if ! imports; then
  echo "torch_venv: $venv is installed but does not import; the reason:" >&2
  "$python" -c 'import torch, transformers, safetensors, h5py' >&2 || true
  exit 1
fi
"$python" -c 'import torch, transformers
print("torch_venv: PyTorch", torch.__version__, "transformers", transformers.__version__)' >&2
echo "$python"
