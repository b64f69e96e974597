"""The tables of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from benchmarks.names import DIRECTIONS
from benchmarks.ops import OPERATIONS
from benchmarks.report.figures import Figures, geomean, op_families, ours
from benchmarks.report.text import align, markdown, microseconds
from benchmarks.results import Document

Table = Callable[[Sequence[str], Sequence[Sequence[str]], Sequence[int]], str]

OPS = list(OPERATIONS)

RULES = """\
Every result is compared with float64 before it is timed; a wrong one is not timed. Our calls and torch's are timed in turn in the
same run, and a ratio is the median over those pairs (above 1, ours is faster). torch is measured at its best: cuDNN searches all
its algorithms (`benchmark=True`, `benchmark_limit=0`), weights are in the same layout, RNN weights are flattened; casts and
transposes count on both sides. Short calls are replayed from a CUDA graph, on both sides or on neither. Times are medians with a
cold L2 cache. FLOPs include products with the padding; bytes count every input read once and every output written once. Shares
are relative to the ceilings that were measured in the same run."""


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}×"


def conditions(document: Document) -> str:
    """One line that names the machine and the versions."""
    environment = document["environment"]
    names = {
        "driver": "driver",
        "cuda": "CUDA",
        "cudnn": "cuDNN",
        "torch": "torch",
        "python": "Python",
        "commit": "commit",
        "engine_digest": "kernels",
    }
    parts = [f"{title} {environment[name]}" for name, title in names.items() if environment.get(name)]
    return f"{environment['device']}; {', '.join(parts)}; {environment['time'][:10]}"


def summary_rows(document: Document) -> list[list[str]]:
    """A row for each op, direction, dtype, layout and engine, with the columns of SUMMARY; a win is a case faster than eager."""
    groups: dict[tuple[str, ...], list[Figures]] = {}
    for entry in ours(document):
        row = entry.row
        groups.setdefault((row["op"], row["direction"], row["dtype"], row["layout"], entry.provider), []).append(entry)
    rows = []
    for key, members in sorted(
        groups.items(), key=lambda item: (OPS.index(item[0][0]), DIRECTIONS.index(item[0][1]), item[0][2:])
    ):
        statuses = Counter(entry.status for entry in members)
        eager = [entry.ratios["eager"]["median"] for entry in members if "eager" in entry.ratios]
        compiled = [entry.ratios["compile"]["median"] for entry in members if "compile" in entry.ratios]
        shares = [entry.share for entry in members if entry.share is not None]
        rows.append(
            [
                *key,
                str(len(members)),
                ", ".join(f"{count} {status}" for status, count in statuses.items()),
                _times(geomean(eager)),
                _times(min(eager, default=None)),
                f"{sum(ratio > 1 for ratio in eager)}/{len(eager)}" if eager else "",
                _times(geomean(compiled)),
                "" if not shares else f"{geomean(shares) or 0:.0%}",
            ]
        )
    return rows


SUMMARY = (
    "op",
    "direction",
    "dtype",
    "layout",
    "engine",
    "cases",
    "checked",
    "× eager",
    "worst",
    "wins",
    "× compile",
    "of roofline",
)
_SUMMARY_RIGHT = (5, 7, 8, 9, 10, 11)


def summary(document: Document, table: Table = align) -> str:
    """The table of `summary_rows`."""
    return table(SUMMARY, summary_rows(document), _SUMMARY_RIGHT)


_FAMILY = ("case", "engine", "µs", "quartiles", "TFLOP/s", "GB/s", "of roofline", "× eager", "× compile", "peak MB", "layers")


def family(members: Sequence[Figures]) -> str:
    """A Markdown table of all figures of some cases."""
    rows = [
        [
            entry.row["case"],
            entry.provider if entry.status == "ok" else f"{entry.provider}: {entry.status}",
            "" if entry.microseconds is None else microseconds(entry.microseconds),
            "" if entry.q1 is None or entry.q3 is None else f"{microseconds(entry.q1)}–{microseconds(entry.q3)}",
            _number(entry.tflops, 2),
            _number(entry.gb_s, 0),
            "" if entry.share is None else f"{entry.share:.0%}",
            _times(entry.ratios.get("eager", {}).get("median")),
            _times(entry.ratios.get("compile", {}).get("median")),
            _number(None if entry.peak_bytes is None else entry.peak_bytes / 1e6),
            str(len(entry.row["labels"]) or ""),
        ]
        for entry in members
    ]
    return markdown(_FAMILY, rows, range(2, 11))


def slowest(document: Document, count: int = 10) -> list[Figures]:
    """At most `count` cases that are slower than eager torch: those with the lowest ratios, in ascending order."""
    losing = [entry for entry in ours(document) if entry.ratios.get("eager", {}).get("median", 1) < 1]
    return sorted(losing, key=lambda entry: entry.ratios["eager"]["median"])[:count]


def troubles(document: Document) -> str:
    """A Markdown list of what was refused, failed, wrong or left out; empty if nothing was."""
    lines = []
    for row in document["rows"]:
        if row.get("message"):
            lines.append(f"- `{row['case']}`: {row['status']}: {row['message']}")
        for name, entry in row["providers"].items():
            if entry["status"] not in ("ok", "checked"):
                lines.append(f"- `{row['case']}` ({name}): {entry['status']}: {entry['message']}")
    if document["left_out"]:
        lines.append(f"- {len(document['left_out'])} cases were left out, because they did not fit into the budget")
    return "\n".join(lines)


def _ceilings(document: Document) -> str:
    ceilings = document["ceilings"]
    rows = [["device copy", f"{ceilings['copy_gb_s']:.0f} GB/s"]] if "copy_gb_s" in ceilings else []
    rows += [[f"matrix product {dtype}", f"{value:.3g} TFLOP/s"] for dtype, value in ceilings.get("product_tflop_s", {}).items()]
    rows += [
        [name.removesuffix("_us").replace("_", " "), f"{value:.2f} µs"]
        for name, value in ceilings.items()
        if name.endswith("_us")
    ]
    return markdown(("ceiling", "measured"), rows, (1,))


def _overheads(document: Document) -> str:
    rows = [
        [overhead["op"], overhead["direction"], overhead["provider"], f"{overhead['us']:.1f}"]
        for overhead in document["overheads"]
        if "us" in overhead
    ]
    return markdown(("op", "direction", "by", "µs per call"), rows, (3,))


def report(document: Document) -> str:
    """The whole report in Markdown."""
    gpu = document["environment"]["device_type"] == "cuda"
    parts = ["# Benchmarks", conditions(document), f"`{document['command']}`, seed {document['seed']}"]
    if not document["complete"]:
        parts.append("**The run was interrupted; only finished cases are shown.**")
    if not gpu:
        parts.append(
            "**No GPU: these are timings of plain torch on a CPU.** Emulated and simulated engines were checked, not timed."
        )
    parts += [RULES, "## Summary", summary(document, markdown), "## Ceilings", _ceilings(document)]
    if document["overheads"]:
        parts += ["## Host time of a call", _overheads(document)]
    losing = slowest(document)
    if losing:
        parts += ["## Where torch is faster", family(losing)]
    for op, members in op_families(document).items():
        parts += [f"## {op}", family(members)]
    unmeasured = troubles(document)
    if unmeasured:
        parts += ["## Not measured", unmeasured]
    return "\n\n".join(parts) + "\n"
