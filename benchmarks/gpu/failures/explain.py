"""Explains a failure that a run on a GPU recorded: what is wrong, which kernels are launched, and what the emulator computes.
It needs no GPU."""

from __future__ import annotations

import json
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import isolation
from benchmarks.gpu import outcome
from benchmarks.gpu.exact.case import Case, RefusedError
from benchmarks.gpu.exact.cases import Planner, from_json
from benchmarks.gpu.failures.patterns import findings
from benchmarks.gpu.failures.tiles import Failure
from benchmarks.gpu.work import run_case
from torch_unroll.engines import cuda
from torch_unroll.engines.compiled.engine import CompiledEngine
from torch_unroll.engines.compiled.recording import recording

#: Seconds that a case may take on the emulator.
EMULATOR_SECONDS = 120.0
_CPU = torch.device("cpu")
_WIDTH, _INDENT, _MOST_CLAIMS, _MOST_WORDS = 110, 14, 3, 220


def explain(file: Path, case: str | None = None, emulate: bool = True) -> str:
    """Explains each failed case in a file, which contains a job per line as `benchmarks gpu` writes them, or one case as JSON.

    `case` selects the cases whose `Case.key` contains it. With `emulate`, the cases also run on the emulator.

    Raises:
        ValueError: the file contains something else.
    """
    failures = list(_failed(file))
    if case is not None:
        failures = [failed for failed in failures if case in _key(failed)]
    if not failures:
        return f"{file}: no failed case" + (f" that has {case!r} in its line" if case else "")
    return "\n\n".join("\n".join(_explained_or_not(failed, emulate)) for failed in failures)


def _key(failed: Mapping[str, Any]) -> str:
    try:
        return from_json(failed["case"]).key
    except (KeyError, TypeError):  # written by another version
        return json.dumps(failed["case"])


def _explained_or_not(failed: Mapping[str, Any], emulate: bool) -> Iterator[str]:
    """Explains a case; an error while doing so is reported, and does not prevent the explanations of other cases."""
    try:
        yield from list(_explained(failed, emulate))
    except Exception as error:
        yield from _line("case", _key(failed))
        yield from _line("outcome", "; ".join(filter(None, (failed["outcome"], failed.get("detail")))))
        yield from _line("pattern", f"cannot be determined: {type(error).__name__}: {error}")


def _failed(file: Path) -> Iterator[Mapping[str, Any]]:
    text = file.read_text(errors="backslashreplace")
    try:
        records = [json.loads(text)]  # one record, possibly over several lines
    except json.JSONDecodeError:
        records = []
        for number, line in enumerate(text.splitlines(), 1):
            try:
                records += [json.loads(line)] if line.strip() else []
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number}: expected JSON, got {line[:60]!r}") from error
    if not any(isinstance(record, dict) and {"cases", "case", "op"} & record.keys() for record in records):
        raise ValueError(f"{file}: expected jobs or cases as `benchmarks gpu` writes them, got {text[:60]!r}")
    for record in records:
        if not isinstance(record, dict):
            continue
        if "cases" in record:
            for failed in record["cases"]:
                yield {"engine": record.get("engine", "cuda"), **failed}
        elif "case" in record:
            yield {"outcome": record.get("event", "unknown"), **record}
        elif "op" in record:
            yield {"outcome": "unknown", "case": record}


def _explained(failed: Mapping[str, Any], emulate: bool) -> Iterator[str]:
    case = from_json(failed["case"])
    yield from _line("case", case.key)
    yield from _line("outcome", "; ".join(filter(None, (failed["outcome"], failed.get("detail")))))
    yield from _plan(case)
    results = failed.get("evidence") or ()
    for evidence in results:
        yield from _result(case, evidence)
    if {"dz", "dh0"} <= {evidence["result"] for evidence in results}:
        yield from _line("", "dh0 is computed from dz, so it is wrong where dz is")
    if emulate:
        yield from _line("emulator", _emulated(failed))


def _line(title: str, text: str) -> Iterator[str]:
    """A title and a text in aligned lines."""
    lines = textwrap.wrap(text, _WIDTH - _INDENT) or [""]
    yield f"{title:<{_INDENT}}{lines[0]}".rstrip()
    yield from (" " * _INDENT + line for line in lines[1:])


# ---- what is wrong -------------------------------------------------------------------------------------------------------------


def _result(case: Case, evidence: Mapping[str, Any]) -> Iterator[str]:
    name = evidence["result"]
    if "lack" in evidence:
        yield from _line(name, f"wrong, and no evidence could be kept: {evidence['lack']}")
        return
    if "instead" in evidence:
        yield from _line(name, f"expected {evidence['dtype']} of shape {evidence['shape']}, got {evidence['instead']}")
        return
    values = evidence["values"]
    text = f"{evidence['wrong']:,} of {evidence['elements']:,} elements are wrong"
    if evidence.get("first wrong step", evidence["wrong"]) != evidence["wrong"]:
        text += f"; the following concerns the {evidence['first wrong step']:,} in the first wrong step of their sample"
    yield from _line(name, text)
    yield from _line("  values", f"{values['NaN']:,} NaN, {values['0']:,} zero; off by {_counted(values['differences'])}")
    for part in evidence["parts"]:
        yield from _part(part)
    if not evidence["kept"]:
        yield from _line("  pattern", "no tile was kept, because none fits into the evidence")
        return
    failure = Failure(case, evidence)
    claims = findings(failure)
    kept = " that were kept" if failure.wrong < evidence.get("first wrong step", evidence["wrong"]) else ""
    if not claims:
        yield from _line("  pattern", f"no known pattern in the {failure.wrong:,} wrong elements{kept}")
    for number, claim in enumerate(claims[:_MOST_CLAIMS]):
        words = claim.words if len(claim.words) <= _MOST_WORDS else claim.words[:_MOST_WORDS] + " ..."
        where = " in the rows and columns that are wrong" if claim.restricted else ""
        against = f", contradicted by {claim.contradicted:,} right ones" if claim.contradicted else ""
        share = f"explains {claim.explained:,} of {failure.wrong:,} wrong elements{kept if not number else ''}{against}"
        yield from _line("  pattern" if not number else "  or", f"{claim.kind}: {words}{where}; {share}")


def _counted(differences: Mapping[str, int]) -> str:
    return ", ".join(f"{float(value):+g} ({count:,})" for value, count in list(differences.items())[:6]) or "nothing finite"


def _part(part: Mapping[str, Any]) -> Iterator[str]:
    rows, columns = part["of"]
    yield from _line(
        "  where", f"{part['name'] or 'product'}: rows {part['rows']} of {rows}, columns {part['columns']} of {columns}"
    )
    tiles = ", ".join(f"({row}, {column})" for row, column in part["tiles"][:6]) + (" ..." if part["wrong tiles"] > 6 else "")
    text = f"{part['wrong tiles']} wrong: {tiles}; in a tile rows {part['rows in a tile']}, columns {part['columns in a tile']}"
    yield from _line("  tiles", text)
    if "lanes" in part:
        fragment = f"rows {part['rows of a fragment']} and columns {part['columns of a fragment']} of fragments of 16x8"
        yield from _line("  registers", f"lanes {part['lanes']}; {fragment}")


# ---- the launches, and the outcome on the emulator -----------------------------------------------------------------------------


def _plan(case: Case) -> Iterator[str]:
    """The launches as planned for the emulator, which has fewer multiprocessors than a GPU."""
    launcher = cuda.LAUNCHER
    if reason := cuda.refuses("conv2d", _CPU, torch.float32):
        yield from _line("plan", f"unknown: engine cuda {reason}")
        return
    try:
        with recording() as recorded:
            case.compute(CompiledEngine("cuda", Planner(launcher)), _CPU)
    except (RefusedError, RuntimeError) as error:
        yield from _line("plan", f"none for {launcher.properties(_CPU).multiprocessors} multiprocessors: {error}")
        return
    seen: dict[Any, int] = {}
    for _, plan in recorded.launches:
        seen[plan] = seen.get(plan, 0) + 1
    for number, (plan, times) in enumerate(seen.items()):
        config = plan.config
        shape = f"grid {_extents(config.grid)}, block {_extents(config.block)}, {config.shared_bytes:,} bytes of shared memory"
        shape += f", cluster {_extents(config.cluster)}" if config.cluster != (1, 1, 1) else ""
        yield from _line("plan" if not number else "", plan.kernel.expression + (f", {times} times" if times > 1 else ""))
        yield from _line("", shape)
    settings = {name: value for name, value in case.as_json().items() if name in ("tile", "splits", "row_tiles") and value}
    if settings:
        yield from _line("", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items()))


def _extents(extents: tuple[int, int, int]) -> str:
    return "x".join(map(str, extents)).removesuffix("x1").removesuffix("x1")


def _emulated(failed: Mapping[str, Any]) -> str:
    """The outcome of the failed case on the emulator, where it runs in a separate process."""
    if reason := cuda.refuses("conv2d", _CPU, torch.float32):
        return f"not run: engine cuda {reason}"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        process = isolation.run(run_case, (dict(failed["case"]), "cuda", "cpu"), limit=EMULATOR_SECONDS, output=output)
        record = outcome.read("emulated", output, process)
    if record["outcome"] in ("hung", "crashed", "failed"):
        return f"{record['outcome']}: {record['detail']}"
    if record["cases"]:
        return f"{record['outcome']} there too, so the fault is in the kernel or in its host code: {record['detail']}"
    if record["counts"].get("right"):
        return "right there: the hardware and the emulator differ, or the sources have changed since"
    return "refused there, where there are fewer multiprocessors"
