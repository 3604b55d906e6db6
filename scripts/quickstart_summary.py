#!/usr/bin/python3
"""The closing lines of scripts/quickstart.sh: what the sweep, the laws and the planned model said.

  scripts/quickstart_summary.py runs/quickstart runs/quickstart/planned-1a2b3c4d
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

from scaling_data import read_runs


def load(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def interval(entry: dict[str, float] | None) -> str:
    return f" ({entry['lo']:.3g} to {entry['hi']:.3g})" if entry else ""


def count(value: float) -> str:
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}"


def serving_lines(out: pathlib.Path) -> list[str]:
    """What serving the planned model showed."""
    serve = out / "serve"
    parity, sample, profile = (load(serve / name) for name in ("parity.json", "sample.json", "profile.json"))
    lines = [f"served as INT8: {parity['comparisons']} comparisons with the training forward, "
             f"{parity['mismatches']} mismatches"]
    for level in profile["levels"]:
        quality, last = level["quality"], level["batches"][-1]
        change = quality.get("perplexity_change")
        against = (f" ({100 * change['value']:+.2f} % [{100 * change['interval'][0]:+.2f}, "
                   f"{100 * change['interval'][1]:+.2f}] perplexity)"
                   if change and "same_bits_as" not in level else "")
        lines.append(f"  {level['level']:<18} {level['memory_bytes']['weights'] / 2**20:.2f} MiB, "
                     f"{quality['bits_per_byte']['value']:.4f} bits per byte{against}, "
                     f"{last['decode_tokens_per_second']:.0f} tokens/s in batches of {last['batch']}, "
                     f"{last['cost_per_million_output_tokens']:.3g} per million")
    for priority, choice in profile["recommended"].items():
        lines.append(f"  for {priority}: {choice['name']}, {choice['batch']} at once ({choice['rule']})")
    text = " ".join(sample["answers"][0]["text"].split())
    lines.append(f"  it writes: The {text[:160]}")
    return lines


def main() -> None:
    out, planned = map(pathlib.Path, sys.argv[1:3])
    runs = read_runs(out / "sweep", {})
    minima, law, experts = (load(out / f"fit_{name}.json") for name in ("minima", "law", "experts"))
    plan, comparison, result = (load(path) for path in (out / "plan.json", out / "comparison.json",
                                                        planned / "result.json"))
    seconds = runs.columns["seconds"].astype(float)
    per_kind = ", ".join(f"{(runs.kind == kind).sum()} {kind}" for kind in runs.kinds())
    print(f"{len(runs.n)} runs ({per_kind}) at {len(runs.budgets)} budgets, {runs.c.sum():.3g} FLOPs, "
          f"{seconds.sum() / 60:.1f} minutes of rank groups; losses {runs.loss.min():.3f} to "
          f"{runs.loss.max():.3f} nats per token")
    for fit, name in ((minima, "isoFLOP minima"), (law, "parametric law")):
        optimum = fit["optimum"]
        print(f"  {name:<16} N* ~ C^{optimum['a']:.3f}{interval(optimum.get('a_interval'))}, "
              f"D* ~ C^{optimum['b']:.3f}{interval(optimum.get('b_interval'))}"
              + ("; warnings: see " + str(out / "fit_minima.json") if fit["warnings"] and fit is minima else ""))
    p = law["params"]
    print(f"  L = {p['E']:.3f} + {p['A']:.4g} / N^{p['alpha']:.3f} + {p['B']:.4g} / D^{p['beta']:.3f}, "
          f"R2 {law['r2']:.4f} on {law['n_points']} dense runs")
    boot = experts["bootstrap"]["params"]
    for name, value in experts["params"].items():
        if name.startswith("m "):
            print(f"  {name[2:]}: one active parameter is worth {value:.2f} dense ones"
                  f"{interval(boot.get(name))}")
    best = plan["best"]
    print(f"planned for {best['training_flops']:.3g} FLOPs: width {best['width']}, {best['layers']} blocks, "
          f"{best['experts']}, {count(best['n_total'])} parameters ({count(best['n_active'])} active), "
          f"{count(best['D'])} tokens")
    inside = {True: ", inside", False: ", outside"}.get(comparison.get("inside"), "")
    span = (f"{inside} its 95 % interval {comparison['interval'][0]:.4f} to {comparison['interval'][1]:.4f}"
            if "interval" in comparison else "")
    print(f"  predicted loss {comparison['predicted']:.4f}, measured {comparison['measured']:.4f} "
          f"({100 * comparison['relative']:+.2f} %{span}); "
          f"{result['validation']['bits_per_byte']:.3f} bits per byte, {result['tokens_per_second']:.0f} tokens/s")
    for warning in plan["warnings"] + experts["warnings"]:
        print(f"  warning: {warning}")
    for line in serving_lines(out):
        print(line)
    print(f"files: {out}/sweep/runs.csv, {out}/fit_*.json, {out}/plots/*.png and .pdf, {out}/planned.yaml, "
          f"{planned}, {out}/serve/profile.json")


if __name__ == "__main__":
    main()
