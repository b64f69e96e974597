"""Two results, case by case: never from a single number, but from the quartiles of both."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.ops.operation import is_engine
from benchmarks.report.text import align
from benchmarks.results import Document, differences
from benchmarks.timing import Summary

#: Changes smaller than this are no change: clocks and placement of memory move timings by as much.
TOLERANCE = 0.02


def verdict(old: Summary, new: Summary) -> str:
    """FASTER or SLOWER: the medians differ by more than the tolerance and the quartile ranges do not touch. SAME: they differ by
    less and both spreads are small enough to tell. UNSURE: anything else."""
    change = new.median / old.median - 1
    if abs(change) > TOLERANCE:
        if new.q3 < old.q1:
            return "FASTER"
        if new.q1 > old.q3:
            return "SLOWER"
        return "UNSURE"
    return "SAME" if max(old.spread, new.spread) <= 2 * TOLERANCE else "UNSURE"


@dataclass(frozen=True)
class Change:
    """What became of one timing."""

    case: str
    provider: str
    cache: str
    old: Summary
    new: Summary

    @property
    def verdict(self) -> str:
        return verdict(self.old, self.new)


def changes(old: Document, new: Document) -> Iterator[Change]:
    """Every timing of an engine of ours that both results have."""
    before = {row["case"]: row for row in old["rows"]}
    for row in new["rows"]:
        earlier = before.get(row["case"], {"providers": {}})["providers"]
        for provider, entry in row["providers"].items():
            for cache in ("cold", "warm"):
                if is_engine(provider) and cache in entry and cache in earlier.get(provider, {}):
                    yield Change(row["case"], provider, cache, Summary(**earlier[provider][cache]), Summary(**entry[cache]))


def broken(old: Document, new: Document) -> list[str]:
    """Cases that were right before and are not any more."""
    before = {(row["case"], name): entry["status"] for row in old["rows"] for name, entry in row["providers"].items()}
    return [
        f"{row['case']} ({name}): {entry['status']}: {entry['message']}"
        for row in new["rows"]
        for name, entry in row["providers"].items()
        if before.get((row["case"], name)) in ("ok", "checked") and entry["status"] not in ("ok", "checked")
    ]


def compare(old: Document, new: Document) -> int:
    """Prints the comparison; 0 if nothing became slower or wrong, 1 if something did, 2 if there was nothing to compare."""
    different = differences(old["environment"], new["environment"])
    if different:
        print("warning: measured under different conditions: " + "; ".join(different), file=sys.stderr)
    found = list(changes(old, new))
    failures = broken(old, new)
    if not found and not failures:
        print("the two results have no timing of ours in common", file=sys.stderr)
        return 2
    order = {"SLOWER": 0, "UNSURE": 1, "FASTER": 2, "SAME": 3}
    found.sort(key=lambda each: (order[each.verdict], -abs(each.new.median / each.old.median - 1)))
    rows = [
        (
            each.verdict,
            f"{each.old.median:.2f}",
            f"{each.new.median:.2f}",
            f"{each.new.median / each.old.median - 1:+.1%}",
            f"±{max(each.old.spread, each.new.spread) / 2:.1%}",
            each.provider,
            each.cache,
            each.case,
        )
        for each in found
    ]
    print(align(("", "old µs", "new µs", "change", "spread", "engine", "L2", "case"), rows, right=(1, 2, 3, 4)))
    for failure in failures:
        print(f"BROKEN  {failure}")
    counts = Counter(each.verdict for each in found)
    print(", ".join(f"{counts[name]} {name}" for name in order) + (f", {len(failures)} BROKEN" if failures else ""))
    return 1 if counts["SLOWER"] or failures else 0
