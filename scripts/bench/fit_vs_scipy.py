#!/usr/bin/python3
"""degu's approach 3 against SciPy's L-BFGS-B on one core, in the same run.

Both minimise the sum of Huber terms (delta 1e-3) of ln L over delta², with an exact gradient, from the 4,500 published
starts, and then refit 4,000 bootstrap resamples from the optimum. SciPy evaluates all points at once with NumPy and stops
on tight relative tolerances, the loosest at which as many of its starts arrive as of ours (about half).

  scripts/bench/fit_vs_scipy.py --degu build/release/src/cli/degu --data besiroglu_2024_chinchilla_runs.csv

Prints one JSON object: {"ratio": SciPy's seconds over degu's, …}.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # before NumPy starts its threads

import numpy as np  # noqa: E402
from scipy.optimize import OptimizeResult, minimize  # noqa: E402

DELTA = 1e-3


def read_runs(path: str, drop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ln N, ln D, ln L without the highest losses."""
    with open(path, newline="") as file:
        rows = [(float(r["Model Size"]), float(r["Training FLOP"]), float(r["loss"]))
                for r in csv.DictReader(file)]
    rows.sort(key=lambda row: row[2])
    n, c, loss = np.array(rows[: len(rows) - drop]).T
    return np.log(n), np.log(c / (6 * n)), np.log(loss)


def objective(theta: np.ndarray, ln_n: np.ndarray, ln_d: np.ndarray, ln_l: np.ndarray,
              weight: np.ndarray) -> tuple[float, np.ndarray]:
    """Weighted sum of Huber terms over delta² and its gradient by (ln E, ln A, ln B, alpha, beta)."""
    e, a, b, alpha, beta = theta
    z0 = np.full_like(ln_n, e)
    z1, z2 = a - alpha * ln_n, b - beta * ln_d
    top = np.maximum(np.maximum(z0, z1), z2)
    p0, p1, p2 = np.exp(z0 - top), np.exp(z1 - top), np.exp(z2 - top)
    total = p0 + p1 + p2
    r = (np.log(total) + top - ln_l) / DELTA
    size = np.abs(r)
    value = weight @ np.where(size <= 1, 0.5 * r * r, size - 0.5)
    slope = weight * np.clip(r, -1, 1) / DELTA / total
    g1, g2 = slope * p1, slope * p2
    return value, np.array([slope @ p0, g1.sum(), g2.sum(), -g1 @ ln_n, -g2 @ ln_d])


def solve(start: np.ndarray, data: tuple, weight: np.ndarray) -> OptimizeResult:
    return minimize(objective, start, args=(*data, weight), jac=True, method="L-BFGS-B",
                    options={"maxiter": 3000, "maxfun": 6000, "ftol": 1e-12, "gtol": 1e-6})


def scipy_run(data: tuple, starts: int, resamples: int) -> dict:
    intercepts, exponents = (0, 5, 10, 15, 20, 25), (0, .5, 1, 1.5, 2)
    grid = list(itertools.product((-1, -.5, 0, .5, 1), intercepts, intercepts, exponents, exponents))
    chosen = grid[:: max(1, len(grid) // starts)][:starts]
    ones = np.ones(len(data[0]))
    began = time.perf_counter()
    found = [solve(np.array(start, float), data, ones) for start in chosen]
    fit_seconds = (time.perf_counter() - began) * len(grid) / len(chosen)
    best = min(found, key=lambda f: f.fun)
    arrived = sum(f.fun <= best.fun * (1 + 1e-6) for f in found) / len(found)

    random = np.random.default_rng(1)
    began = time.perf_counter()
    for _ in range(resamples):
        rows = random.integers(0, len(ones), len(ones))
        solve(best.x, data, np.bincount(rows, minlength=len(ones)).astype(float))
    boot_seconds = time.perf_counter() - began
    return {"seconds": fit_seconds, "starts_run": len(chosen), "arrived": arrived,
            "objective": best.fun * DELTA**2, "bootstrap_seconds": boot_seconds,
            "bootstraps_run": resamples}


def degu_run(degu: str, path: str, drop: int, bootstrap: int) -> dict:
    command = [degu, "fit", path, "--columns", 'N="Model Size",C="Training FLOP",L=loss',
               "--drop-highest-loss", str(drop), "--bootstrap", str(bootstrap), "--threads", "1", "--json"]
    out = subprocess.run(command, capture_output=True, text=True)
    if out.returncode != 0:
        sys.exit(f"{' '.join(command)}: {out.stderr.strip()}")
    return json.loads(out.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--degu", required=True, help="the binary")
    parser.add_argument("--data", required=True, help="CSV with Model Size, Training FLOP, loss")
    parser.add_argument("--drop-highest-loss", type=int, default=5)
    parser.add_argument("--starts", type=int, default=4500, help="SciPy runs this many and scales its time up")
    parser.add_argument("--bootstrap", type=int, default=4000, help="resamples, both sides")
    parser.add_argument("--repeat", type=int, default=3, help="degu's runs; the median counts")
    args = parser.parse_args()

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core for both
    fits = [degu_run(args.degu, args.data, args.drop_highest_loss, args.bootstrap)
            for _ in range(args.repeat)]
    boot_seconds = float(np.median([f["bootstrap"]["seconds"] for f in fits]))
    fit_seconds = float(np.median([f["seconds"] - f["bootstrap"]["seconds"] for f in fits]))
    peer = scipy_run(read_runs(args.data, args.drop_highest_loss), args.starts, args.bootstrap)
    print(json.dumps({
        "ratio": peer["seconds"] / fit_seconds,
        "bootstrap_ratio": peer["bootstrap_seconds"] / boot_seconds,
        "degu": {"seconds": fit_seconds, "bootstrap_seconds": boot_seconds,
                 "objective": fits[0]["objective"], "arrived": fits[0]["starts"]["share"]},
        "scipy": peer,
    }))


if __name__ == "__main__":
    main()
