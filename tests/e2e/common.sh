# Read by the end-to-end tests, which are called with DEGU and an empty FOLDER of their own: sets `degu` and `work`.
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/env.sh"
degu="$1" work="$2"
rm -rf "$work"
mkdir -p "$work/text"

fail() {
  echo "$(basename "$0"): $*"
  exit 1
}

# prepare_words PARAGRAPHS: paragraphs of random words, prepared into $work/data with 512 tokens
prepare_words() {
  /usr/bin/python3 - "$work/text/words.txt" "$1" <<'PY'
import random
import sys

random.seed(3)
with open(sys.argv[1], "w") as file:
    for _ in range(int(sys.argv[2])):
        file.write(" ".join("".join(random.choices("abcdefgh", k=random.randint(2, 6))) for _ in range(40)) + "\n\n")
PY
  prepare_text
}

prepare_text() {
  "$degu" data prepare "$work/text" --out "$work/data" --vocab 512 --document-bytes 1024
}

# kill_after SECONDS JOB FOLDER: SIGKILL to the job's session and to all that works on FOLDER, if the job still
# runs by then; false if it was over.
kill_after() {
  sleep "$1"
  kill -0 "$2" 2>/dev/null || return 1
  kill -KILL -- "-$2" 2>/dev/null || true
  pkill -KILL -f "$3" || true
}
