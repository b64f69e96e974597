"""A case: one op, direction, dtype and layout on one shape, with a name that says all of it and can be read back.

conv2d/dgrad/bf16/channels_last/N=32,C=64,H=56,W=56,K=64,R=3,S=3,padding=1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from benchmarks.ops.operation import Operation

#: fp32 is IEEE arithmetic; tf32 is float32 storage with products in TensorFloat-32.
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "tf32": torch.float32, "fp64": torch.float64}
LAYOUTS = ("nchw", "channels_last")
#: fprop, dgrad and wgrad are the forward pass and the two gradients alone; train is the forward pass and every gradient.
DIRECTIONS = ("fprop", "dgrad", "wgrad", "train")


class UnknownNameError(ValueError):
    """A name that nothing here has; the message offers the nearest ones."""

    def __init__(self, kind: str, given: str, known: Sequence[str]):
        near = get_close_matches(given, known, n=3, cutoff=0.3)
        offer = f"; nearest: {', '.join(near)}" if near else f"; known: {', '.join(known)}"
        super().__init__(f"unknown {kind} {given!r}{offer}")


def find(kind: str, given: str, known: Sequence[str]) -> str:
    """`given`, if it is one of the known names."""
    if given not in known:
        raise UnknownNameError(kind, given, list(known))
    return given


@dataclass(frozen=True)
class Shape:
    """The base of every op's shape: a dataclass of ints, pairs and names, whose defaults its text leaves out."""

    def text(self) -> str:
        """`N=32,C=64,...,stride=2x1`: the fields in order, without those at their default."""
        parts = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if isinstance(value, tuple):
                value = value[0] if len(set(value)) == 1 else "x".join(map(str, value))
            parts.append(f"{field.name}={value}")
        return ",".join(parts)

    @classmethod
    def parse(cls, text: str) -> Shape:
        """The shape that `text()` writes so."""
        known = {field.name: field for field in fields(cls)}
        values: dict[str, Any] = {}
        for part in text.split(","):
            name, equals, value = part.partition("=")
            find("field of a shape", name, list(known))
            if not equals or not value:
                raise ValueError(f"{part!r}: expected NAME=VALUE")
            if known[name].type == "Pair":
                numbers = tuple(int(number) for number in value.split("x"))
                values[name] = numbers * 2 if len(numbers) == 1 else numbers
            else:
                values[name] = int(value) if value.isdigit() else value
        missing = [name for name, field in known.items() if field.default is MISSING and name not in values]
        if missing:
            raise ValueError(f"{text!r}: the shape lacks {', '.join(missing)}")
        return cls(**values)


@dataclass(frozen=True)
class Case:
    """What is checked and timed as one row."""

    op: str
    direction: str
    dtype: str
    layout: str
    shape: Any  # the op's Shape

    @property
    def key(self) -> str:
        """The name of the case."""
        return f"{self.op}/{self.direction}/{self.dtype}/{self.layout}/{self.shape.text()}"

    @property
    def operation(self) -> Operation:
        from benchmarks.ops import OPERATIONS

        return OPERATIONS[self.op]

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def flops(self) -> int:
        """Floating-point operations; a multiply-add is two."""
        return self.operation.flops(self.shape, self.direction)

    @property
    def bytes(self) -> int:
        """Bytes that have to move: every input read once and every output written once."""
        return self.operation.bytes(self.shape, self.direction, self.torch_dtype.itemsize)

    def shrunk(self) -> Case:
        """A small case of the same geometry: window, stride, padding, dilation and the remainders of the channel counts stay."""
        return Case(self.op, self.direction, self.dtype, self.layout, self.operation.shrink(self.shape))


def parse(key: str) -> Case:
    """The case of a key."""
    from benchmarks.ops import OPERATIONS

    parts = key.split("/")
    if len(parts) != 5:
        raise ValueError(f"case {key!r}: expected OP/DIRECTION/DTYPE/LAYOUT/SHAPE; `python -m benchmarks list` shows them")
    op, direction, dtype, layout, shape = parts
    operation = OPERATIONS[find("op", op, list(OPERATIONS))]
    find("direction", direction, operation.directions)
    find("dtype", dtype, list(DTYPES))
    find("layout", layout, operation.layouts)
    return Case(op, direction, dtype, layout, operation.Shape.parse(shape))
