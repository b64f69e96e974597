"""The figures of each row, derived from the result file in one place for all tables, plots and pages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.ceilings import roofline_share
from benchmarks.providers import BASELINES, is_engine
from benchmarks.results import Document, Row

#: Times with a cold L2 cache are preferred, since a layer of a network rarely finds its inputs there. On a CPU all are warm.
CACHES = ("cold", "warm")


@dataclass(frozen=True)
class Figures:
    """The figures of one provider on one case."""

    row: Row
    provider: str
    status: str
    message: str
    microseconds: float | None
    q1: float | None
    q3: float | None
    tflops: float | None
    gb_s: float | None
    share: float | None  # of the roofline
    peak_bytes: int | None
    ratios: dict[str, dict[str, float]]  # by baseline

    @property
    def shape(self) -> str:
        return self.row["case"].rsplit("/", 1)[1]


def timing(entry: dict[str, Any]) -> dict[str, Any] | None:
    """The cold timing if there is one, and the warm one otherwise."""
    return next((entry[cache] for cache in CACHES if cache in entry), None)


def figures(document: Document) -> Iterator[Figures]:
    """The figures of every provider of every row."""
    for row in document["rows"]:
        for name, entry in row["providers"].items():
            measured = timing(entry) or {}
            seconds = measured["median"] * 1e-6 if measured else None
            by_baseline = {baseline: timing(row["ratios"].get(f"{name}/{baseline}", {})) for baseline in BASELINES}
            yield Figures(
                row=row,
                provider=name,
                status=entry["status"],
                message=entry["message"],
                microseconds=measured.get("median"),
                q1=measured.get("q1"),
                q3=measured.get("q3"),
                tflops=row["flops"] / seconds / 1e12 if seconds and row["flops"] else None,
                gb_s=row["bytes"] / seconds / 1e9 if seconds and row["bytes"] else None,
                share=roofline_share(row["flops"], row["bytes"], row["dtype"], seconds, document["ceilings"])
                if seconds
                else None,
                peak_bytes=entry.get("peak_bytes"),
                ratios={baseline: ratio for baseline, ratio in by_baseline.items() if ratio is not None},
            )


def ours(document: Document) -> list[Figures]:
    """The figures of our engines, without the baselines."""
    return [entry for entry in figures(document) if is_engine(entry.provider)]


def geomean(values: Iterable[float]) -> float | None:
    """The geometric mean of the positive values; None if there are none."""
    logs = [math.log(value) for value in values if value > 0]
    return math.exp(sum(logs) / len(logs)) if logs else None


def op_families(document: Document) -> dict[str, list[Figures]]:
    """The figures of our engines by op, in the order of the file."""
    families: dict[str, list[Figures]] = {}
    for entry in ours(document):
        families.setdefault(entry.row["op"], []).append(entry)
    return families
