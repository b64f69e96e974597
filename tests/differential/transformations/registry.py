"""The table of transformations, and helpers for them."""

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
    """Something that a program does with a model; `run` does it to torch's model and to ours."""

    name: str
    run: Run
    #: Whether it takes a second or more; the quick suite applies it to a few subjects only.
    dear: bool = False
    #: Whether it wraps the model's exceptions in exceptions of another type, so that their types cannot be compared.
    wraps: bool = False
    #: The lowest precision that results pass through, if their dtype does not show it.
    precision: torch.dtype | None = None
    #: An exception that our model may raise although torch's returns a result. If torch's raises, ours must raise, too.
    refusal: type[Exception] | None = None
    #: A function with the same results, for models of torch that do not support the transformation.
    plainly: Run | None = None


TRANSFORMATIONS: dict[str, Transformation] = {}


def transformation(**options: Any) -> Callable[[Run], Run]:
    """Adds a function to the table under its own name."""

    def enter(run: Run) -> Run:
        TRANSFORMATIONS[run.__name__] = Transformation(run.__name__, run, **options)
        return run

    return enter


def listed(output: Any) -> list[Tensor]:
    """The output of a model as a list."""
    return list(output) if isinstance(output, (tuple, list)) else [output]


def loss(outputs: Iterable[Tensor]) -> Tensor:
    """A sum with fixed, uneven weights, so that exchanging two elements changes it."""
    total: Any = 0
    for output in outputs:
        if output.is_floating_point():
            wide = output.float() if output.dtype.itemsize < 4 else output
            weights = torch.arange(output.numel(), device=output.device).to(wide.dtype).sin().view(output.shape)
            total = total + (wide * wide * weights).sum() + wide.sum()
    return total


def gradients(model: nn.Module, inputs: Iterable[Tensor]) -> Results:
    """The gradients that backward left on the inputs and the parameters."""
    return [leaf.grad for leaf in (*inputs, *model.parameters()) if leaf.requires_grad]


def trained(model: nn.Module, inputs: tuple[Tensor, ...], call: Callable[..., Any] | None = None) -> Results:
    """The outputs of a call (by default of the model) and the gradients."""
    outputs = listed((model if call is None else call)(*inputs))  # not `call or model`, since a compiled model has no truth value
    loss(outputs).backward()
    return [*outputs, *gradients(model, inputs)]


def floating(inputs: Iterable[Tensor]) -> list[int]:
    """The positions of the differentiable inputs."""
    return [place for place, tensor in enumerate(inputs) if tensor.is_floating_point()]


def converted(inputs: tuple[Tensor, ...], change: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """New leaves with a change applied to each floating-point input; integers are unchanged."""
    return tuple(change(tensor.detach()).requires_grad_() if tensor.is_floating_point() else tensor for tensor in inputs)
