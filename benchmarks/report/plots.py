"""The plots of a report as matplotlib figures; a plot for which there is no data is left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.ops import parse
from benchmarks.report.figures import Figures, figures, ours
from benchmarks.results import Document

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Colours that the colour-blind can distinguish (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    """A figure of `size` inches and its axes; matplotlib is imported here, because only plots need it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns)


def _axes(title: str, x: str, y: str) -> tuple[Figure, Any]:
    figure, axes = new_figure(1, 1, (6, 4.2))
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(True, which="major", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _style(i: int) -> dict[str, Any]:
    """The colour and dashes of the i-th line."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": ("-", "--", ":", "-.")[i // len(COLOURS) % 4]}


def roofline(document: Document) -> Figure | None:
    """TFLOP/s against FLOP per byte, under the measured ceilings."""
    points = [entry for entry in ours(document) if entry.tflops and entry.row["bytes"] and entry.row["op"] != "network"]
    copy = document["ceilings"].get("copy_gb_s")
    if not points or not copy:
        return None
    figure, axes = _axes("Roofline", "FLOP per byte", "TFLOP/s")
    groups: dict[str, list[Figures]] = {}
    for entry in points:
        groups.setdefault(f"{entry.row['op']} {entry.row['dtype']} ({entry.provider})", []).append(entry)
    for i, (name, members) in enumerate(groups.items()):
        x = [entry.row["flops"] / entry.row["bytes"] for entry in members]
        axes.scatter(
            x,
            [entry.tflops for entry in members],
            s=18,
            label=name,
            color=COLOURS[i % len(COLOURS)],
            marker="os^Dv"[i // len(COLOURS) % 5],
        )
    low, high = axes.get_xlim()
    low = max(low, min(entry.row["flops"] / entry.row["bytes"] for entry in points) / 2)
    for dtype, peak in document["ceilings"].get("product_tflop_s", {}).items():
        if any(entry.row["dtype"] == dtype for entry in points):
            ridge = peak * 1e12 / (copy * 1e9)
            axes.plot([low, ridge, max(high, 2 * ridge)], [low * copy / 1e3, peak, peak], color="black", linewidth=1)
            axes.annotate(f"{dtype} {peak:.3g}", (max(high, 2 * ridge), peak), ha="right", va="bottom", fontsize=8)
    axes.set(xscale="log", yscale="log")
    axes.legend(fontsize=7, ncols=2)
    return figure


def ratios(document: Document) -> Figure | None:
    """The time of eager torch divided by ours for each case, sorted; a line for each op, direction, dtype, layout and engine."""
    groups: dict[str, list[float]] = {}
    for entry in ours(document):
        if "eager" in entry.ratios:
            name = f"{entry.row['op']} {entry.row['direction']} {entry.row['dtype']} {entry.row['layout']} ({entry.provider})"
            groups.setdefault(name, []).append(entry.ratios["eager"]["median"])
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
    """Microseconds per time step of unidirectional recurrences with one layer, against the extent `letter`.

    There is a line for each provider, direction of the case (fprop, train), dtype and value of the extent `fixed`; lines with a
    single value of `letter` are left out.
    """
    lines: dict[str, list[tuple[int, float]]] = {}
    for entry in measured:
        shape: Any = parse(entry.row["case"]).shape
        if shape.layers == 1 and shape.directions == 1 and entry.microseconds:
            name = f"{entry.provider} {entry.row['direction']} {entry.row['dtype']} {fixed}={getattr(shape, fixed)}"
            lines.setdefault(name, []).append((getattr(shape, letter), entry.microseconds / shape.T))
    return {name: points for name, points in lines.items() if len({x for x, _ in points}) > 1}


def steps(document: Document) -> Figure | None:
    """Microseconds per time step against the hidden size and against the batch size."""
    measured = [entry for entry in figures(document) if entry.row["op"] == "rnn"]
    sweeps = {letter: _sweep(measured, letter, fixed) for letter, fixed in (("H", "N"), ("N", "H"))}
    if not any(sweeps.values()):
        return None
    figure, both = new_figure(2, 1, (6, 7.5))
    for axes, (letter, lines) in zip(both, sweeps.items(), strict=True):
        for i, (name, points) in enumerate(lines.items()):
            axes.plot(*zip(*sorted(points), strict=True), label=name, marker=".", linewidth=1, **_style(i))
        axes.set(xlabel=letter, ylabel="µs per time step", xscale="log", yscale="log", title=f"µs per step against {letter}")
        axes.grid(True, alpha=0.25)
        if lines:
            axes.legend(fontsize=6)
    return figure


def memory(document: Document) -> Figure | None:
    """Peak memory of a call beyond its inputs, of each provider against eager torch."""
    peaks: dict[str, dict[str, int]] = {}
    for entry in figures(document):
        if entry.peak_bytes is not None:
            peaks.setdefault(entry.row["case"], {})[entry.provider] = entry.peak_bytes
    pairs = {
        name: [(peak["eager"] / 1e6, peak[name] / 1e6) for peak in peaks.values() if name in peak and "eager" in peak]
        for name in sorted({name for peak in peaks.values() for name in peak} - {"eager"})
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
    """The plots for which there is data, by name."""
    drawn = {name: plot(document) for name, plot in PLOTS.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG file without the version of matplotlib, so that the same data makes the same file."""
    figure.savefig(path, dpi=150, format="png", metadata={"Software": None})
