"""The process of a job: it runs cases one after the other, and reports each one before running it."""

from __future__ import annotations

import faulthandler
import json
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.exact.case import Case, judge
from benchmarks.gpu.exact.cases import by_job, covering, from_json
from benchmarks.gpu.failures.evidence import evidence
from benchmarks.runner import device_is_lost
from torch_unroll.engines import load, refusal

#: A process keeps evidence of a wrong or unsteady case only if fewer than MOST_EVIDENCE of its cases have failed before.
MOST_EVIDENCE = 3
#: Limits of one case, in seconds. The first case of a process also loads all kernels, and with some engines a case compiles its
#: kernels.
CASE_SECONDS, COMPILED_CASE_SECONDS = 30.0, 120.0


@dataclass(frozen=True)
class ExactJob:
    """The cases of one job on one engine: all or, if `more` is given, those that `covering` selects."""

    name: str
    engine: str
    device: str
    seed: int
    small: bool = False
    more: int | None = None
    after: int = 0  # the number of cases that earlier processes ran; the last of these killed its process

    @property
    def key(self) -> str:
        return f"{self.engine}: {self.name}"


def tell(event: str, **fields: Any) -> None:
    """Prints an event as a line of JSON, which `outcome.read` parses."""
    print(json.dumps({"event": event, **fields}), flush=True)


def run_exact(job: ExactJob) -> None:
    """Runs the cases of a job, or reports that its engine cannot run here. `outcome.read` parses the output."""
    device = torch.device(job.device)
    if reason := refusal(job.engine, "conv2d", device, torch.float32):
        tell("missing", detail=reason)
        return
    engine: Any = load(job.engine)
    torch.set_num_threads(1)
    cases = by_job(job.small, job.seed)[job.name]
    if job.more is not None:
        cases = covering(cases, engine, device, job.seed, job.more)
    run_cases(cases, engine, device, job.after, CASE_SECONDS if job.engine == "cuda" else COMPILED_CASE_SECONDS)


def run_cases(
    cases: list[Case], engine: Any, device: torch.device, after: int = 0, seconds: float = COMPILED_CASE_SECONDS
) -> bool:
    """Judges the cases from number `after` on, and returns whether each was right or refused. A case that takes longer than
    `seconds` or loses the device ends the process, and is the last case in the output."""
    rows: set[str] = set()
    bad = 0
    for number, case in enumerate(cases[after:], after):
        tell("begin", number=number, case=case.as_json())
        faulthandler.dump_traceback_later(seconds, exit=True, file=2)
        try:
            verdict = judge(case, engine, device)
        except Exception as error:  # one bad case does not end the job, unless the device is gone
            bad += 1
            tell("error", case=case.as_json(), detail=f"{type(error).__name__}: {error}"[:500])
            if device_is_lost(device):
                tell("lost")
                sys.exit(1)
            continue
        finally:
            faulthandler.cancel_dump_traceback_later()
        if verdict.outcome in ("wrong", "unsteady"):
            bad += 1
            kept = [_evidence(case, *wrong) for wrong in verdict.wrong] if bad <= MOST_EVIDENCE else []
            tell(verdict.outcome, case=case.as_json(), detail=verdict.detail, evidence=kept)
        else:
            tell("good", outcome=verdict.outcome, detail=verdict.detail, rows=sorted(verdict.rows - rows))
        rows |= verdict.rows
    tell("end", rows=sorted(rows))
    return not bad


def _evidence(case: Case, name: str, result: Tensor, expected: Tensor) -> dict[str, Any]:
    """The evidence of a wrong result; if it cannot be collected, the reason, so that the case is still reported as wrong."""
    try:
        return evidence(case, name, result, expected)
    except Exception as error:
        return {"result": name, "lack": f"{type(error).__name__}: {error}"[:500]}


def run_case(case: dict[str, Any], engine: str, device: str) -> bool:
    """Runs one case of a result file; returns False if it was wrong, unsteady or raised an error, True if right or refused."""
    return run_cases([from_json(case)], load(engine), torch.device(device))
