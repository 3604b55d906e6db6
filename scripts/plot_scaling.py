#!/usr/bin/python3
"""Plots of a run table and of the laws fitted to it.

  scripts/plot_scaling.py runs/sweep --fit runs/fit2.json runs/fit3.json --out runs/plots
  scripts/plot_scaling.py anyone.csv --columns N="Model Size",C="Training FLOP",L=loss --out plots

Draws, as PNG and PDF and as far as the data allow:
  isoflop      loss over N at each budget, with parabolas and their minima, one panel per kind of model
  frontier     loss over compute, the best runs and what the laws expect
  optimum      best N and D over compute, with intervals
  contours     the parametric law over (N, D) with the runs on it
  residuals    measured over predicted loss, against N and D, and their distribution
  multipliers  what each kind of experts is worth in active parameters
Prints each file it wrote; a plot that the data do not allow is named with the reason.
"""

from __future__ import annotations

import argparse
import math
import pathlib

import numpy as np

import plot_style as style
from matplotlib.colors import BoundaryNorm
from matplotlib.lines import Line2D
from plot_style import NotPossible
from scaling_data import (Fit, Parabola, Runs, fit_parabola, parabola_of_fit, parse_columns,
                          read_fits, read_runs)


def parabolas(runs: Runs, kind: str, window: float, fits: list[Fit]) -> dict[int, Parabola]:
    """The budgets' parabolas of one kind of model: those of a fit by approach 2 where it has them (dense
    models), else the same kind of fit made here."""
    fit = next((f for f in fits if f.approach == 2 and f.raw.get("minima")), None)
    found = {}
    for index, budget in enumerate(runs.budgets):
        if fit is not None and kind == "dense":
            if (parabola := parabola_of_fit(fit, budget)) is not None:
                found[index] = parabola
                continue
        rows = (runs.budget == index) & (runs.kind == kind)
        if rows.sum() >= 3 and (parabola := fit_parabola(runs.n[rows], runs.loss[rows], window)):
            found[index] = parabola
    return found


def noise(runs: Runs) -> float:
    """Standard deviation of the loss among runs that differ in their seed alone; nan without replicates."""
    keys = list(zip(runs.n, runs.d, runs.kind, runs.columns.get("learning_rate", runs.kind)))
    groups: dict[tuple, list[float]] = {}
    for key, loss in zip(keys, runs.loss):
        groups.setdefault(key, []).append(loss)
    deviations = [loss - np.mean(g) for g in groups.values() if len(g) > 1 for loss in g]
    free = sum(len(g) - 1 for g in groups.values())
    return math.sqrt(sum(d * d for d in deviations) / free) if free else math.nan


def plot_isoflop(runs: Runs, fits: list[Fit], args: argparse.Namespace) -> style.Figure:
    kinds = [k for k in runs.kinds() if ((runs.kind == k) & (runs.budget >= 0)).sum() >= 3]
    if not runs.budgets or not kinds:
        raise NotPossible("no budget has three runs of one kind")
    kinds = kinds[:9]
    rows_of_panels = math.ceil(len(kinds) / 3)
    figure, axes = style.figure(style.ONE_COLUMN if len(kinds) == 1 else style.TWO_COLUMNS,
                                3.3 if rows_of_panels == 1 else 2.4 * rows_of_panels, rows_of_panels,
                                min(len(kinds), 3), sharey=True, sharex=True)
    colours = style.ramp(len(runs.budgets))
    without = False
    for axis, kind in zip(axes.flat, kinds):
        fitted = parabolas(runs, kind, args.window, fits)
        for index, colour in enumerate(colours):
            rows = (runs.budget == index) & (runs.kind == kind)
            axis.plot(runs.n[rows], runs.loss[rows], style.MARKERS[index % len(style.MARKERS)],
                      color=colour, markeredgecolor="white", markeredgewidth=0.4)
            if index not in fitted:
                continue
            p = fitted[index]
            if p.n_min != p.n_min:  # it opens downwards, or its minimum lies outside
                order = np.argsort(runs.n[rows])
                axis.plot(runs.n[rows][order], runs.loss[rows][order], ":", color=colour, linewidth=1.0)
                without = True
                continue
            n = np.geomspace(p.n_low / 1.15, p.n_high * 1.15, 80)
            axis.plot(n, np.polyval(p.coefficients, np.log(n)), color=colour, linewidth=1.1)
            axis.plot(p.n_min, p.loss_min, "*", color=style.VERMILION, markersize=9,
                      markeredgecolor="white", markeredgewidth=0.5, zorder=5)
        axis.set_title(kind if len(kinds) > 1 else "")
    empty = list(axes.flat)[len(kinds):]
    for axis in empty:
        axis.set_axis_off()
    for column in range(axes.shape[1]):
        lowest = max(row for row in range(axes.shape[0]) if axes[row][column] not in empty)
        axes[lowest][column].set_xlabel("N, " + runs.n_label)
        axes[lowest][column].tick_params(labelbottom=True)
    for row in axes:
        row[0].set_ylabel("validation loss (nats per token)")
    handles = [Line2D([], [], color=c, marker=style.MARKERS[i % len(style.MARKERS)],
                      label=style.power(runs.budgets[i]) + " FLOPs") for i, c in enumerate(colours)]
    handles.append(Line2D([], [], color=style.VERMILION, marker="*", linestyle="", markersize=8,
                          label="minimum of the parabola"))
    if without:
        handles.append(Line2D([], [], color=style.GREY, linestyle=":", label="no minimum among the runs"))
    title = {"title": "training budget", "title_fontsize": 7.5}
    if empty:
        empty[0].legend(handles=handles, loc="center", **title)
    elif len(kinds) == 1:
        axes[0][0].legend(handles=handles, loc="best", **title)
    else:  # below the panels: the curves leave it no room
        figure.get_layout_engine().set(rect=(0, 0.16, 1, 0.84))
        figure.legend(handles=handles, loc="lower center", ncols=3, **title)
    for axis in list(axes.flat)[:len(kinds)]:
        style.log_axis(axis, "x", counts=True)
    return figure


def optimum_curve(fit: Fit) -> dict[str, np.ndarray] | None:
    """Arrays C, N, D and, where the fit has them, loss and intervals (…_lo, …_hi)."""
    curve = (fit.raw.get("optimum") or {}).get("curve")
    if not curve:
        return None
    return {key: np.array([point.get(key, math.nan) for point in curve], dtype=float)
            for key in curve[0]}


def lower_hull(c: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Indices of the lower convex hull of ln L over ln C, falling part alone. Of runs at one budget, whose C
    differ by the rounding to whole steps, the best counts."""
    x, y = np.log(c), np.log(loss)
    hull: list[int] = []
    order: list[int] = []
    for i in np.argsort(x):
        if order and x[i] - x[order[-1]] < 0.02:
            order[-1] = int(i) if y[i] < y[order[-1]] else order[-1]
        else:
            order.append(int(i))
    for i in order:
        while len(hull) >= 2:
            a, b = hull[-2], hull[-1]
            if (x[b] - x[a]) * (y[i] - y[a]) - (y[b] - y[a]) * (x[i] - x[a]) > 0:
                break
            hull.pop()
        hull.append(int(i))
    best = int(np.argmin(y[hull]))
    return np.array(hull[: best + 1])


def plot_frontier(runs: Runs, fits: list[Fit]) -> style.Figure:
    figure, axes = style.figure(style.ONE_COLUMN, 3.4)
    axis = axes[0][0]
    for index, kind in enumerate(runs.kinds()):
        rows = runs.kind == kind
        look = style.category(index)
        axis.plot(runs.c[rows], runs.loss[rows], look["marker"], color=look["color"], alpha=0.75,
                  markeredgecolor="white", markeredgewidth=0.4, label=f"{kind} ({rows.sum()} runs)")
        hull = lower_hull(runs.c[rows], runs.loss[rows])
        if len(hull) > 1:
            axis.plot(runs.c[rows][hull], runs.loss[rows][hull], color=look["color"], linewidth=1.0,
                      label=f"frontier, {kind}" if len(runs.kinds()) < 4 else None)
    for index, fit in enumerate(fits):
        curve = optimum_curve(fit)
        # approach 1 knows no losses but the frontier's own
        if curve is None or fit.approach == 1 or "L" not in curve or np.isnan(curve["L"]).all():
            continue
        look = {"color": style.BLACK, "linestyle": style.LINES[1 + index % 5]}
        axis.plot(curve["C"], curve["L"], linewidth=1.2, label=f"optimum by {fit.label}" +
                  (" (dense)" if fit.law == "multipliers" else ""), **look)
        if "L_lo" in curve:
            axis.fill_between(curve["C"], curve["L_lo"], curve["L_hi"], color=look["color"], alpha=0.15,
                              linewidth=0)
    axis.set_xlabel("C, training compute (FLOPs)")
    axis.set_ylabel("validation loss (nats per token)")
    legend = axis.legend(loc="lower left")  # the one corner that falling losses leave free
    axis.set_xlim(*style.limits(runs.c))
    low, high = runs.loss.min(), runs.loss.max()  # a wild interval must not hide the runs
    room = 0.1 + 0.05 * len(legend.get_texts())
    axis.set_ylim(low - room * (high - low), high + 0.05 * (high - low))
    style.log_axis(axis, "x", counts=False)
    return figure


def plot_optimum(runs: Runs, fits: list[Fit], args: argparse.Namespace) -> style.Figure:
    curves = [(fit, curve) for fit in fits if (curve := optimum_curve(fit)) is not None]
    minima = {kind: parabolas(runs, kind, args.window, fits) for kind in runs.kinds()}
    if not curves and not any(len(p) > 1 for p in minima.values()):
        raise NotPossible("no fit with an optimum and fewer than two budgets with a parabola")
    figure, axes = style.figure(style.TWO_COLUMNS, 3.3, 1, 2, sharex=True)
    for axis, letter in zip(axes[0], "ND"):
        for index, (kind, found) in enumerate(minima.items()):
            good = [(i, p) for i, p in found.items() if p.n_min == p.n_min]
            if not good:
                continue
            y = []
            for i, p in good:
                rows = (runs.budget == i) & (runs.kind == kind)
                # tokens at the minimum: interpolated between the budget's own runs
                order = np.argsort(runs.n[rows])
                d = np.exp(np.interp(math.log(p.n_min), np.log(runs.n[rows][order]),
                                     np.log(runs.d[rows][order])))
                y.append(p.n_min if letter == "N" else d)
            look = style.category(index)
            axis.plot([runs.budgets[i] for i, _ in good], y, look["marker"], color=look["color"],
                      markersize=6, markeredgecolor="white", label=f"minimum at a budget, {kind}", zorder=4)
        for index, (fit, curve) in enumerate(curves):
            look = style.line_of(index)
            exponent = (fit.raw["optimum"]).get("a" if letter == "N" else "b")
            interval = fit.interval("a" if letter == "N" else "b")
            text = f"{fit.label}: ${letter}_\\mathrm{{opt}}\\propto C^{{{exponent:.3f}}}$"
            if interval:
                text += f" ({interval[0]:.2f}–{interval[1]:.2f})"
            axis.plot(curve["C"], curve[letter], label=text, **look)
            if f"{letter}_lo" in curve:
                axis.fill_between(curve["C"], curve[f"{letter}_lo"], curve[f"{letter}_hi"],
                                  color=look["color"], alpha=0.15, linewidth=0)
        axis.set_xlabel("C, training compute (FLOPs)")
        axis.set_yscale("log")
        axis.legend(loc="upper left")
    axes[0][0].set_ylabel(f"$N_\\mathrm{{opt}}$, {runs.n_label}")
    axes[0][1].set_ylabel("$D_\\mathrm{opt}$, training tokens")
    for axis, values in zip(axes[0], (runs.n, runs.d)):
        low, high = axis.get_ylim()
        # a wild fit or interval must not hide the runs
        low, high = max(low, values.min() / 30), min(high, values.max() * 30)
        axis.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend
        style.log_axis(axis, "x", counts=False)
        style.log_axis(axis, "y", counts=True)
    return figure


def law_text(fit: Fit) -> str:
    """The law with its constants in one line of mathematics."""
    p = fit.params

    def constant(value: float) -> str:
        return f"{value:.4g}" if 1e-3 < value < 1e5 else style.power(value, 3).strip("$")

    return (f"$L = {p['E']:.3f} + {constant(p['A'])}/N^{{{p['alpha']:.3f}}} + "
            f"{constant(p['B'])}/D^{{{p['beta']:.3f}}}$")


def parametric(fits: list[Fit]) -> Fit:
    chosen = [fit for fit in fits if fit.is_parametric()]
    if not chosen:
        raise NotPossible("no --fit with a parametric law (approach 3)")
    return next((fit for fit in chosen if fit.law == "chinchilla"), chosen[0])


def plot_contours(runs: Runs, fits: list[Fit]) -> style.Figure:
    fit = parametric(fits)
    rows = runs.kind == "dense" if (runs.kind == "dense").any() else np.full(len(runs.n), True)
    figure, axes = style.figure(style.ONE_COLUMN + 0.9, 3.9)
    axis = axes[0][0]
    n_range, d_range = style.limits(runs.n[rows], 0.12), style.limits(runs.d[rows], 0.12)
    n, d = np.meshgrid(np.geomspace(*n_range, 200), np.geomspace(*d_range, 200))
    loss = fit.predict(n, d)
    shown = runs.loss[rows]
    low, high = min(loss.min(), shown.min()), max(np.percentile(shown, 98), loss.min() + 0.1)
    levels = np.geomspace(low, high, 13)
    # light throughout, so that black lines and labels can be read on all of it
    colour_map = style.light_map()
    norm = BoundaryNorm(levels, colour_map.N, extend="max")
    colours = axis.contourf(n, d, loss, levels=levels, cmap=colour_map, norm=norm, extend="max")
    lines = axis.contour(n, d, loss, levels=levels, colors=style.GREY, linewidths=0.5)
    axis.clabel(lines, levels[1::2], fmt="%.2f", fontsize=7, colors="black")
    axis.scatter(runs.n[rows], runs.d[rows], c=np.clip(shown, low, None), cmap=colour_map, norm=norm, s=26,
                 edgecolors="black", linewidths=0.9, zorder=5)
    curve = optimum_curve(fit)
    if curve is not None:
        axis.plot(curve["N"], curve["D"], color=style.VERMILION, label="compute-optimal", zorder=3)
    for index, budget in enumerate(runs.budgets):
        if len(runs.budgets) > 6:
            break
        here = (runs.budget == index) & rows
        order = np.argsort(runs.n[here])
        axis.plot(runs.n[here][order], runs.d[here][order], color="black", linewidth=0.8,
                  linestyle=":", label="runs of one budget" if index == 0 else None)
    axis.set_xlim(*n_range)
    axis.set_ylim(*d_range)
    axis.set_xlabel("N, " + runs.n_label)
    axis.set_ylabel("D, training tokens")
    axis.set_title(law_text(fit), fontsize=8.5, fontweight="normal")
    axis.legend(loc="lower left", frameon=True, edgecolor="none", framealpha=0.85)
    axis.grid(False)
    bar = figure.colorbar(colours, ax=axis, label="loss (nats per token); circles: measured", pad=0.02)
    bar.set_ticks(levels[::2], labels=[f"{v:.2f}" for v in levels[::2]])
    style.log_axis(axis, "x", counts=True)
    style.log_axis(axis, "y", counts=True)
    return figure


def predictions(runs: Runs, fits: list[Fit]) -> tuple[Fit, np.ndarray, np.ndarray]:
    """The law that covers most runs, the rows it covers and its predictions for them."""
    best: tuple[Fit, np.ndarray, np.ndarray] | None = None
    for fit in fits:
        if not fit.is_parametric():
            continue
        n = runs.n_as(fit.raw.get("n_definition"))
        multiplier = np.array([fit.multiplier(kind) for kind in runs.kind])
        rows = ~np.isnan(multiplier)
        if best is None or rows.sum() > best[1].sum():
            best = fit, rows, fit.predict(n[rows], runs.d[rows], multiplier[rows])
    if best is None or not best[1].any():
        raise NotPossible("no --fit with a parametric law (approach 3)")
    return best


def plot_residuals(runs: Runs, fits: list[Fit]) -> style.Figure:
    fit, rows, predicted = predictions(runs, fits)
    residual = 100 * np.log(runs.loss[rows] / predicted)
    figure, axes = style.figure(style.TWO_COLUMNS, 2.9, 1, 3, sharey=True,
                                gridspec_kw={"width_ratios": (1, 1, 0.55)})
    kinds = [k for k in runs.kinds() if k in set(runs.kind[rows])]
    for axis, values, label in ((axes[0][0], runs.n, "N, " + runs.n_label),
                                (axes[0][1], runs.d, "D, training tokens")):
        for index, kind in enumerate(kinds):
            here = runs.kind[rows] == kind
            look = style.category(index)
            axis.plot(values[rows][here], residual[here], look["marker"], color=look["color"],
                      markeredgecolor="white", markeredgewidth=0.4, alpha=0.85, label=kind)
        axis.axhline(0, color="black", linewidth=0.8)
        sigma = noise(runs)
        if sigma == sigma:
            share = 100 * sigma / runs.loss[rows].mean()
            axis.axhspan(-2 * share, 2 * share, color=style.GREY, alpha=0.15, linewidth=0)
            style.note(axis, f"band: ±2 σ between seeds, σ = {sigma:.4f} nats", y=0.02)
        axis.set_xlabel(label)
        style.log_axis(axis, "x", counts=True)
    axes[0][0].set_ylabel("100 ln(measured / predicted)")
    low, high = axes[0][0].get_ylim()
    axes[0][0].set_ylim(low, high + (0.12 + 0.06 * (len(kinds) - 1)) * (high - low))  # room for the legend
    axes[0][0].legend(loc="upper right", ncols=min(len(kinds), 3))
    axes[0][2].hist(residual, bins=min(25, max(6, len(residual) // 3)), orientation="horizontal",
                    color=style.SKY, edgecolor="white", linewidth=0.5)
    axes[0][2].set_xlabel("runs")
    axes[0][2].set_xlim(0, 2.1 * axes[0][2].get_xlim()[1])  # room for the note
    style.note(axes[0][2], f"{fit.label}\n{len(residual)} runs\nrms {np.sqrt(np.mean(residual**2)):.2f}")
    return figure


def plot_multipliers(runs: Runs, fits: list[Fit]) -> style.Figure:
    fit = next((f for f in fits if any(name.startswith("m ") for name in f.params)), None)
    if fit is None:
        raise NotPossible("no --fit of the multipliers law with a kind of experts beside the reference")
    names = [name for name in fit.params if name.startswith("m ")]
    figure, axes = style.figure(style.ONE_COLUMN, 1.3 + 0.38 * len(names))
    axis = axes[0][0]
    for index, name in enumerate(names):
        value, interval, look = fit.params[name], fit.interval(name), style.category(index + 1)
        if interval:
            axis.plot(interval, (index, index), color=look["color"], linewidth=2.2)
        axis.plot(value, index, look["marker"], color=look["color"], markersize=7,
                  markeredgecolor="white")
        text = f"×{value:.2f}" + (f"  ({interval[0]:.2f}–{interval[1]:.2f})" if interval else "")
        axis.annotate(text, (value, index), textcoords="offset points", xytext=(0, 8), ha="center",
                      fontsize=7.5)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(range(len(names)), labels=[name.removeprefix("m ") for name in names])
    axis.set_ylim(-0.6, len(names) - 0.3)
    axis.set_xlabel("worth of an active parameter in dense ones (95 % interval)")
    axis.grid(False, axis="y")
    ends = [v for name in names for v in (fit.interval(name) or (fit.params[name],) * 2)] + [1.0]
    axis.set_xlim(*style.limits(ends, 0.12))
    style.log_axis(axis, "x", counts=True)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=pathlib.Path, help="run table (CSV) or a sweep's folder")
    parser.add_argument("--fit", type=pathlib.Path, nargs="*", default=[], metavar="FIT.json",
                        help="outputs of degu fit --json")
    parser.add_argument("--columns", help='names in a foreign table: N="…",D="…",C="…",L="…"')
    parser.add_argument("--drop-highest", type=int, default=0, metavar="n",
                        help="leave out the n runs with the highest losses")
    parser.add_argument("--window", type=float, default=8,
                        help="parabolas use runs within this factor of the budget's best N")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the plots")
    parser.add_argument("--json", action="store_true", help="print one object: files and what was skipped")
    args = parser.parse_args()

    runs = read_runs(args.runs, parse_columns(args.columns), args.drop_highest)
    fits = read_fits(args.fit)
    plots = {
        "isoflop": lambda: plot_isoflop(runs, fits, args),
        "frontier": lambda: plot_frontier(runs, fits),
        "optimum": lambda: plot_optimum(runs, fits, args),
        "contours": lambda: plot_contours(runs, fits),
        "residuals": lambda: plot_residuals(runs, fits),
        "multipliers": lambda: plot_multipliers(runs, fits),
    }
    style.draw_all(plots, args.out, as_json=args.json)


if __name__ == "__main__":
    main()
