#!/usr/bin/python3
"""Plots of training runs, from the metrics.jsonl, config.yaml and result.json in their folders.

  scripts/plot_training.py runs/base runs/wide --out runs/plots
  scripts/plot_training.py --runs runs/lr/muP runs/lr/standard --out runs/plots   only the learning-rate transfer

Draws, as PNG and PDF and as far as the data allow:
  losses          training loss (every step and its running mean) and validation loss over tokens
  utilisation     tokens per second and share of the machine's measured peak over time
  expert_load     each expert's load over the mean, layer by layer, over the run; one plot per MoE run
  lr_transfer     final loss over learning rate, one curve per width: under muP their minima line up
Prints each file it wrote; a plot that the data do not allow is named with the reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
import sys

import numpy as np

import plot_style as style
from degu_yaml import load_yaml
from matplotlib.colors import BoundaryNorm
from plot_style import NotPossible
from scaling_data import Runs, parse_columns, read_runs

MOST_LINES = 6  # runs told apart in one plot


@dataclasses.dataclass
class TrainingRun:
    name: str
    steps: list[dict]        # lines of optimizer steps
    validations: list[dict]  # lines of validations
    config: dict
    result: dict

    def column(self, key: str) -> np.ndarray:
        return np.array([line[key] for line in self.steps], dtype=float)


def read_run(folder: pathlib.Path) -> TrainingRun:
    metrics = folder / "metrics.jsonl"
    if not metrics.exists():
        raise SystemExit(f"{folder}: no metrics.jsonl; give folders that degu train --out wrote")
    steps, validations = [], []
    for number, text in enumerate(metrics.read_text().splitlines(), 1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            print(f"{metrics}:{number}: not JSON, left out", file=sys.stderr)
            continue
        (validations if "validation" in line else steps).append(line)
    if not steps:
        raise SystemExit(f"{metrics}: no step was logged yet")

    def optional(name: str) -> dict:
        path = folder / name
        return load_yaml(path.read_text()) if path.exists() else {}

    return TrainingRun(folder.resolve().name, steps, validations, optional("config.yaml"),
                       optional("result.json"))


def running_mean(values: np.ndarray, window: np.ndarray | int) -> np.ndarray:
    """Mean over the last `window` values, fewer at the start."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def plot_losses(runs: list[TrainingRun]) -> style.Figure:
    figure, axes = style.figure(style.ONE_COLUMN + 0.8, 3.4)
    axis = axes[0][0]
    single = len(runs) == 1
    drawn, tokens_drawn = [], []
    for index, run in enumerate(runs[:MOST_LINES]):
        look = style.line_of(index)
        tokens, loss = run.column("tokens"), run.column("loss")
        axis.plot(tokens, loss, color=look["color"], alpha=0.2, linewidth=0.6)
        # a tenth of the run so far: the same width everywhere on a logarithmic axis
        smooth = running_mean(loss, np.arange(len(loss)) // 10 + 1)
        axis.plot(tokens, smooth, linewidth=1.3, label="training, running mean" if single else run.name,
                  **look)
        drawn.append(smooth[tokens >= tokens.max() / 100])
        tokens_drawn += [max(tokens.min(), tokens.max() / 300), tokens.max()]
        if run.validations:
            values = [line["validation"]["loss"] for line in run.validations]
            axis.plot([line["tokens"] for line in run.validations], values,
                      style.MARKERS[index], color=style.VERMILION if single else look["color"],
                      markeredgecolor="black", markeredgewidth=0.6,
                      label=f"validation, last {values[-1]:.4f}" if single else None, zorder=4)
            drawn.append(np.array(values))
    low, high = min(d.min() for d in drawn), max(d.max() for d in drawn)
    axis.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axis.set_xlim(*style.limits(tokens_drawn, 0.03))
    axis.set_xlabel("training tokens")
    axis.set_ylabel("cross-entropy (nats per token)")
    if not single:
        style.note(axis, "lines: training (running mean); markers: validation", 0.02, 0.02)
    axis.legend(loc="upper right")
    style.log_axis(axis, "x", counts=True)
    return figure


def plot_utilisation(runs: list[TrainingRun]) -> style.Figure:
    figure, axes = style.figure(style.TWO_COLUMNS, 2.9, 1, 2, sharex=True)
    highest: dict[style.Axes, float] = {}  # of the running means: a spike of one step must not set the scale
    unit, seconds = ("minutes", 60) if max(r.steps[-1]["seconds"] for r in runs) > 180 else ("seconds", 1)
    for index, run in enumerate(runs[:MOST_LINES]):
        look = style.line_of(index)
        time, tokens = run.column("seconds"), run.column("tokens")
        # "tokens_per_second" in the file is the mean since the start; here, between two lines
        passed, trained = np.diff(time), np.diff(tokens)
        good = passed > 0
        if not good.any():
            continue
        rate = trained[good] / passed[good]
        per_rate = np.median(run.column("utilisation") / run.column("tokens_per_second"))
        at, window = time[1:][good] / seconds, max(1, good.sum() // 60)
        for axis, values in ((axes[0][0], rate), (axes[0][1], 100 * rate * per_rate)):
            highest[axis] = max(highest.get(axis, 0.0), running_mean(values, window).max())
            axis.plot(at, values, color=look["color"], alpha=0.2, linewidth=0.6)
            axis.plot(at, running_mean(values, window), label=f"{run.name}: median "
                      f"{style.number(float(np.median(values)))}", **look)
    axes[0][0].set_ylabel("training tokens per second")
    axes[0][1].set_ylabel("share of the measured peak (%)")
    axes[0][0].yaxis.set_major_formatter(lambda value, _: style.number(value))
    for axis in axes[0]:
        axis.set_xlabel(f"time in steps ({unit})")
        axis.set_ylim(0, highest[axis] * (1.2 + 0.09 * min(len(runs), MOST_LINES)))
        axis.legend(loc="upper right")
    return figure


def plot_expert_load(run: TrainingRun) -> style.Figure:
    lines = [line for line in run.steps if line.get("layers")]
    if len(lines) < 2:
        raise NotPossible("a dense model, or fewer than two logged steps")
    # [layer, expert, time], relative to the mean over the layer's experts
    load = np.array([[layer["load"] for layer in line["layers"]] for line in lines], dtype=float)
    load = (load / load.mean(axis=2, keepdims=True)).transpose(1, 2, 0)
    layers, experts, _ = load.shape
    first_dense = (run.config.get("model", {}).get("moe") or {}).get("first_dense_layers", 0)
    steps = np.array([line["step"] for line in lines])
    edges = np.concatenate((steps[:1], (steps[1:] + steps[:-1]) / 2, steps[-1:]))

    figure, axes = style.figure(style.TWO_COLUMNS, 1.0 + max(1.0, 0.075 * experts) * layers, layers, 1,
                                sharex=True)
    levels = [0, 0.25, 0.5, 0.75, 0.9, 1.1, 1.5, 2, 3, 4]
    colours = style.plt.get_cmap("PuOr_r", len(levels))
    norm = BoundaryNorm(levels, colours.N, extend="max")
    for layer in range(layers):
        axis = axes[layer][0]
        image = axis.pcolormesh(edges, np.arange(experts + 1), load[layer], cmap=colours, norm=norm,
                                rasterized=True)
        axis.set_ylabel(f"block {layer + first_dense}\nexpert")
        step = max(1, experts // 8)
        axis.set_yticks(np.arange(0, experts, step) + 0.5, labels=range(0, experts, step))
        axis.grid(False)
    axes[-1][0].set_xlabel("optimizer step")
    axes[0][0].set_title(f"{run.name}: load of each expert over its layer's mean", fontsize=9)
    figure.colorbar(image, ax=axes[:, 0], label="load / mean", pad=0.015, ticks=levels)
    return figure


def runs_as_points(runs: list[TrainingRun]) -> list[tuple[str, float, float, float]]:
    """(kind of model, width, learning rate, final validation loss) of complete runs."""
    points = []
    for run in runs:
        if not run.result.get("complete") or not run.config:
            continue
        model, optimizer = run.config["model"], run.config["train"]["optimizer"]
        moe = model.get("moe") or {}
        kind = f"E{moe['experts']} K{moe['top_k']}" if moe.get("experts", 0) > 1 else "dense"
        points.append((f"{kind}, {model['layers']} blocks", float(model["width"]),
                       float(optimizer["learning_rate"]), run.result["validation"]["loss"]))
    return points


def table_as_points(runs: Runs, title: str = "") -> list[tuple[str, float, float, float]]:
    """The same of a run table; `title` goes before the kind of model."""
    needed = ("width", "layers", "learning_rate")
    if missing := [name for name in needed if name not in runs.columns]:
        raise NotPossible(f"the run table has no column {missing[0]}")
    columns = {name: runs.columns[name].astype(float) for name in needed}
    return [(f"{title}{kind}, {layers:g} blocks", width, rate, loss)
            for kind, layers, width, rate, loss in zip(
                runs.kind, columns["layers"], columns["width"], columns["learning_rate"], runs.loss)]


def plot_lr_transfer(points: list[tuple[str, float, float, float]]) -> style.Figure:
    curves: dict[tuple[str, float], dict[float, list[float]]] = {}
    for kind, width, rate, loss in points:
        curves.setdefault((kind, width), {}).setdefault(rate, []).append(loss)
    curves = {key: curve for key, curve in curves.items() if len(curve) >= 3}
    if len(curves) < 2:
        raise NotPossible("needs two widths with three learning rates each")
    kinds = list(dict.fromkeys(kind for kind, _ in curves))
    widths = sorted({width for _, width in curves})
    figure, axes = style.figure(style.ONE_COLUMN if len(kinds) == 1 else style.TWO_COLUMNS, 3.2, 1,
                                len(kinds), sharey=True)
    colours = dict(zip(widths, style.ramp(len(widths))))
    for axis, kind in zip(axes[0], kinds):
        for (curve_kind, width), curve in sorted(curves.items()):
            if curve_kind != kind:
                continue
            rates = np.array(sorted(curve))
            loss = np.array([np.mean(curve[rate]) for rate in rates])
            marker = style.MARKERS[widths.index(width) % len(style.MARKERS)]
            axis.plot(rates, loss, marker=marker, color=colours[width], label=f"width {width:g}")
            best = int(loss.argmin())
            axis.plot(rates[best], loss[best], marker, color=style.VERMILION, markersize=8,
                      markerfacecolor="none", markeredgewidth=1.6)
        axis.set_title(kind)
        axis.set_xlabel("peak learning rate (muP: at the base width)")
        axis.set_xlim(*style.limits([rate for curve in curves.values() for rate in curve]))
        style.log_axis(axis, "x", counts=True)
    axes[0][0].set_ylabel("validation loss (nats per token)")
    axes[0][0].legend(loc="best", title="red outline: best of its width", title_fontsize=7)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", type=pathlib.Path, nargs="*", help="folders of runs")
    parser.add_argument("--runs", type=pathlib.Path, metavar="RUNS.csv", nargs="+",
                        help="run tables or sweeps' folders for the learning-rate transfer, a panel each")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the plots")
    parser.add_argument("--json", action="store_true", help="print one object: files and what was skipped")
    args = parser.parse_args()
    if not args.folders and not args.runs:
        parser.error("give folders of runs, --runs, or both")

    runs = [read_run(folder) for folder in args.folders]
    plots = {}
    if runs:
        plots["losses"] = lambda: plot_losses(runs)
        plots["utilisation"] = lambda: plot_utilisation(runs)
        for run in runs:
            name = "expert_load" if len(runs) == 1 else "expert_load_" + re.sub(r"\W+", "-", run.name)
            plots[name] = lambda run=run: plot_expert_load(run)
    if args.runs:
        plots["lr_transfer"] = lambda: plot_lr_transfer([
            point for path in args.runs
            for point in table_as_points(read_runs(path, parse_columns(None)),
                                         f"{path.stem}: " if len(args.runs) > 1 else "")])
    elif len(runs) > 1:
        plots["lr_transfer"] = lambda: plot_lr_transfer(runs_as_points(runs))

    skipped = {}
    if len(runs) > MOST_LINES:
        skipped["runs"] = f"losses and utilisation show the first {MOST_LINES} of {len(runs)} runs"
    style.draw_all(plots, args.out, as_json=args.json, skipped=skipped)


if __name__ == "__main__":
    main()
