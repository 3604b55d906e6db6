"""Run tables and fits as the plots need them: read, checked, grouped into budgets and kinds of model."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import pathlib
import sys

import numpy as np

# What N counts (src/scaling/laws/law.h), for axis labels.
N_LABELS = {
    "n_total": "all parameters",
    "n_active": "parameters one token uses",
    "n_total_no_embedding": "parameters without embedding and head",
    "n_active_no_embedding": "active parameters without embedding and head",
    "n_active_with_head": "active parameters with embedding and head",
}
# Columns of a run table, first name found; --columns overrides.
DEFAULT_COLUMNS = {
    "N": ("n_active", "N"),
    "D": ("tokens", "D"),
    "C": ("flops", "C"),
    "L": ("val_loss", "validation_loss", "loss", "L"),
    "E": ("experts",),
    "K": ("top_k",),
    "G": ("granularity",),
}


@dataclasses.dataclass
class Runs:
    """One row per run; arrays of equal length."""

    n: np.ndarray
    d: np.ndarray
    c: np.ndarray
    loss: np.ndarray
    kind: np.ndarray    # "dense", "E8 K2 G2", …
    budget: np.ndarray  # index into budgets; -1: at no budget
    budgets: list[float]
    n_column: str
    columns: dict[str, np.ndarray]  # every column as text

    def kinds(self) -> list[str]:
        """Dense first, then by number of experts."""
        def order(kind: str) -> list[float]:
            return [] if kind == "dense" else [float(part[1:]) for part in kind.split()]
        return sorted(set(self.kind), key=order)

    def n_as(self, definition: str | None) -> np.ndarray:
        """N as another column counts it, where the table has that; else the table's N."""
        return self.columns[definition].astype(float) if definition in self.columns else self.n

    @property
    def n_label(self) -> str:
        return N_LABELS.get(self.n_column, "parameters")


def parse_columns(text: str | None) -> dict[str, str]:
    """N="Model Size",C=flops -> {"N": "Model Size", "C": "flops"}."""
    chosen = {}
    for part in (text or "").split(","):
        if not part:
            continue
        key, _, name = part.partition("=")
        if key not in DEFAULT_COLUMNS or not name:
            raise SystemExit(f"--columns: {part!r} is not one of {', '.join(DEFAULT_COLUMNS)}=NAME")
        chosen[key] = name.strip('"')
    return chosen


def table_file(path: pathlib.Path) -> pathlib.Path:
    """A sweep's folder stands for the run table in it."""
    return path / "runs.csv" if path.is_dir() else path


def read_runs(path: pathlib.Path, columns: dict[str, str], drop_highest: int = 0) -> Runs:
    """Finished runs with finite losses; says on standard error which rows it left out."""
    path = table_file(path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    if not rows:
        raise SystemExit(f"{path}: no rows")

    names = {}
    for key, candidates in DEFAULT_COLUMNS.items():
        found = [columns[key]] if key in columns else [c for c in candidates if c in rows[0]]
        if key in columns and columns[key] not in rows[0]:
            raise SystemExit(f"{path}: no column {columns[key]!r} among {', '.join(rows[0])}")
        names[key] = found[0] if found else None
    if names["L"] is None or sum(names[k] is not None for k in "NDC") < 2:
        raise SystemExit(f"{path}: needs a loss and two of N, D, C among its columns "
                         f"{', '.join(rows[0])}; name them with --columns")

    def value(row: dict[str, str], key: str, default: float) -> float:
        text = row[names[key]] if names[key] else ""
        return float(text) if text not in ("", None) else default

    kept, left_out = [], {}
    for row in rows:
        status = row.get("status", "done")
        if status not in ("done", "finished", "ok"):
            left_out[status] = left_out.get(status, 0) + 1
        elif row.get("annealed", "1") in ("0", "false"):
            left_out["learning rate not decayed"] = left_out.get("learning rate not decayed", 0) + 1
        elif not math.isfinite(value(row, "L", math.nan)):
            left_out["no finite loss"] = left_out.get("no finite loss", 0) + 1
        else:
            kept.append(row)
    if drop_highest:
        kept.sort(key=lambda row: value(row, "L", math.nan))
        kept, left_out["highest losses"] = kept[:-drop_highest], drop_highest
    for why, count in left_out.items():
        print(f"{path.name}: {count} rows left out: {why}", file=sys.stderr)
    if not kept:
        raise SystemExit(f"{path}: no finished run")

    def column(key: str, default: float = math.nan) -> np.ndarray:
        return np.array([value(row, key, default) for row in kept])

    n, d, c = column("N"), column("D"), column("C")
    n = np.where(np.isnan(n), c / (6 * d), n)
    d = np.where(np.isnan(d), c / (6 * n), d)
    c = np.where(np.isnan(c), 6 * n * d, c)
    kind = np.array([kind_label(e, k, g) for e, k, g in zip(column("E", 0), column("K", 1), column("G", 1))])
    texts = {name: np.array([row[name] for row in kept]) for name in rows[0]}
    budget, budgets = group_budgets(c, texts.get("budget"))
    return Runs(n, d, c, column("L"), kind, budget, budgets, names["N"] or "N", texts)


def kind_label(experts: float, top_k: float, granularity: float) -> str:
    return "dense" if experts <= 1 else f"E{experts:g} K{top_k:g} G{granularity:g}"


def group_budgets(c: np.ndarray, named: np.ndarray | None,
                  gap: float = 0.12) -> tuple[np.ndarray, list[float]]:
    """Runs of one budget: those the sweep planned so, or, in a foreign table, neighbours in ln C that are
    closer than `gap`, at least four of them within a factor of 1.5 in all."""
    if named is not None and all(text not in ("", "0") for text in named):
        values = np.array([float(text) for text in named])
        budgets = sorted(set(values))
        return np.array([budgets.index(v) for v in values]), budgets
    order = np.argsort(c)
    pieces = np.split(order, np.nonzero(np.diff(np.log(c[order])) > gap)[0] + 1)
    budget, budgets = np.full(len(c), -1), []
    for piece in pieces:
        if len(piece) >= 4 and c[piece].max() / c[piece].min() < 1.5:
            budget[piece] = len(budgets)
            budgets.append(float(np.exp(np.log(c[piece]).mean())))
    return budget, budgets


@dataclasses.dataclass
class Parabola:
    """loss = p(ln N) through one budget's runs of one kind."""

    coefficients: np.ndarray
    n_low: float
    n_high: float
    n_min: float    # nan when the parabola opens downwards or its minimum is outside the runs
    loss_min: float


def fit_parabola(n: np.ndarray, loss: np.ndarray, window: float) -> Parabola | None:
    """Within a factor `window` of the best N, the three nearest runs at least; None below three sizes."""
    log_n = np.log(n)
    distance = np.abs(log_n - log_n[loss.argmin()])
    near = distance <= max(math.log(window), np.sort(distance)[min(2, len(n) - 1)] + 1e-12)
    if len(set(np.round(log_n[near], 9))) < 3:
        return None
    centre = log_n[near].mean()
    a, b, constant = np.polyfit(log_n[near] - centre, loss[near], 2)
    # back to powers of ln N itself
    coefficients = np.array([a, b - 2 * a * centre, constant - b * centre + a * centre**2])
    low, high = n[near].min(), n[near].max()
    n_min = math.exp(centre - b / (2 * a)) if a > 0 else math.nan
    if not low <= n_min <= high:
        n_min = math.nan
    return Parabola(coefficients, low, high, n_min,
                    float(np.polyval(coefficients, math.log(n_min))) if n_min == n_min else math.nan)


@dataclasses.dataclass
class Fit:
    """What `degu fit --json` printed."""

    law: str
    approach: int
    params: dict[str, float]
    raw: dict

    @property
    def label(self) -> str:
        return f"approach {self.approach}" if self.law == "chinchilla" else self.law

    def is_parametric(self) -> bool:
        """A formula in N and D: E + A/(m N)^alpha + B/D^beta."""
        return {"E", "A", "B", "alpha", "beta"} <= self.params.keys()

    def multiplier(self, kind: str) -> float:
        return 1.0 if kind == "dense" else self.params.get(f"m {kind}", math.nan)

    def predict(self, n: np.ndarray, d: np.ndarray, multiplier: np.ndarray | float = 1.0) -> np.ndarray:
        p = self.params
        return p["E"] + p["A"] / (multiplier * n) ** p["alpha"] + p["B"] / d ** p["beta"]

    def interval(self, name: str) -> tuple[float, float] | None:
        entry = self.raw.get("bootstrap", {}).get("params", {}).get(name)
        return (entry["lo"], entry["hi"]) if entry else None


def parabola_of_fit(fit: Fit, budget: float) -> Parabola | None:
    """The budget's parabola in a fit by approach 2."""
    for minimum in fit.raw.get("minima", []):
        if abs(math.log(minimum["C"] / budget)) < 0.06 and minimum["parabola"]:
            low, high = minimum["sizes"]
            inside = minimum["kept"] and not minimum["at_edge"]
            return Parabola(np.array(minimum["parabola"][::-1]), low, high,
                            minimum["N"] if inside else math.nan, minimum["L"] if inside else math.nan)
    return None


def read_fits(paths: list[pathlib.Path]) -> list[Fit]:
    fits = []
    for path in paths:
        raw = json.loads(path.read_text())
        fits.append(Fit(raw["law"], int(raw.get("approach", 3)), raw.get("params") or {}, raw))
    return fits
