"""One look for all of degu's plots: readable in print, in grey and by colour-blind readers.

Categories take a colour of Okabe and Ito (2008) and a marker of their own, so that neither alone carries the
meaning; ordered quantities (budgets, widths) take a ramp whose lightness falls evenly.
"""

from __future__ import annotations

import io
import json
import math
import pathlib
import sys
from collections.abc import Callable, Sequence

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)
import numpy as np  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.colors import LinearSegmentedColormap  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter  # noqa: E402
from PIL import Image  # noqa: E402  (matplotlib's own dependency)


class NotPossible(Exception):
    """The data do not allow this plot."""


BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
# Yellow is left out: too faint on paper.
CATEGORIES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
GREY = "#666666"

ONE_COLUMN, TWO_COLUMNS = 4.6, 7.6  # inches

plt.rcParams.update({
    "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9, "legend.fontsize": 7.5,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.frameon": False, "legend.handlelength": 2.2,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5, "axes.axisbelow": True, "lines.linewidth": 1.4, "lines.markersize": 4.5,
    "figure.constrained_layout.use": True, "savefig.dpi": 200, "pdf.fonttype": 42, "axes.titleweight": "bold",
    "axes.titlelocation": "left",
})


def category(index: int) -> dict[str, object]:
    """Colour and marker of the index-th category."""
    return {"color": CATEGORIES[index % len(CATEGORIES)], "marker": MARKERS[index % len(MARKERS)]}


def line_of(index: int) -> dict[str, object]:
    return {"color": CATEGORIES[index % len(CATEGORIES)], "linestyle": LINES[index % len(LINES)]}


def ramp(count: int) -> list[tuple[float, ...]]:
    """Colours for an ordered quantity, dark (low) to light (high)."""
    return [plt.get_cmap("viridis")(v) for v in np.linspace(0.0, 0.82, max(count, 1))]


def light_map() -> LinearSegmentedColormap:
    """The light part of YlGnBu, low values lightest: black can be read on all of it."""
    return LinearSegmentedColormap.from_list("light", plt.get_cmap("YlGnBu")(np.linspace(0.02, 0.62, 64)))


def number(value: float, digits: int = 2) -> str:
    """17840000 -> 17.8M; for labels of counts."""
    if not math.isfinite(value):
        return str(value)
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale * 0.9995:
            return f"{value / scale:.{digits + 1}g}{suffix}"
    return f"{value:.{digits + 1}g}"


def power(value: float, digits: int = 2) -> str:
    """4e11 -> $4 \\times 10^{11}$, with no more digits than the value has."""
    if not value > 0:
        return f"${value:g}$"
    exponent = math.floor(math.log10(value) + 1e-9)
    mantissa = round(value / 10.0**exponent, digits)
    if mantissa >= 10:
        mantissa, exponent = mantissa / 10, exponent + 1
    base = f"10^{{{exponent}}}"
    return f"${base}$" if mantissa == 1 else f"${mantissa:g}\\times{base}$"


def _ticks(low: float, high: float, wide: bool) -> list[float]:
    """Ticks of a logarithmic axis: decades when it spans many, else the coarsest steps that give enough. Wide
    labels (powers) get fewer."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [s * 10.0**e for e in range(first, last + 1) for s in steps
                 if low * 0.999 <= s * 10.0**e <= high * 1.001]
        if len(ticks) >= (2 if wide else 4):
            break
    return ticks


def log_axis(axis: Axes, which: str, *, counts: bool) -> None:
    """A logarithmic axis whose labels are counts (2M) or powers (4e11). Call it once all is drawn."""
    (axis.set_xscale if which == "x" else axis.set_yscale)("log")
    target = axis.xaxis if which == "x" else axis.yaxis
    low, high = axis.get_xlim() if which == "x" else axis.get_ylim()
    target.set_major_locator(FixedLocator(_ticks(low, high, wide=not counts)))
    target.set_minor_locator(LogLocator(subs=tuple(range(2, 10))))
    target.set_minor_formatter(NullFormatter())
    target.set_major_formatter(FuncFormatter(lambda v, _: number(v) if counts else power(v)))


def limits(values: Sequence[float], margin: float = 0.06) -> tuple[float, float]:
    """Limits of a logarithmic axis around the values."""
    low, high = math.log(min(values)), math.log(max(values))
    pad = max((high - low) * margin, 0.02)
    return math.exp(low - pad), math.exp(high + pad)


def figure(width: float, height: float, rows: int = 1, columns: int = 1,
           **kwargs: object) -> tuple[Figure, np.ndarray]:
    """A figure and its axes as a two-dimensional array."""
    return plt.subplots(rows, columns, figsize=(width, height), squeeze=False, **kwargs)


def note(axis: Axes, text: str, x: float = 0.98, y: float = 0.98, **kwargs: object) -> None:
    """A line of constants inside the axes."""
    style: dict[str, object] = {"ha": "right" if x > 0.5 else "left", "va": "top" if y > 0.5 else "bottom",
                                "fontsize": 7.5, "color": "#222222", "zorder": 10,
                                "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}}
    axis.text(x, y, text, transform=axis.transAxes, **(style | kwargs))


def save(drawn: Figure, folder: pathlib.Path, name: str) -> pathlib.Path:
    """NAME.png and NAME.pdf, each put in place whole. No creation date: the same data give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", metadata={"Software": None})
    # 256 colours are enough for a plot and a third of the bytes
    image = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    partial = folder / f".{name}.partial.png"
    image.save(partial, optimize=True, dpi=(plt.rcParams["savefig.dpi"],) * 2)
    partial.replace(folder / f"{name}.png")
    partial = folder / f".{name}.partial.pdf"
    drawn.savefig(partial, metadata={"CreationDate": None})
    partial.replace(folder / f"{name}.pdf")
    plt.close(drawn)
    return folder / f"{name}.png"


def draw_all(plots: dict[str, Callable[[], Figure]], folder: pathlib.Path, *, as_json: bool,
             skipped: dict[str, str] | None = None) -> None:
    """Draws each plot that the data allow and prints the files; the others are named with the reason."""
    written, skipped = [], dict(skipped or {})
    for name, draw in plots.items():
        try:
            written.append(str(save(draw(), folder, name)))
        except NotPossible as reason:
            skipped[name] = str(reason)
    if as_json:
        print(json.dumps({"written": written, "skipped": skipped}))
        return
    for path in written:
        print(path)
    for name, reason in skipped.items():
        print(f"{name}: not drawn: {reason}", file=sys.stderr)
