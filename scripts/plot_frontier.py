#!/usr/bin/python3
"""Quality against cost, with latency as colour, of every way to serve that `degu profile` measured.

  scripts/plot_frontier.py PROFILE.json --out plots [--priority quality|latency|cost] [--name frontier] [--json]

A point is a model, a level and a batch size. Points that another one beats in everything are faded; the line joins
the points with the best quality for their cost; a ring marks what the profile recommends for the priority.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import plot_style as style
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# The dark nine tenths of cividis: lightness falls evenly, and colour-blind readers see the same order.
LATENCY_MAP = "cividis"
FADED = 0.25


def load(path: pathlib.Path) -> dict[str, Any]:
    try:
        profile = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: {error}") from error
    if not isinstance(profile, dict) or not str(profile.get("format", "")).startswith("degu profile"):
        raise SystemExit(f"{path}: not a profile that `degu profile --out` wrote")
    return profile


def best_front(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points with less bits per byte than every cheaper one, by cost."""
    front: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda p: (p["cost_per_request"], p["bits_per_byte"])):
        if not front or point["bits_per_byte"] < front[-1]["bits_per_byte"]:
            front.append(point)
    return front


def cost_text(value: float) -> str:
    return f"{value:.3g}"


def label_points(axis: Any, points: list[dict[str, Any]], names: list[str], marked: dict[str, Any]) -> None:
    """The batch size beside each point that is not dominated."""
    for point in points:
        if point["dominated"]:
            continue
        up = names.index(point["name"]) % 2 == 0
        gap = 10 if point is marked else 6
        axis.annotate(str(point["batch"]), (point["cost"], point["bits_per_byte"]), xytext=(0, gap if up else -gap),
                      textcoords="offset points", ha="center", va="bottom" if up else "top", fontsize=7,
                      color="#222222")


def latency_bar(drawn: Figure, axis: Any, norm: LogNorm, colours: Colormap) -> None:
    bar = drawn.colorbar(ScalarMappable(norm=norm, cmap=colours), ax=axis, pad=0.02, fraction=0.05)
    bar.set_label("time between tokens, 95th percentile [ms]")
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.outline.set_visible(False)


def legend(axis: Any, names: list[str], priority: str) -> None:
    handles = [Line2D([], [], linestyle="none", marker=style.MARKERS[i % len(style.MARKERS)], color=style.GREY,
                      markersize=6, label=name) for i, name in enumerate(names)]
    handles.append(Line2D([], [], linestyle="none", marker="o", markerfacecolor="none", markeredgewidth=1.6,
                          color=style.VERMILION, markersize=11, label=f"recommended for {priority}"))
    handles.append(Line2D([], [], color=style.GREY, linewidth=1, label="least bits per byte for the cost"))
    handles.append(Line2D([], [], linestyle="none", marker="s", color=style.GREY, alpha=FADED, markersize=6,
                          label="faded: another is no worse in all three"))
    axis.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=2)


def frontier(profile: dict[str, Any], priority: str) -> Figure:
    points = [dict(p) for p in profile.get("frontier", [])]
    if not points:
        raise style.NotPossible("the profile has no points: quality was not measured (--no-quality)")
    thousand = 1e3
    free = profile["price_per_hour"] == 0
    for point in points:  # per 1,000 requests; without a price the machine's seconds
        point["cost"] = point["cost_per_request"] * thousand
        point["latency"] = point["itl_p95_seconds"] * thousand
    if free:
        raise style.NotPossible("the price per hour is 0, so nothing has a cost; profile with --price-per-hour")
    names = list(dict.fromkeys(p["name"] for p in points))
    latencies = [p["latency"] for p in points]
    low, high = min(latencies), max(latencies)
    norm = LogNorm(low / 1.05, high * 1.05)
    colours = style.plt.get_cmap(LATENCY_MAP)

    drawn, axes = style.figure(style.TWO_COLUMNS, 4.6)
    axis = axes[0, 0]
    front = best_front(points)
    axis.step([p["cost"] for p in front], [p["bits_per_byte"] for p in front], where="post", color=style.GREY,
              linewidth=1, zorder=1)
    for point in points:
        axis.scatter(point["cost"], point["bits_per_byte"], s=46, color=[colours(norm(point["latency"]))],
                     marker=style.MARKERS[names.index(point["name"]) % len(style.MARKERS)],
                     alpha=FADED if point["dominated"] else 1.0, edgecolors="#222222", linewidths=0.5,
                     zorder=2 if point["dominated"] else 3)
    chosen = profile["recommended"][priority]
    marked = next(p for p in points if p["name"] == chosen["name"] and p["batch"] == chosen["batch"])
    axis.scatter(marked["cost"], marked["bits_per_byte"], s=190, facecolors="none", edgecolors=style.VERMILION,
                 linewidths=1.6, zorder=4)
    label_points(axis, points, names, marked)
    axis.margins(y=0.12)
    axis.set_xlim(*style.limits([p["cost"] for p in points]))
    style.log_axis(axis, "x", counts=True)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: cost_text(v)))
    axis.ticklabel_format(axis="y", useOffset=False)
    work = profile["workload"]
    axis.set_xlabel(f"cost of 1,000 requests ({work['prompt_tokens']} tokens in, {work['max_tokens']} out; "
                    f"machine at {profile['price_per_hour']:g} per hour)")
    axis.set_ylabel("bits per byte on held-out text (lower is better)")
    axis.set_title(f"{chosen['name']}, {chosen['batch']} at once: {chosen['rule']}", fontsize=8.5)
    latency_bar(drawn, axis, norm, colours)
    legend(axis, names, priority)
    style.note(axis, "numbers: requests in a batch", x=0.98, y=0.98)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", type=pathlib.Path, help="profile.json of `degu profile --out`")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the PNG and the PDF")
    parser.add_argument("--priority", choices=("quality", "latency", "cost"), help="default: the profile's own")
    parser.add_argument("--name", default="frontier", help="of the files, without suffix")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    arguments = parser.parse_args()
    profile = load(arguments.profile)
    priority = arguments.priority or profile.get("priority", "cost")
    style.draw_all({arguments.name: lambda: frontier(profile, priority)}, arguments.out, as_json=arguments.json)


if __name__ == "__main__":
    main()
