"""A case: one call of a kernel whose result is known exactly, and the verdict on what came out.

Inputs are small integers, and the weights of a recurrence signed permutations, so that every sum is exact in fp32 in any order
and the result is rounded at most once: results are compared for equality, and a wrong element says which products are missing.
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

#: torch's dtype of each arithmetic; tf32 multiplies fp32 tensors.
ARITHMETIC = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "tf32": torch.float32,
    "float32": torch.float32,
    "float64": torch.float64,
}
#: Arithmetic by what is most worth knowing first.
BY_INTEREST = tuple(ARITHMETIC)


class RefusedError(Exception):
    """A variant does not take a case; the message is its reason."""


@dataclass(frozen=True)
class Case(ABC):
    """One call. The fields are all it takes to make its inputs again, in another process and on another device."""

    op: ClassVar[str]

    @property
    @abstractmethod
    def job(self) -> str:
        """What runs in one process with it: op, direction, variant and tile, or arithmetic."""

    @abstractmethod
    def compute(self, engine: Any, device: torch.device) -> dict[str, Tensor]:
        """The results by name; raises RefusedError where the variant does not take the case."""

    @abstractmethod
    def expected(self) -> Mapping[str, Tensor]:
        """The exact results on the CPU, rounded once to the results' dtype."""

    @property
    def key(self) -> str:
        """The case in a line, for people."""
        return " ".join([self.op, *(f"{name}={value}" for name, value in asdict(self).items())])

    def as_json(self) -> dict[str, Any]:
        return {"op": self.op, **asdict(self)}


@dataclass(frozen=True)
class Verdict:
    """What came of a case: right, refused, wrong, or other bits the second time; and the results that were not right."""

    outcome: str
    detail: str = ""
    rows: frozenset[str] = frozenset()
    wrong: tuple[tuple[str, Tensor, Tensor], ...] = ()  # name, result and expectation, both on the CPU


@contextmanager
def poisoned() -> Iterator[None]:
    """Whatever is allocated within is full of NaN, and of the largest number where it holds integers: an element that no kernel
    writes is then wrong."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def judge(case: Case, engine: Any, device: torch.device) -> Verdict:
    """Computes a case twice on poisoned memory and compares it with what it has to be, bit for bit."""
    with recording() as recorded, poisoned():
        try:
            once, again = ({name: tensor.cpu() for name, tensor in case.compute(engine, device).items()} for _ in range(2))
        except RefusedError as refusal:
            return Verdict("refused", str(refusal))
    rows = frozenset(plan.kernel.expression for _, plan in recorded.launches)
    expected = case.expected()
    wrong = tuple((name, once[name], expected[name]) for name in expected if not same(once[name], expected[name]))
    if wrong:
        counts = ", ".join(f"{name}: {differing(result, wanted)} of {wanted.numel()}" for name, result, wanted in wrong)
        return Verdict("wrong", f"wrong elements: {counts}", rows, wrong)
    unsteady = tuple((name, again[name], once[name]) for name in expected if not same(again[name], once[name]))
    if unsteady:
        counts = ", ".join(f"{name}: {differing(result, first)} of {first.numel()}" for name, result, first in unsteady)
        return Verdict("unsteady", f"elements that the second run gave other bits: {counts}", rows, unsteady)
    return Verdict("right", rows=rows)


def same(result: Tensor, expected: Tensor) -> bool:
    """Equal in shape, dtype and value; nothing equals NaN."""
    return result.shape == expected.shape and result.dtype == expected.dtype and bool((result == expected).all())


def differing(result: Tensor, expected: Tensor) -> int:
    return expected.numel() if result.shape != expected.shape else int((result != expected).sum())


def generator(seed: int, *name: Any) -> torch.Generator:
    """Draws that depend on a name alone, and on the seed of the run; on the CPU, so that every device is given the same."""
    text = json.dumps([seed, *name])  # Python's own hash of it would differ from process to process
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big"))


def integers(size: tuple[int, ...], draw: torch.Generator, most: int = 1) -> Tensor:
    """Integers from -most to most, as float64."""
    return torch.randint(-most, most + 1, size, generator=draw).double()
