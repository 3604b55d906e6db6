#!/usr/bin/env bash
# The server from the outside: the address it prints, an answer, the page in a browser, clients that others wrote, a
# short soak, and its end on a signal, alone and on two ranks.
#   server_test.sh DEGU FOLDER
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
prepare_words 1500
cat >"$work/run.yaml" <<YAML
model: {vocab: 512, width: 64, layers: 2, heads: 2, moe: {experts: 4, top_k: 2}}
data: {paths: [$work/data], sequence_length: 512, validation_tokens: 2048}
train: {batch_sequences: 4, steps: 60, balance: {aux_loss: 0.01}}
cluster: {threads: 1}
YAML
"$degu" train "$work/run.yaml" --out "$work/run"

server=""
trap '[[ -z "$server" ]] || kill -KILL "$server" 2>/dev/null || true' EXIT

# start COMMAND…: runs it as the server; sets `server` (its process) and `url`
start() {
  : >"$work/url.txt"  # the address of an earlier server is none of this one
  "$@" --port 0 >"$work/url.txt" 2>"$work/server.log" &
  server=$!
  for _ in $(seq 300); do
    url="$(head -n 1 "$work/url.txt")"
    [[ -z "$url" ]] || return 0
    kill -0 "$server" 2>/dev/null || break
    sleep 0.2
  done
  cat "$work/server.log"
  fail "no address from $*"
}

# ask PATH [JSON]: the body of the answer to a GET, or with JSON to a POST; fails when the status is not 200
ask() {
  /usr/bin/python3 - "$url$1" "${2:-}" <<'PY'
import sys
import urllib.request

body = sys.argv[2].encode() or None
request = urllib.request.Request(sys.argv[1], body, {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=120).read().decode())
PY
}
# end SIGNAL CODE: sends it and compares the exit code
end() {
  kill "-$1" "$server"
  local code=0
  wait "$server" || code=$?
  server=""
  [[ $code == "$2" ]] || { cat "$work/server.log"; fail "exit code $code after SIG$1, $2 was due"; }
}

# The text is that of `degu generate`, on one rank and on two.
said="$("$degu" generate "$work/run" --prompt "abc def" --max-tokens 30 --seed 4 --ignore-eos)"
for ranks in 1 2; do
  if [[ $ranks == 1 ]]; then start "$degu" serve "$work/run" --price-per-hour 1; else
    start mpirun -n 2 "$degu" serve "$work/run" --placement auto --frequencies "$work/metrics-1.txt"; fi
  ask /v1/completions '{"prompt": "abc def", "max_tokens": 30, "seed": 4, "ignore_eos": true}' >"$work/answer.json"
  told="$(/usr/bin/python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["choices"][0]["text"])' "$work/answer.json")"
  [[ "$told" == "$said" ]] || fail "on $ranks ranks the server says '$told', generate '$said'"
  ask /ready >"$work/ready.json" || fail "not ready"
  # Experts are counted by their own numbers, wherever they lie.
  ask /metrics >"$work/metrics-$ranks.txt"
  grep "^degu:expert_rows_total" "$work/metrics-$ranks.txt" >"$work/rows-$ranks.txt"
  cmp "$work/rows-1.txt" "$work/rows-$ranks.txt" || fail "other rows of experts on $ranks ranks"
  if [[ $ranks == 2 ]]; then
    ask /metrics >"$work/metrics.txt"
    grep '^degu:exchange_seconds_total' "$work/metrics.txt" | grep -qv ' 0$' || fail "no time of exchanges"
    # Nothing that was accepted is lost when the end comes.
    ask /v1/completions '{"prompt": "abc", "max_tokens": 200, "ignore_eos": true}' >"$work/last.json" &
    asker=$!
    # Until it has arrived; Python takes its time to start, and longer to ask.
    until {
      exec 3<>"/dev/tcp/127.0.0.1/${url##*:}"
      printf 'GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&3
      cat <&3
    } | grep -q '^degu:http_requests_in_flight{.*} [1-9]'; do
      kill -0 "$asker" 2>/dev/null || break
    done
    end USR1 0
    wait "$asker"
    grep -q '"finish_reason":"length"' "$work/last.json" || fail "an accepted request was cut"
  else
    end TERM 0
  fi
done
start "$degu" serve "$work/run" --price-per-hour 1

# The page, where there is a browser.
if browser="$(command -v chromium)"; then
  timeout 120 "$browser" --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --user-data-dir="$work/browser" \
    --virtual-time-budget=20000 --dump-dom "$url/#prompt=abc&max_tokens=12&seed=4&run" >"$work/page.html" 2>"$work/browser.log" ||
    fail "the browser failed"
  /usr/bin/python3 - "$work/page.html" <<'PY' || fail "the page"
import re
import sys

page = open(sys.argv[1]).read()
tokens = re.findall(r'<span [^>]*data-probability="([0-9.]+)" data-experts="([^"]*)"', page)
assert 1 <= len(tokens) <= 12, page[-3000:]
assert all(0 < float(p) <= 1 for p, _ in tokens), tokens
assert all(experts.count("[") == 3 for _, experts in tokens[:-1]), tokens  # two layers
assert "experts; the busiest has" in page and "Per million tokens" in page, page[-3000:]
PY
  echo "page: shown with tokens, probabilities and experts"
else
  echo "page: SKIPPED, there is no chromium here"
fi

# Clients that others wrote, where their environment is.
clients="${DEGU_CLIENTS_VENV:-$DEGU_ROOT/.venv-clients}/bin/python"
if [[ -x "$clients" ]]; then
  "$degu" export "$work/run" --tokenizer-to "$work/tokenizer"
  "$clients" "$DEGU_ROOT/scripts/clients/check_tokenizer.py" "$work/tokenizer" "$work/data" || fail "the exported tokenizer"
  "$clients" "$DEGU_ROOT/scripts/clients/check_openai.py" "$url" || fail "the openai package"
else
  echo "clients: SKIPPED, scripts/clients_venv.sh has not been run"
fi

"$DEGU_ROOT/scripts/soak.py" "$url" --pid "$server" --minutes "${DEGU_SOAK_MINUTES:-0.3}" >"$work/soak.json" || {
  # Too short a run judges memory poorly; wrong answers count at any length.
  /usr/bin/python3 -c 'import json, sys; sys.exit(json.load(open(sys.argv[1]))["wrong"] > 0)' "$work/soak.json" || fail "the soak"
}
cat "$work/soak.json"
end TERM 0

# A rank that dies ends the job with a reason.
start mpirun -n 2 "$degu" serve "$work/run"
kill -KILL "$(pgrep -P "$server" | tail -n 1)"
code=0
wait "$server" || code=$?
server=""
[[ $code != 0 ]] && grep -qi 'signal 9\|exited' "$work/server.log" || fail "a dead rank went unnoticed (code $code)"

# Refused at the door.
code=0
"$degu" serve "$work/run" --max-connections 10 2>"$work/error.txt" || code=$?
[[ $code == 2 ]] && grep -q connections "$work/error.txt" || fail "limits that do not fit together"
echo "server: all well"
