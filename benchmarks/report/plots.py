"""The plots of a report, each as a matplotlib figure; those that the data has nothing for are left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure

from benchmarks.cases import parse
from benchmarks.report.figures import Figures, figures, ours
from benchmarks.results import Document

#: Told apart by the colour-blind as well (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")


def _axes(title: str, x: str, y: str, height: float = 4.2) -> tuple[Figure, Any]:
    figure, axes = pyplot.subplots(figsize=(6, height), layout="constrained")
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(True, which="major", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _style(i: int) -> dict[str, Any]:
    """The i-th line's colour and dashes."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": ("-", "--", ":", "-.")[i // len(COLOURS) % 4]}


def roofline(document: Document) -> Figure | None:
    """TFLOP/s against FLOP per byte, under the measured ceilings."""
    points = [each for each in ours(document) if each.tflops and each.row["bytes"] and each.row["op"] != "network"]
    copy = document["ceilings"].get("copy_gb_s")
    if not points or not copy:
        return None
    figure, axes = _axes("Roofline", "FLOP per byte", "TFLOP/s")
    groups: dict[str, list[Figures]] = {}
    for each in points:
        groups.setdefault(f"{each.row['op']} {each.row['dtype']} ({each.provider})", []).append(each)
    for i, (name, members) in enumerate(groups.items()):
        x = [each.row["flops"] / each.row["bytes"] for each in members]
        axes.scatter(
            x,
            [each.tflops for each in members],
            s=18,
            label=name,
            color=COLOURS[i % len(COLOURS)],
            marker="os^Dv"[i // len(COLOURS) % 5],
        )
    low, high = axes.get_xlim()
    low = max(low, min(each.row["flops"] / each.row["bytes"] for each in points) / 2)
    for dtype, peak in document["ceilings"].get("product_tflop_s", {}).items():
        if any(each.row["dtype"] == dtype for each in points):
            ridge = peak * 1e12 / (copy * 1e9)
            axes.plot([low, ridge, max(high, 2 * ridge)], [low * copy / 1e3, peak, peak], color="black", linewidth=1)
            axes.annotate(f"{dtype} {peak:.3g}", (max(high, 2 * ridge), peak), ha="right", va="bottom", fontsize=8)
    axes.set(xscale="log", yscale="log")
    axes.legend(fontsize=7, ncols=2)
    return figure


def ratios(document: Document) -> Figure | None:
    """Every case's ratio to eager torch, sorted, by op and direction."""
    groups: dict[str, list[float]] = {}
    for each in ours(document):
        if "eager" in each.ratios:
            name = f"{each.row['op']} {each.row['direction']} {each.row['dtype']} {each.row['layout']} ({each.provider})"
            groups.setdefault(name, []).append(each.ratios["eager"]["median"])
    if not groups:
        return None
    figure, axes = _axes("Times faster than eager torch, case by case", "cases, sorted", "eager / ours")
    for i, (name, values) in enumerate(groups.items()):
        axes.plot(range(1, len(values) + 1), sorted(values), label=name, marker=".", markersize=3, linewidth=1, **_style(i))
    axes.axhline(1, color="black", linewidth=1)
    axes.set(yscale="log")
    axes.legend(fontsize=6, ncols=2)
    return figure


def _sweep(measured: list[Figures], letter: str, fixed: str) -> dict[str, list[tuple[int, float]]]:
    """µs per step of one layer against an extent, a line for each value of the other."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for each in measured:
        shape: Any = parse(each.row["case"]).shape
        if shape.layers == 1 and shape.directions == 1 and each.microseconds:
            name = f"{each.provider} {each.row['direction']} {each.row['dtype']} {fixed}={getattr(shape, fixed)}"
            lines.setdefault(name, []).append((getattr(shape, letter), each.microseconds / shape.T))
    return {name: points for name, points in lines.items() if len({x for x, _ in points}) > 1}


def steps(document: Document) -> Figure | None:
    """µs per time step against the hidden size and against the batch, a line per provider and direction."""
    measured = [each for each in figures(document) if each.row["op"] == "rnn"]
    sweeps = {letter: _sweep(measured, letter, fixed) for letter, fixed in (("H", "N"), ("N", "H"))}
    if not any(sweeps.values()):
        return None
    figure, both = pyplot.subplots(2, 1, figsize=(6, 7.5), layout="constrained")
    for axes, (letter, lines) in zip(both, sweeps.items(), strict=True):
        for i, (name, points) in enumerate(lines.items()):
            axes.plot(*zip(*sorted(points), strict=True), label=name, marker=".", linewidth=1, **_style(i))
        axes.set(xlabel=letter, ylabel="µs per time step", xscale="log", yscale="log", title=f"µs per step against {letter}")
        axes.grid(True, alpha=0.25)
        if lines:
            axes.legend(fontsize=6)
    return figure


def memory(document: Document) -> Figure | None:
    """Peak memory of a call beyond its inputs, ours against torch's."""
    peaks: dict[str, dict[str, int]] = {}
    for each in figures(document):
        if each.peak_bytes is not None:
            peaks.setdefault(each.row["case"], {})[each.provider] = each.peak_bytes
    pairs = {
        name: [(each["eager"] / 1e6, each[name] / 1e6) for each in peaks.values() if name in each and "eager" in each]
        for name in sorted({name for each in peaks.values() for name in each} - {"eager"})
    }
    if not any(pairs.values()):
        return None
    figure, axes = _axes("Peak memory of a call beyond its inputs", "eager torch, MB", "MB")
    for i, (name, points) in enumerate(pairs.items()):
        axes.scatter(*zip(*points, strict=True), s=14, label=name, color=COLOURS[i])
    top = max(max(pair) for points in pairs.values() for pair in points)
    axes.plot([0, top], [0, top], color="black", linewidth=1)
    axes.legend(fontsize=8)
    return figure


PLOTS: dict[str, Callable[[Document], Figure | None]] = {"roofline": roofline, "ratios": ratios, "steps": steps, "memory": memory}


def draw(document: Document) -> dict[str, Figure]:
    """The plots the data has something for, by name."""
    drawn = {name: plot(document) for name, plot in PLOTS.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def save(figure: Figure, path: Path) -> None:
    """Writes a plot; the same data gives the same bytes."""
    figure.savefig(path, dpi=150, metadata={"Software": None} if path.suffix == ".png" else {"Date": None})
