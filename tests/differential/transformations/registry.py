"""The table of transformations, and what they are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.differential.subjects import Subject

Results = list[Tensor | None]
Run = Callable[[nn.Module, Subject], Results]


@dataclass(frozen=True)
class Transformation:
    """Something a program does with a model; `run` does it, the same to torch's model and to ours."""

    name: str
    run: Run
    #: It costs a second or more: the long suite has it for every subject, the quick one for a few.
    dear: bool = False
    #: It raises its own exceptions around those of the model: only whether one is raised can be compared.
    wraps: bool = False
    #: The lowest precision that results pass through, where their dtype does not tell.
    precision: torch.dtype | None = None
    #: Ours may raise this where torch has a result; where torch raises, ours must.
    refusal: type[Exception] | None = None
    #: The same results by plain means, for models of torch's that do not support the transformation.
    plainly: Run | None = None


TRANSFORMATIONS: dict[str, Transformation] = {}


def transformation(**options: Any) -> Callable[[Run], Run]:
    """Enters a function into the table, under its own name."""

    def enter(run: Run) -> Run:
        TRANSFORMATIONS[run.__name__] = Transformation(run.__name__, run, **options)
        return run

    return enter


def listed(output: Any) -> list[Tensor]:
    """A model's output as a list."""
    return list(output) if isinstance(output, (tuple, list)) else [output]


def loss(outputs: Iterable[Tensor]) -> Tensor:
    """A sum under fixed, uneven weights, so that no two elements are taken for each other."""
    total: Any = 0
    for output in outputs:
        if output.is_floating_point():
            wide = output.float() if output.dtype.itemsize < 4 else output
            weights = torch.arange(output.numel(), device=output.device).to(wide.dtype).sin().view(output.shape)
            total = total + (wide * wide * weights).sum() + wide.sum()
    return total


def gradients(model: nn.Module, inputs: Iterable[Tensor]) -> Results:
    """Those that backward left on the inputs and the parameters."""
    return [leaf.grad for leaf in (*inputs, *model.parameters()) if leaf.requires_grad]


def trained(model: nn.Module, inputs: tuple[Tensor, ...], call: Callable[..., Any] | None = None) -> Results:
    """The outputs of a call (of the model, unless another is named), and the gradients."""
    outputs = listed((model if call is None else call)(*inputs))  # a compiled model has no truth value
    loss(outputs).backward()
    return [*outputs, *gradients(model, inputs)]


def floating(inputs: Iterable[Tensor]) -> list[int]:
    """The places of the inputs that have a derivative."""
    return [place for place, tensor in enumerate(inputs) if tensor.is_floating_point()]


def converted(inputs: tuple[Tensor, ...], change: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """New leaves: what a change makes of each floating-point input; the integers stay."""
    return tuple(change(tensor.detach()).requires_grad_() if tensor.is_floating_point() else tensor for tensor in inputs)
