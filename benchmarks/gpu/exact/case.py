"""A case is a call of an engine whose results are known exactly, and its verdict says whether they are right.

Inputs are small integers, and the weights of a recurrence over several steps are signed permutations. So every sum is exact in
fp32 in any order, and a result is rounded at most once. Results can therefore be compared for equality, and from the values of
wrong elements, benchmarks/gpu/failures can often infer what the kernel did wrong.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from torch_unroll.engines.compiled.recording import recording

#: The torch dtype of each arithmetic; tf32 multiplies fp32 tensors.
ARITHMETIC = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "tf32": torch.float32,
    "float32": torch.float32,
    "float64": torch.float64,
}
LAYOUTS = {"channels_last": torch.channels_last, "nchw": torch.contiguous_format}
#: The names of the arithmetics, the most important first.
BY_INTEREST = tuple(ARITHMETIC)


class RefusedError(Exception):
    """Raised if a variant refuses a case; the message says why."""


@dataclass(frozen=True)
class Case(ABC):
    """One call. Its fields suffice to make the same inputs again in another process and on another device."""

    op: ClassVar[str]

    @property
    @abstractmethod
    def job(self) -> str:
        """The name of the job that runs the case. It says what the job's cases share, such as op, direction and variant."""

    @abstractmethod
    def compute(self, engine: Any, device: torch.device) -> dict[str, Tensor]:
        """Computes the results by name; raises RefusedError if the variant refuses the case."""

    @abstractmethod
    def expected(self) -> Mapping[str, Tensor]:
        """The exact results on the CPU, rounded once to the dtype of the results."""

    @property
    def key(self) -> str:
        """The case in one readable line."""
        return " ".join([self.op, *(f"{name}={value}" for name, value in asdict(self).items())])

    def as_json(self) -> dict[str, Any]:
        return {"op": self.op, **asdict(self)}


@dataclass(frozen=True)
class Verdict:
    """The outcome of a case (right, refused, wrong, or unsteady if two runs differ), the kernels that it launched (`rows`), and
    the results that are wrong or differ."""

    outcome: str
    detail: str = ""
    rows: frozenset[str] = frozenset()
    wrong: tuple[tuple[str, Tensor, Tensor], ...] = ()  # name, result, and expected (if unsteady: first) result, on the CPU


@contextmanager
def poisoned() -> Iterator[None]:
    """Fills new allocations with NaN, or with the largest integer, so that an element that no kernel writes is wrong."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def judge(case: Case, engine: Any, device: torch.device) -> Verdict:
    """Computes a case twice on poisoned memory; compares the first result to the expected one, and the second to the first."""
    with recording() as recorded, poisoned():
        try:
            once, again = ({name: tensor.cpu() for name, tensor in case.compute(engine, device).items()} for _ in range(2))
        except RefusedError as error:
            return Verdict("refused", str(error))
    rows = frozenset(plan.kernel.expression for _, plan in recorded.launches)
    expected = case.expected()
    wrong = tuple((name, once[name], expected[name]) for name in expected if not same(once[name], expected[name]))
    if wrong:
        counts = ", ".join(f"{name}: {differing(result, wanted)} of {wanted.numel()}" for name, result, wanted in wrong)
        return Verdict("wrong", f"wrong elements: {counts}", rows=rows, wrong=wrong)
    unsteady = tuple((name, again[name], once[name]) for name in expected if not same(again[name], once[name]))
    if unsteady:
        counts = ", ".join(f"{name}: {differing(result, first)} of {first.numel()}" for name, result, first in unsteady)
        return Verdict("unsteady", f"elements whose bits differ in the second run: {counts}", rows=rows, wrong=unsteady)
    return Verdict("right", rows=rows)


def same(result: Tensor, expected: Tensor) -> bool:
    """Whether two results are equal in shape, dtype and values; NaN equals nothing."""
    return result.shape == expected.shape and result.dtype == expected.dtype and bool((result == expected).all())


def differing(result: Tensor, expected: Tensor) -> int:
    """The number of elements that differ; all of them if the shapes differ."""
    return expected.numel() if result.shape != expected.shape else int((result != expected).sum())


def generator(seed: int, *name: Any) -> torch.Generator:
    """A generator seeded by the run's seed and a name; it is on the CPU, so that every device gets the same inputs."""
    text = json.dumps([seed, *name])  # Python's own hash differs between processes
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big"))


def integers(size: tuple[int, ...], draw: torch.Generator, most: int = 1) -> Tensor:
    """Random integers from -most to most, as float64."""
    return torch.randint(-most, most + 1, size, generator=draw).double()
