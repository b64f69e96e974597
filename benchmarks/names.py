"""The names that identify a case: its dtype, layout, direction and shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from typing import Any, Self

import torch

#: fp32 is IEEE arithmetic; tf32 is float32 storage with products in TensorFloat-32.
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "tf32": torch.float32, "fp64": torch.float64}
LAYOUTS = ("nchw", "channels_last")
#: fprop is the forward pass, dgrad the gradient of the input, wgrad that of the weight; train is the forward pass and all
#: gradients.
DIRECTIONS = ("fprop", "dgrad", "wgrad", "train")

#: A field of this type is written as one number if its two numbers are equal, and as HxW otherwise.
Pair = tuple[int, int]


MOST_LISTED = 16  # the largest number of known names that a message lists in full


class UnknownNameError(ValueError):
    """Raised for an unknown name. The message suggests the closest known names. If none is close, it lists all known names, or
    one as an example if there are more than MOST_LISTED."""

    def __init__(self, kind: str, name: str, known: Sequence[str]):
        near = get_close_matches(name, known, n=3, cutoff=0.3)
        listed = f"known: {', '.join(known)}" if len(known) <= MOST_LISTED else f"{len(known)} are known, such as {known[0]}"
        suggestion = f"; nearest: {', '.join(near)}" if near else f"; {listed}"
        super().__init__(f"unknown {kind} {name!r}{suggestion}")


def find(kind: str, name: str, known: Sequence[str]) -> str:
    """Returns `name` if it is known, and raises UnknownNameError otherwise."""
    if name not in known:
        raise UnknownNameError(kind, name, list(known))
    return name


@dataclass(frozen=True)
class Shape:
    """The base class of all shapes: a dataclass of integers, pairs and names."""

    def text(self) -> str:
        """The fields in order as `N=32,C=64,...,stride=2x1`, without those that have their default value."""
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
    def parse(cls, text: str) -> Self:
        """The inverse of `text`.

        Raises:
            ValueError: a field is unknown, malformed or missing.
        """
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
