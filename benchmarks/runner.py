"""A run of cases in order. Each finished case is written to disk at once, and an interrupted run continues where it stopped."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import results
from benchmarks.cases import Case
from benchmarks.ceilings import measure_ceilings
from benchmarks.environment import describe
from benchmarks.measure import Measurement, Setting, overhead
from benchmarks.providers import is_engine
from benchmarks.suites import Selected

Measure = Callable[[Case, Setting], results.Row]


def measure_case(case: Case, setting: Setting) -> results.Row:
    """Measures a case; an error of the case as a whole is reported in its row."""
    measurement = None
    try:
        measurement = Measurement(case, setting)
        return measurement.run()
    except Exception as error:  # one bad case does not end the run
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()
        status = "out of memory" if isinstance(error, torch.OutOfMemoryError) else "error"
        return {**failed(case, status, error), **({"providers": measurement.providers} if measurement else {})}


def failed(case: Case, status: str, error: BaseException) -> results.Row:
    """The row of a case that failed as a whole, without results of providers."""
    identity = {"case": case.key, "op": case.op, "direction": case.direction, "dtype": case.dtype, "layout": case.layout}
    message = f"{type(error).__name__}: {error}"[:500]
    return {**identity, "flops": 0, "bytes": 0, "status": status, "message": message, "providers": {}, "ratios": {}}


def device_is_lost(device: torch.device) -> bool:
    """Whether an earlier error has made the GPU unusable by this process."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def start_again() -> None:
    """Replaces this process with a new one that runs the same command and continues from the journal."""
    print("a kernel error left the GPU unusable by this process; continuing in a new one", file=sys.stderr)
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]])


@dataclass
class Run:
    """The cases of a run, and how to measure them."""

    cases: list[Selected]
    setting: Setting
    out: Path
    command: str
    minutes: float | None = None
    quick: bool = False
    measure: Measure = measure_case

    def go(self) -> results.Document:
        """Measures the cases and returns the document, which is also saved; Ctrl-C saves what was measured by then."""
        setting = self.setting
        deadline = None if self.minutes is None else time.monotonic() + 60 * self.minutes
        torch.manual_seed(setting.seed)
        document = results.new(describe(setting.device), self.command, setting.seed)
        journal = results.Journal(self.out)
        finished, died_in = journal.resume(document)
        rows = {row["case"]: row for row in finished}
        for selected in self.cases:
            if selected.case.key == died_in:
                self._keep(
                    selected, failed(selected.case, "error", RuntimeError("the process ended in this case")), rows, journal
                )
        wanted = [selected for selected in self.cases if selected.case.key not in rows]
        if rows:
            print(f"continuing: {len(self.cases) - len(wanted)} of {len(self.cases)} cases are done", file=sys.stderr)
        interrupted = False
        try:
            document["ceilings"] = measure_ceilings(setting.device, setting.limits, self.quick)
            self._measure_all(wanted, rows, journal, document, deadline)
            if setting.device.type == "cuda":
                document["overheads"] = overheads(self.cases, setting)
        except KeyboardInterrupt:
            interrupted = True
            journal.stop()
        document["rows"] = [rows[selected.case.key] for selected in self.cases if selected.case.key in rows]
        document["complete"] = not interrupted
        results.save(document, self.out)
        if interrupted:
            print(f"\ninterrupted: {len(document['rows'])} cases kept in {self.out}; the same command continues", file=sys.stderr)
            raise KeyboardInterrupt
        journal.close()
        return document

    def _keep(self, selected: Selected, row: results.Row, rows: dict[str, results.Row], journal: results.Journal) -> None:
        row.update(suites=selected.suites, labels=selected.labels)
        journal.end(row)
        rows[selected.case.key] = row

    def _measure_all(
        self,
        wanted: list[Selected],
        rows: dict[str, results.Row],
        journal: results.Journal,
        document: results.Document,
        deadline: float | None,
    ) -> None:
        longest = 0.0
        progress = tqdm(wanted, unit="case", file=sys.stderr, dynamic_ncols=True)
        for i, selected in enumerate(progress):
            began = time.monotonic()
            if deadline is not None and began + longest > deadline:
                document["left_out"] = [skipped.case.key for skipped in wanted[i:]]
                progress.close()
                print(f"{len(wanted) - i} cases left out: they do not fit in {self.minutes:g} minutes", file=sys.stderr)
                return
            progress.set_description(selected.case.key[:60])
            journal.begin(selected.case.key)
            row = self.measure(selected.case, self.setting)
            self._keep(selected, row, rows, journal)
            longest = max(longest, time.monotonic() - began)
            if row["status"] in ("wrong", "error", "out of memory"):
                progress.write(f"{row['status']}: {selected.case.key}: {_message(row)}", file=sys.stderr)
                if device_is_lost(self.setting.device):
                    start_again()


def _message(row: results.Row) -> str:
    parts = [f"{name}: {entry['message']}" for name, entry in row["providers"].items() if entry["status"] == row["status"]]
    return "; ".join(parts) or row.get("message", "")


def overheads(cases: list[Selected], setting: Setting) -> list[dict[str, Any]]:
    """The host time of one call on a small case, or why the call failed.

    There is an entry for each op except `network`, each of the directions fprop and train in which it occurs among the cases,
    and each provider that can run it.
    """
    smallest: dict[tuple[str, str], Case] = {}
    for selected in cases:
        case = selected.case
        if case.op != "network" and case.direction in ("fprop", "train"):
            smallest.setdefault((case.op, case.direction), case.shrunk())
    rows: list[dict[str, Any]] = []
    for (op, direction), case in smallest.items():
        for provider in (*setting.engines, *setting.baselines):
            if is_engine(provider):
                if case.operation.refusal(case, provider, setting.device):
                    continue
            elif provider not in case.operation.baselines:
                continue
            try:
                microseconds = overhead(case, provider, setting.device)
            except Exception as error:
                rows.append({"op": op, "direction": direction, "provider": provider, "message": str(error)[:200]})
            else:
                rows.append({"op": op, "direction": direction, "provider": provider, "us": microseconds, "case": case.key})
    return rows
