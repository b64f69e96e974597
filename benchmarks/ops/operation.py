"""What the runner needs to know of an op: its arithmetic, its inputs, and the source of the calls to compare.

A call is written as source once: what is timed is what `python -m benchmarks repro` prints.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.cases import LAYOUTS, Case, Shape
from benchmarks.check import complaint
from torch_unroll.engines import NAMES as ENGINES
from torch_unroll.engines import refusal

Tensors = Mapping[str, Tensor]
Call = Callable[[], tuple[Tensor, ...]]

#: What a user would otherwise call.
BASELINES = ("eager", "compile")


def is_engine(provider: str) -> bool:
    """Whether a provider is one of our engines; else it is a baseline."""
    return provider in ENGINES


def double(tensors: Tensors) -> dict[str, Tensor]:
    """The same tensors in float64."""
    return {name: tensor.double() for name, tensor in tensors.items()}


class Operation(ABC):
    """An op over named tensors. `dy` is its output's gradient; direction `train` differentiates all the others."""

    name: ClassVar[str]
    Shape: ClassVar[type[Shape]]
    directions: ClassVar[tuple[str, ...]] = ("fprop", "train")
    #: The directions whose expression is the whole call, without autograd.
    direct: ClassVar[tuple[str, ...]] = ("fprop",)
    layouts: ClassVar[tuple[str, ...]] = LAYOUTS
    baselines: ClassVar[tuple[str, ...]] = BASELINES
    #: torch's switch for TF32: torch.backends.cudnn.<this>.fp32_precision.
    precision: ClassVar[str] = "conv"
    #: The import that ours needs, and torch's.
    ours_import: ClassVar[str]
    torch_import: ClassVar[str] = "import torch.nn.functional as F"

    @abstractmethod
    def sizes(self, shape: Any) -> dict[str, tuple[int, ...]]:
        """The inputs' sizes by name; names that begin with `w` are weights."""

    @abstractmethod
    def output(self, shape: Any) -> tuple[int, ...]:
        """The output's size."""

    @abstractmethod
    def expression(self, shape: Any, direction: str, provider: str) -> str:
        """The call as source over the inputs' names: an engine's, or torch's own for a baseline."""

    @abstractmethod
    def flops(self, shape: Any, direction: str) -> int:
        """Floating-point operations; a multiply-add is two."""

    @abstractmethod
    def shrink(self, shape: Any) -> Any:
        """A small shape of the same geometry."""

    def bytes(self, shape: Any, direction: str, element_size: int) -> int:
        """Inputs and output once each; for train also the output's gradient, the inputs again and their gradients."""
        inputs = sum(math.prod(size) for size in self.sizes(shape).values())
        forward = inputs + math.prod(self.output(shape))
        return element_size * (forward if direction == "fprop" else 2 * forward + inputs)

    def tensors(self, case: Case, device: torch.device, seed: int) -> dict[str, Tensor]:
        """Inputs and `dy`, uniform in [−1, 1], weights divided by the root of their fan-in; a seed gives the same everywhere."""
        generator = torch.Generator().manual_seed(seed)
        made = {}
        for name, size in {**self.sizes(case.shape), "dy": self.output(case.shape)}.items():
            values = torch.rand(size, generator=generator) * 2 - 1
            if name.startswith("w"):
                values /= math.sqrt(max(1, math.prod(size[1:])))
            values = values.to(device, case.torch_dtype)
            if len(size) == 4 and case.layout == "channels_last":
                values = values.contiguous(memory_format=torch.channels_last)
            made[name] = values
        return made

    def refusal(self, case: Case, engine: str, device: torch.device) -> str | None:
        """Why an engine does not take the case here; None if it does."""
        return refusal(engine, self.name, device, case.torch_dtype)

    def complaint(
        self,
        case: Case,
        provider: str,
        tensors: Tensors,
        results: Sequence[Tensor],
        exact: Sequence[Tensor],
        torchs: Sequence[Tensor],
    ) -> str | None:
        """What is wrong with the results of a call, beside float64 and torch's own in the same dtype; None if nothing is."""
        return complaint(results, exact, torchs)

    def function(self, shape: Any, direction: str, provider: str) -> Callable[..., Any]:
        """The expression as a function of every tensor, by keyword."""
        names = [*self.sizes(shape), "dy"]
        scope: dict[str, Any] = {"torch": torch}
        exec(self.ours_import if is_engine(provider) else self.torch_import, scope)
        return eval(f"lambda {', '.join(names)}: {self.expression(shape, direction, provider)}", scope)

    def call(self, case: Case, tensors: Tensors, provider: str) -> Call:
        """The call that is checked and timed; yields the results to compare."""
        function = self.function(case.shape, case.direction, provider)
        if provider == "compile":
            function = torch.compile(function)
        if case.direction in self.direct:
            return direct_call(function, tensors)
        return (train_call if case.direction == "train" else backward_call)(function, tensors)


def direct_call(function: Callable[..., Any], tensors: Tensors) -> Call:
    """The call as it stands, without gradients."""

    def call() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (function(**tensors),)

    return call


def _leaves(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors, all but dy to be differentiated."""
    return {name: tensor.detach().requires_grad_(name != "dy") for name, tensor in tensors.items()}


def train_call(function: Callable[..., Any], tensors: Tensors) -> Call:
    """The forward pass and the gradient of every input."""
    leaves = _leaves(tensors)
    inputs = [leaf for name, leaf in leaves.items() if name != "dy"]

    def call() -> tuple[Tensor, ...]:
        y = function(**leaves)
        return (y.detach(), *torch.autograd.grad(y, inputs, leaves["dy"]))

    return call


def backward_call(function: Callable[..., Any], tensors: Tensors) -> Call:
    """The gradient of every input alone, again and again through one recorded forward pass."""
    leaves = _leaves(tensors)
    inputs = [leaf for name, leaf in leaves.items() if name != "dy"]
    y = function(**leaves)

    def call() -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, inputs, leaves["dy"], retain_graph=True)

    return call
