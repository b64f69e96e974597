"""Helpers for the tests of runs on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.exact.case import Case, judge
from benchmarks.gpu.exact.cases import by_job
from torch_unroll.engines import load

CPU = torch.device("cpu")
ENVIRONMENT = {
    "device": "NVIDIA H200",
    "device_type": "cuda",
    "driver": "580",
    "engine_digest": "0123",
    "torch": "2.11",
    "seed": 0,
    "capability": [9, 0],
}


class Broken:
    """Engine cuda, with `spoil` applied to the first result of each call."""

    def __init__(self, spoil: Callable[[Tensor], Tensor]):
        self.engine, self.spoil = load("cuda"), spoil

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.engine, name)
        if name == "launcher":
            return attribute

        def spoiled(*inputs: Any) -> Any:
            result = attribute(*inputs)
            return self.spoil(result) if isinstance(result, Tensor) else (self.spoil(result[0]), *result[1:])

        return spoiled


def first_of(op: str) -> Case:
    """The first case that engine cuda gets right, among those of the first job whose name begins with `op`."""
    jobs = by_job(small=True, seed=0)
    cases = next(cases for name, cases in jobs.items() if name.startswith(op))
    return next(case for case in cases if judge(case, load("cuda"), CPU).outcome == "right")


def record_of(job: str, outcome: str = "right", **more: Any) -> dict[str, Any]:
    """The record of a job, with `more` as additional or changed fields."""
    return {"job": job, "outcome": outcome, "detail": "", "seconds": 1.0, "cases": [], **more}
