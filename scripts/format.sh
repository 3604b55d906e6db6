#!/usr/bin/env bash
# Formats our C++ (and CUDA) sources in place, or with --check only says which files differ (exit 1).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$DEGU_ROOT"
# git's list, so that build folders and other people's scratch files stay out; a plain copy has no git.
if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
  mapfile -t files < <(git ls-files '*.h' '*.cc' '*.cu' '*.cuh')
else
  mapfile -t files < <(find src kernels tests -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh')
fi
# A file that git knows may be gone from the working tree.
present=()
for file in "${files[@]}"; do [[ -f "$file" ]] && present+=("$file"); done
if [[ "${1:-}" == --check ]]; then
  clang-format --dry-run --Werror "${present[@]}"
  echo "format: ${#present[@]} files are formatted"
else
  clang-format -i "${present[@]}"
fi
