"""The figures of a row: what every table, plot and page shows, derived from the result file in one place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.ceilings import roofline_share
from benchmarks.ops.operation import BASELINES, is_engine
from benchmarks.results import Document, Row

#: Cold, where it was measured: what a layer meets in a network. On a CPU there is only warm.
CACHES = ("cold", "warm")


@dataclass(frozen=True)
class Figures:
    """One provider on one case."""

    row: Row
    provider: str
    status: str
    message: str
    microseconds: float | None
    q1: float | None
    q3: float | None
    tflops: float | None
    gb_s: float | None
    share: float | None
    peak_bytes: int | None
    ratios: dict[str, dict[str, float]]

    @property
    def shape(self) -> str:
        return self.row["case"].rsplit("/", 1)[1]


def timing(entry: dict[str, Any]) -> dict[str, Any] | None:
    """The timing that counts: cold if there is one."""
    return next((entry[cache] for cache in CACHES if cache in entry), None)


def figures(document: Document) -> Iterator[Figures]:
    """Every provider of every row."""
    for row in document["rows"]:
        for name, entry in row["providers"].items():
            found = timing(entry)
            seconds = found["median"] * 1e-6 if found else None
            yield Figures(
                row,
                name,
                entry["status"],
                entry["message"],
                found["median"] if found else None,
                found["q1"] if found else None,
                found["q3"] if found else None,
                row["flops"] / seconds / 1e12 if seconds and row["flops"] else None,
                row["bytes"] / seconds / 1e9 if seconds and row["bytes"] else None,
                roofline_share(row["flops"], row["bytes"], row["dtype"], seconds, document["ceilings"]) if seconds else None,
                entry.get("peak_bytes"),
                {
                    baseline: ratio
                    for baseline in BASELINES
                    if (ratio := timing(row["ratios"].get(f"{name}/{baseline}", {}))) is not None
                },
            )


def ours(document: Document) -> list[Figures]:
    """The rows of our engines alone."""
    return [each for each in figures(document) if is_engine(each.provider)]


def geomean(values: Iterable[float]) -> float | None:
    """The geometric mean; None of nothing."""
    logs = [math.log(value) for value in values if value > 0]
    return math.exp(sum(logs) / len(logs)) if logs else None


def op_families(document: Document) -> dict[str, list[Figures]]:
    """Our rows by op, in the order of the file."""
    families: dict[str, list[Figures]] = {}
    for each in ours(document):
        families.setdefault(each.row["op"], []).append(each)
    return families
