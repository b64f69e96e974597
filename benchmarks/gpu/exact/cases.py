"""All exact cases by job, and the selection of a few that together launch the kernels of a job."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Any

import torch

from benchmarks.gpu.exact import conv2d, max_pool2d, rnn
from benchmarks.gpu.exact.case import Case, RefusedError
from torch_unroll.engines.compiled.engine import CompiledEngine
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.engines.interface import Engine
from torch_unroll.kernels.table import LaunchPlan

MODULES: tuple[Callable[[bool, int], Iterator[Case]], ...] = (
    conv2d.cases,
    rnn.cases,
    max_pool2d.cases,
)
KINDS: Mapping[str, type[Case]] = {
    kind.op: kind
    for kind in (
        conv2d.Conv2dCase,
        rnn.RnnCase,
        rnn.RnnCellCase,
        max_pool2d.MaxPool2dCase,
        max_pool2d.UnfoldCase,
    )
}
#: The search for cases that launch further kernels ends after this many cases in a row that launch no further
#: kernel.
_PATIENCE = 120


def by_job(small: bool, seed: int) -> dict[str, list[Case]]:
    """All cases by job; the jobs, and the cases of each job, are in the order of their importance."""
    jobs: dict[str, list[Case]] = {}
    for cases in MODULES:
        for case in cases(small, seed):
            jobs.setdefault(case.job, []).append(case)
    return jobs


def from_json(fields: Mapping[str, Any]) -> Case:
    """The inverse of `Case.as_json`."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items() if name != "op"}
    return KINDS[fields["op"]](**values)


class Planner:
    """A launcher that launches nothing. It replaces another one where an engine only has to plan."""

    def __init__(self, launcher: Any):
        self.properties, self.preload = launcher.properties, launcher.preload
        self.tensor_map = launcher.tensor_map

    def launch(self, plan: LaunchPlan, parameters: ctypes.Structure, device: torch.device) -> None:
        pass


def covering(cases: Sequence[Case], engine: Engine, device: torch.device, seed: int, more: int) -> list[Case]:
    """Selects the cases that launch a kernel which no earlier case launches, and up to `more` others.

    The cases are searched in an order drawn by the seed. The search may end before the last case (see _PATIENCE), and so miss a
    kernel. For an engine that does not launch the kernels of the kernel table, the first `more` cases of that order are returned.
    """
    drawn = list(cases)
    Random(f"{seed} {cases[0].job}").shuffle(drawn)
    if not isinstance(engine, CompiledEngine):
        return drawn[:more]
    planner = CompiledEngine(engine.name, Planner(engine.launcher))
    kept, further, rows, unsuccessful = list[Case](), list[Case](), set[str](), 0
    for case in drawn:
        try:
            with recording() as recorded:
                case.compute(planner, device)
        except RefusedError:
            continue
        launched = {plan.kernel.expression for _, plan in recorded.launches}
        if launched <= rows:
            further.append(case)
            unsuccessful += 1
        else:
            kept.append(case)
            rows |= launched
            unsuccessful = 0
        if unsuccessful >= _PATIENCE:
            break
    return [*kept, *further[:more]]
