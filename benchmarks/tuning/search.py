"""The search: every candidate's result is compared with float64 before it is timed.

Each problem is searched in a process of its own; one that hangs, crashes or loses the GPU affects no other problem.
A search writes each finished problem to disk at once; after an interruption, the same command continues the search.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import results
from benchmarks.cases import Case
from benchmarks.environment import describe
from benchmarks.isolation import Job, Outcome, run, run_all
from benchmarks.measure import fair
from benchmarks.tuning import strategies
from benchmarks.tuning.problem import Prepared, engine_name
from benchmarks.tuning.strategies import Strategy
from torch_unroll.kernels.planning import Configuration

SCHEMA = "torch-unroll-choices"
VERSION = 2


# ---- one problem ---------------------------------------------------------------------------------------------------------


def search(prepared: Prepared, strategy: Strategy, tell: Callable[[str], None]) -> dict[str, Any]:
    """Returns a problem's row: the best configuration, the one that the cost model selects, the microseconds of each candidate
    that was timed, and what is wrong with each wrong one.

    `tell` is called with a description of each step before the step begins, in case the process dies in it.
    """
    wrong: dict[str, str] = {}
    right: list[Configuration] = []
    for configuration in prepared.configurations:
        tell(f"checking {configuration}")
        try:
            complaint = prepared.complaint(configuration)
        except torch.OutOfMemoryError as error:
            complaint = f"out of memory: {str(error).splitlines()[0]}"
        if complaint is None:
            right.append(configuration)
        else:
            wrong[str(configuration)] = complaint
    tell("timing")
    row: dict[str, Any] = {"case": prepared.case.key, "wrong": wrong, "model": list(prepared.by_model), "best": None, "us": {}}
    if right:
        best, seconds = strategy(right, prepared.time)
        row.update(best=[*best, _microseconds(seconds[best])], us={str(timed): _microseconds(s) for timed, s in seconds.items()})
    return row


def _microseconds(seconds: float) -> float:
    return float(f"{1e6 * seconds:.4g}")


# ---- the search ----------------------------------------------------------------------------------------------------------


def survey(device: torch.device, path: Path) -> None:
    """Writes the environment of the machine and the name of the engine to search with."""
    results.save({"environment": describe(device), "engine": engine_name(device)}, path)


def search_case(
    case: Case,
    device: torch.device,
    engine: str,
    strategy_name: str,
    seed: int,
    prepare: Callable[[Case, torch.device, str, int], Prepared],
    path: Path,
) -> None:
    """Searches a case and writes its row to a file. Until there is a row, the file says what the search is doing, in case the
    process dies."""

    def tell(doing: str) -> None:
        results.save({"doing": doing}, path)

    stream = torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()
    tell("preparing")
    with fair(case.dtype), stream:
        prepared = prepare(case, device, engine, seed)
        row = {"key": prepared.key, **search(prepared, strategies.by_name(strategy_name, f"{seed} {case.key}"), tell)}
    results.save(row, path)


def _failure(outcome: Outcome, row: Mapping[str, Any]) -> str:
    return f"{outcome.detail}, {row['doing']}" if "doing" in row else outcome.detail


@dataclass
class Search:
    """A search over cases."""

    cases: list[Case]
    device: torch.device
    strategy: str
    out: Path
    minutes: float | None = None
    seed: int = 0
    #: The seconds that a case may take.
    limit: float = 120.0
    prepare: Callable[[Case, torch.device, str, int], Prepared] = Prepared
    survey: Callable[[torch.device, Path], None] = survey

    def go(self) -> dict[str, Any]:
        """Searches, and returns the document, which is saved after each case; Ctrl-C loses only the current case."""
        self._folder.mkdir(parents=True, exist_ok=True)
        here = self._survey()
        document = self._resume(here["environment"])
        rows: dict[str, Any] = document["problems"]
        done = {row["case"] for row in rows.values()}
        wanted = [case for case in self.cases if case.key not in done]
        if done:
            print(f"continuing: {len(self.cases) - len(wanted)} of {len(self.cases)} cases are done", file=sys.stderr)
        deadline = None if self.minutes is None else time.monotonic() + 60 * self.minutes
        longest = 0.0
        progress = tqdm(wanted, unit="case", file=sys.stderr, dynamic_ncols=True)
        for i, case in enumerate(progress):
            began = time.monotonic()
            row = None
            if deadline is None or began + longest <= deadline:
                progress.set_description(case.key[:60])
                row = self._row(case, here["engine"], deadline)
            if row is None:
                progress.close()
                print(f"{len(wanted) - i} cases left: they do not fit in {self.minutes:g} minutes", file=sys.stderr)
                break
            rows[case.key] = row
            results.save(document, self.out)
            if "error" in row:
                progress.write(f"{case.key}: {row['error']}; its output: {self._output(case)}", file=sys.stderr)
            longest = max(longest, time.monotonic() - began)
        with suppress(OSError):  # a case that failed has left its output there
            self._folder.rmdir()
        return document

    @property
    def _folder(self) -> Path:
        return self.out.with_name(self.out.name + ".output")

    def _output(self, case: Case) -> Path:
        return self._folder / (re.sub(r"[^\w=,.]+", "-", case.key)[:200] + ".txt")

    def _survey(self) -> dict[str, Any]:
        path = self._folder / "here.json"
        outcome = run(self.survey, (self.device, path), limit=self.limit, output=path.with_suffix(".txt"))
        if outcome.kind != "ended":
            raise ValueError(outcome.detail)
        here = json.loads(path.read_text())
        path.unlink()
        path.with_suffix(".txt").unlink()
        return here

    def _row(self, case: Case, engine: str, deadline: float | None) -> dict[str, Any] | None:
        """Returns a case's row, or None if the deadline came first."""
        path = self._output(case).with_suffix(".json")
        path.unlink(missing_ok=True)
        call = (case, self.device, engine, self.strategy, self.seed, self.prepare, path)
        ((_, outcome),) = run_all([Job(search_case, call, self.limit, self._output(case))], deadline=deadline)
        written = json.loads(path.read_text()) if path.exists() else {}
        path.unlink(missing_ok=True)
        if outcome.kind == "stopped":
            self._output(case).unlink(missing_ok=True)
            return None
        if outcome.kind != "ended":
            return {"case": case.key, "key": None, "error": _failure(outcome, written)}
        self._output(case).unlink()
        return written

    def _resume(self, environment: dict[str, Any]) -> dict[str, Any]:
        new = {
            "schema": SCHEMA,
            "version": VERSION,
            "environment": environment,
            "strategy": self.strategy,
            "seed": self.seed,
            "problems": {},
        }
        if not self.out.exists():
            return new
        try:
            document = json.loads(self.out.read_text())
        except json.JSONDecodeError as error:
            raise results.ForeignError(f"{self.out}: not JSON ({error})") from error
        if not isinstance(document, dict) or (document.get("schema"), document.get("version")) != (SCHEMA, VERSION):
            raise results.ForeignError(f"{self.out}: expected schema {SCHEMA} version {VERSION}")
        facts = [(name, document["environment"], environment) for name in ("device", "engine_digest", "torch", "driver")]
        facts += [(name, document, new) for name in ("strategy", "seed")]
        changed = [f"{name}: {old.get(name)} → {now.get(name)}" for name, old, now in facts if old.get(name) != now.get(name)]
        if changed:
            raise results.ForeignError(
                f"{self.out}: left by another search ({'; '.join(changed)}); delete it, or name another --out"
            )
        return {**new, **document}
