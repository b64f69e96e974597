"""The summary of a run: what was right, what was wrong, the times, and what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu import outcome
from benchmarks.gpu.store import Record, Store
from torch_unroll.kernels.table import kernels

#: The most lines of a summary: few enough for a screen, and for the output that a job queue returns.
MOST_LINES = 60
_MOST_BAD = 14


def rows_of(records: Sequence[Record], engine: str) -> set[str]:
    """The kernels that the jobs of an engine launched."""
    return {row for record in records if record["job"].startswith(f"{engine}: ") for row in record.get("rows", ())}


def never_launched(records: Sequence[Record], capability: Sequence[int] | None) -> list[str]:
    """The kernels that the GPU can run but no job of engine cuda launched.

    For the emulator, `capability` is None and counts as 9.0.
    """
    known = tuple(capability) if capability else (9, 0)
    launched = rows_of(records, "cuda")
    return [row.expression for row in kernels() if row.expression not in launched and runs(row.architecture, known)]


def runs(architecture: str, capability: Sequence[int]) -> bool:
    """Whether a GPU of a compute capability runs code for an architecture; "90a" is for 9.0 alone, "90" for 9.0 and later."""
    least = int(architecture.rstrip("a"))
    actual = 10 * capability[0] + capability[1]
    return actual == least if architecture.endswith("a") else actual >= least


def verdict(store: Store, complete: bool) -> bool:
    """Whether the run is `complete` (no exact job of engine cuda is left), no job failed, and every kernel that the GPU can run
    was launched."""
    records = [record for name in store.lines for record in store.lines[name]]
    bad = any(record["outcome"] in outcome.BAD for record in records)
    missing = complete and never_launched(store.lines["checks.jsonl"], store.run["environment"].get("capability"))
    return complete and not bad and not missing


def text(store: Store, left: Sequence[str], beyond: Sequence[str] = ()) -> str:
    """The summary in at most MOST_LINES lines."""
    environment, checks = store.run["environment"], store.lines["checks.jsonl"]
    versions = (
        f"{name} {environment[key]}" for name, key in (("driver", "driver"), ("torch", "torch"), ("kernels", "engine_digest"))
    )
    lines = [", ".join([environment["device"], *versions])]
    lines += [f"engine {name}: {reason}" for name, reason in store.run.get("engines", {}).items() if reason]
    lines += _exactness(checks)
    idle = never_launched(checks, environment.get("capability"))
    if idle and not left:
        lines.append(f"never launched: {len(idle)} kernels: {', '.join(idle[:3])}{' …' if len(idle) > 3 else ''}")
    bad = [record for name in store.lines for record in store.lines[name] if record["outcome"] in outcome.BAD]
    bad.sort(key=lambda record: outcome.SEVERITY.index(record["outcome"]))
    lines += [f"{record['outcome']:>8}  {record['job']}: {record['detail']}"[:150] for record in bad[:_MOST_BAD]]
    if len(bad) > _MOST_BAD:
        lines.append(f"{'':>8}  and {len(bad) - _MOST_BAD} more")
    lines += [f"left: {words}" for words in left]
    lines += [f"beyond the time: {words}" for words in beyond]
    if hardware := store.lines["hardware.jsonl"]:
        failed = sum(record["outcome"] != "right" for record in hardware)
        lines.append(f"hardware: {len(hardware) - failed} measurements, {failed} failed")
    lines += [f"{phase['phase']}: {phase['note']}" for phase in store.run["phases"] if phase.get("note")]
    lines += _timings(store)[: max(0, MOST_LINES - len(lines) - 2)]
    lines.append(_advice(store, bad, left, idle))
    return "\n".join(lines)


def _exactness(checks: Sequence[Record]) -> list[str]:
    lines = []
    for engine in dict.fromkeys(record["job"].partition(": ")[0] for record in checks):
        records = [record for record in checks if record["job"].startswith(f"{engine}: ")]
        cases = Counter[str]()
        for record in records:
            cases.update(record.get("counts", {}))
        counts = ", ".join(f"{count} {name}" for name, count in cases.items() if count)
        launched = rows_of(records, engine)
        jobs = Counter(record["outcome"] for record in records)
        ended = ", ".join(f"{count} {name}" for name, count in jobs.items())
        lines.append(f"{engine}: jobs: {ended}; cases: {counts or 'none'}; {len(launched)} of {len(kernels())} kernels launched")
    return lines


def _timings(store: Store) -> list[str]:
    """A line for each case: our time, torch's, their ratio, and the best tile with its measured and its predicted time.

    If no tile of a pooling was timed, the time of copying as many bytes is shown instead.
    """
    records = {record["job"]: record for record in store.lines["timings.jsonl"] if "row" in record}
    if store.run["environment"]["device_type"] != "cuda":
        return [f"{len(records)} cases were timed; times on the emulator say nothing about a GPU"] if records else []
    lines = [f"{'µs, cold':<84} {'ours':>9} {'torch':>9} {'ratio':>6}  best tile (predicted)"] if records else []
    for key, record in records.items():
        providers: dict[str, Any] = record["row"]["providers"]
        ours, theirs = (providers.get(name, {}).get("cold", {}).get("median") for name in ("cuda", "eager"))
        ratio = f"{theirs / ours:6.2f}" if ours and theirs else ""
        numbers = " ".join(f"{value:9.1f}" if value else f"{'-':>9}" for value in (ours, theirs))
        lines.append(f"{key[:84]:<84} {numbers} {ratio:>6}  {_tile(record.get('tiles', {})) or _copied(store, record['row'])}")
    return lines


def _copied(store: Store, row: Record) -> str:
    """For pooling, which does little but move bytes, the time that copying as many bytes takes; empty for
    other ops, or if the bandwidth was not measured."""
    bandwidth = store.done("timings.jsonl").get("ceilings", {}).get("ceilings", {}).get("copy_gb_s")
    if not bandwidth or row["op"] != "max_pool2d":
        return ""
    return f"as a copy: {row['bytes'] / bandwidth * 1e-3:.1f}"


def _tile(tiles: dict[str, Any]) -> str:
    if not tiles.get("us"):
        return ""
    best = min(tiles["us"], key=tiles["us"].__getitem__)
    return f"{best}: {tiles['us'][best]:g} ({tiles['predicted_us'].get(best, 0):g})"


def _advice(store: Store, bad: Sequence[Record], left: Sequence[str], idle: Sequence[str]) -> str:
    gpu, folder = "python -m benchmarks gpu", store.folder
    again = store.run.get("command", f"{gpu} --out {folder}")
    if bad:
        return f"next: {gpu} explain {folder}/checks.jsonl; on the GPU again: {again} --then"
    if left:
        return f"next: the same command continues: {again}"
    if idle:
        return "not all right: kernels were never launched (a run with --only leaves most of them out)"
    if store.run["environment"]["device_type"] != "cuda":
        return "all right on the emulator"
    return f"all right; next: {gpu} keep {folder}; on the GPU again: {again} --then"
