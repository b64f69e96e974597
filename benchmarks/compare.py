"""The comparison of two results, case by case, by medians and quartiles."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.providers import is_engine
from benchmarks.report.text import align
from benchmarks.results import RIGHT, Document, differences
from benchmarks.timing import Summary

#: Smaller relative changes do not count, because clocks and the placement of memory change timings by as much.
TOLERANCE = 0.02


def verdict(old: Summary, new: Summary) -> str:
    """FASTER or SLOWER if the medians differ by more than the tolerance and the quartile ranges do not overlap, SAME if the
    medians differ by at most the tolerance and neither spread exceeds twice the tolerance, and UNSURE otherwise."""
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
    """One timing in the old and in the new result."""

    case: str
    provider: str
    cache: str
    old: Summary
    new: Summary

    @property
    def verdict(self) -> str:
        return verdict(self.old, self.new)


def changes(old: Document, new: Document) -> Iterator[Change]:
    """The engines' timings that are in both results."""
    before = {row["case"]: row for row in old["rows"]}
    for row in new["rows"]:
        earlier = before.get(row["case"], {"providers": {}})["providers"]
        for provider, entry in row["providers"].items():
            for cache in ("cold", "warm"):
                if is_engine(provider) and cache in entry and cache in earlier.get(provider, {}):
                    yield Change(
                        case=row["case"],
                        provider=provider,
                        cache=cache,
                        old=Summary(**earlier[provider][cache]),
                        new=Summary(**entry[cache]),
                    )


def broken(old: Document, new: Document) -> list[str]:
    """Returns a line for each case and provider with a right result in the old file and a wrong, failed or refused one in the
    new. A case that failed as a whole in the new file, but not in the old one, has one line instead.

    A provider without an entry in the new file is not reported, unless its case failed as a whole.
    """
    right = {(row["case"], name) for row in old["rows"] for name, entry in row["providers"].items() if entry["status"] in RIGHT}
    # A row has a message of its own if its case failed as a whole.
    sound = {case for case, _ in right} - {row["case"] for row in old["rows"] if row.get("message")}
    lines = []
    for row in new["rows"]:
        if row.get("message") and row["case"] in sound:
            lines.append(f"{row['case']}: {row['status']}: {row['message']}")
            continue
        lines += [
            f"{row['case']} ({name}): {entry['status']}: {entry['message']}"
            for name, entry in row["providers"].items()
            if (row["case"], name) in right and entry["status"] not in RIGHT
        ]
    return lines


def compare(old: Document, new: Document) -> int:
    """Prints the comparison. Returns 0 if nothing became slower or broken, 1 if something did, 2 if nothing can be compared."""
    different = differences(old["environment"], new["environment"])
    if different:
        print("warning: measured under different conditions: " + "; ".join(different), file=sys.stderr)
    changed = list(changes(old, new))
    failures = broken(old, new)
    if not changed and not failures:
        print("the two results have no timing of our engines in common", file=sys.stderr)
        return 2
    order = {"SLOWER": 0, "UNSURE": 1, "FASTER": 2, "SAME": 3}
    changed.sort(key=lambda change: (order[change.verdict], -abs(change.new.median / change.old.median - 1)))
    rows = [
        (
            change.verdict,
            f"{change.old.median:.2f}",
            f"{change.new.median:.2f}",
            f"{change.new.median / change.old.median - 1:+.1%}",
            f"±{max(change.old.spread, change.new.spread) / 2:.1%}",
            change.provider,
            change.cache,
            change.case,
        )
        for change in changed
    ]
    print(align(("", "old µs", "new µs", "change", "spread", "engine", "L2", "case"), rows, right=(1, 2, 3, 4)))
    for failure in failures:
        print(f"BROKEN  {failure}")
    counts = Counter(change.verdict for change in changed)
    print(", ".join(f"{counts[name]} {name}" for name in order) + (f", {len(failures)} BROKEN" if failures else ""))
    return 1 if counts["SLOWER"] or failures else 0
