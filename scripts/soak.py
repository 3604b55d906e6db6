#!/usr/bin/env python3
"""Loads a running server for a while with a mix of requests and watches its memory.

    soak.py URL --pid PID [--minutes 30] [--clients 8]

Clients stream, ask in batches, send what must be refused, and vanish in the middle. Memory (resident, of PID) is
sampled every second; after the warm-up (a quarter of the time) a line is fitted, and the interval of its slope takes
the samples' correlation in time into account (means of 20 blocks). Prints one JSON object. Exit 1 when a request was
answered wrongly, or when the slope is above 1 MB per 10 minutes and its interval does not include zero.
"""

import argparse
import collections
import http.client
import json
import math
import random
import sys
import threading
import time
import urllib.parse

# Two-sided 95 % quantile of Student's t with 18 degrees of freedom (20 blocks, a line).
T_95 = 2.101
BLOCKS = 20
# Of the longest prompt and answer, were every character a token.
LEAST_CONTEXT = 512
# The server closes a connection on which nothing comes for this long. A client that got no processor time between
# connecting and sending meets a closed door, and was not answered wrongly.
IDLE_LIMIT = 5.0


class Client(threading.Thread):
    """One client after the other's manner, until told to end."""

    def __init__(self, url: urllib.parse.ParseResult, seed: int, until: float) -> None:
        super().__init__()
        self.url, self.draw, self.until = url, random.Random(seed), until
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.sent_within = 0.0

    def prompt(self) -> str:
        words = ["the", "kernel", "of", "a", "module", "returns", "value", "each", "page", "memory"]
        shared = "A story that begins alike. " * self.draw.choice([0, 0, 4])
        return shared + " ".join(self.draw.choices(words, k=self.draw.randint(1, 40)))

    def post(self, body: object) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=120)
        text = body if isinstance(body, str) else json.dumps(body)
        begin = time.monotonic()
        try:
            connection.request("POST", "/v1/completions", text, {"Content-Type": "application/json"})
        finally:
            self.sent_within = time.monotonic() - begin
        return connection

    def expect(self, kind: str, condition: bool, what: object) -> None:
        self.counts[kind] += 1
        if not condition:
            self.wrong.append(f"{kind}: {str(what)[:300]}")

    def stream(self) -> None:
        connection = self.post({"prompt": self.prompt(), "max_tokens": self.draw.randint(1, 60), "stream": True,
                                "logprobs": self.draw.choice([None, 3])})
        response = connection.getresponse()
        text = response.read().decode()
        self.expect("stream", response.status in (200, 429) and (response.status == 429 or
                                                                 text.endswith("data: [DONE]\n\n")), text[-200:])
        connection.close()

    def batch(self) -> None:
        prompts = [self.prompt() for _ in range(self.draw.randint(1, 4))]
        connection = self.post({"prompt": prompts, "max_tokens": self.draw.randint(0, 30), "n": self.draw.randint(1, 2),
                                "echo": self.draw.random() < 0.3, "routes": self.draw.random() < 0.3,
                                "logprobs": self.draw.choice([None, 0, 5])})
        response = connection.getresponse()
        text = response.read().decode()
        self.expect("batch", response.status in (200, 429), text)
        connection.close()

    def refused(self) -> None:
        body = self.draw.choice(["{", "[]", '{"prompt": 5}', '{"prompt": "a", "n": 0}', '{"prompt": "a", "x": 1}'])
        connection = self.post(body)
        response = connection.getresponse()
        text = response.read().decode()
        self.expect("refused", response.status == 400 and "error" in json.loads(text), text)
        connection.close()

    def vanish(self) -> None:
        connection = self.post({"prompt": self.prompt(), "max_tokens": 100, "stream": True, "ignore_eos": True})
        if self.draw.random() < 0.5:
            connection.getresponse().read1(100)
        connection.close()
        self.counts["vanished"] += 1

    def run(self) -> None:
        while time.monotonic() < self.until:
            action = self.draw.choices([self.stream, self.batch, self.refused, self.vanish], [6, 3, 1, 2])[0]
            try:
                action()
            except (OSError, http.client.HTTPException, ValueError) as error:
                if isinstance(error, ConnectionError) and self.sent_within >= IDLE_LIMIT:
                    self.counts["too late"] += 1
                    continue
                self.expect(action.__name__, False, repr(error))
                time.sleep(0.2)


def context_of(url: urllib.parse.ParseResult) -> int:
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
    connection.request("GET", "/v1/models")
    return int(json.load(connection.getresponse())["data"][0]["max_model_len"])


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Rss:"))


def slope(samples: list[tuple[float, int]]) -> tuple[float, float]:
    """Bytes per second and half its 95 % interval, over means of neighbouring samples."""
    size = len(samples) / BLOCKS
    blocks = [samples[int(i * size):int((i + 1) * size)] for i in range(BLOCKS)]
    t = [sum(s[0] for s in b) / len(b) for b in blocks]
    y = [sum(s[1] for s in b) / len(b) for b in blocks]
    t_mean, y_mean = sum(t) / BLOCKS, sum(y) / BLOCKS
    spread = sum((x - t_mean) ** 2 for x in t)
    slant = sum((a - t_mean) * (b - y_mean) for a, b in zip(t, y)) / spread
    rest = sum((b - y_mean - slant * (a - t_mean)) ** 2 for a, b in zip(t, y))
    return slant, T_95 * math.sqrt(rest / (BLOCKS - 2) / spread)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--pid", type=int, required=True, help="of the server")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    url = urllib.parse.urlparse(arguments.url)
    context = context_of(url)
    if context < LEAST_CONTEXT:
        raise SystemExit(f"{arguments.url}: its context has {context} tokens, the requests need {LEAST_CONTEXT}; "
                         "serve with a larger --context")
    start = time.monotonic()
    until = start + 60 * arguments.minutes
    clients = [Client(url, seed, until) for seed in range(arguments.clients)]
    for client in clients:
        client.start()
    samples: list[tuple[float, int]] = []
    pause = min(1.0, 60 * arguments.minutes / 200)
    while time.monotonic() < until:
        samples.append((time.monotonic() - start, resident_bytes(arguments.pid)))
        time.sleep(pause)
    for client in clients:
        client.join()
    warm = [s for s in samples if s[0] > 60 * arguments.minutes / 4]
    per_second, half = slope(warm)
    counts: collections.Counter[str] = sum((c.counts for c in clients), collections.Counter())
    wrong = [w for c in clients for w in c.wrong]
    mb_per_10_minutes = per_second * 600 / 1e6
    half_mb = half * 600 / 1e6
    report = {"minutes": arguments.minutes, "requests": sum(counts.values()), "by_kind": dict(counts),
              "wrong": len(wrong), "resident_mb": [warm[0][1] / 1e6, warm[-1][1] / 1e6],
              "mb_per_10_minutes": mb_per_10_minutes,
              "interval": [mb_per_10_minutes - half_mb, mb_per_10_minutes + half_mb]}
    print(json.dumps(report))
    for line in wrong[:10]:
        print(line, file=sys.stderr)
    grows = mb_per_10_minutes > 1 and mb_per_10_minutes - half_mb > 0
    return 1 if wrong or grows or not counts else 0


if __name__ == "__main__":
    sys.exit(main())
