"""A case is one operation, direction, dtype and layout on one shape. Its key, which `ops.parse` parses, names these five:

conv2d/dgrad/bf16/channels_last/N=32,C=64,H=56,W=56,K=64,R=3,S=3,padding=1
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.check import complaint
from benchmarks.names import DTYPES, LAYOUTS, Shape
from benchmarks.providers import BASELINES, Call, Tensors, backward_call, direct_call, is_engine, train_call
from torch_unroll.engines import refusal


@dataclass(frozen=True)
class Case:
    """What is checked and timed as one row of a result file."""

    operation: Operation
    direction: str
    dtype: str
    layout: str
    shape: Any  # an instance of the operation's Shape

    @property
    def op(self) -> str:
        """The operation's name."""
        return self.operation.name

    @property
    def key(self) -> str:
        """The name of the case."""
        return f"{self.op}/{self.direction}/{self.dtype}/{self.layout}/{self.shape.text()}"

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def flops(self) -> int:
        """Floating-point operations, counting a multiply-add as two."""
        return self.operation.flops(self.shape, self.direction)

    @property
    def bytes(self) -> int:
        """Bytes that have to move if a pass reads each input and writes each output once; 0 for `network`: not known."""
        return self.operation.bytes(self.shape, self.direction, self.torch_dtype.itemsize)

    def shrunk(self) -> Case:
        """A small case with the same window, stride, padding and dilation.

        Numbers of channels keep their remainder modulo 8, except in grouped convolutions.
        """
        return replace(self, shape=self.operation.shrink(self.shape))


@dataclass(frozen=True)  # without fields, so that a copy in another process is equal to the original
class Operation(ABC):
    """What the runner needs to know about an op: its FLOPs and bytes, its inputs, and the source of the calls to compare.

    An operation names its tensors. `dy` is the gradient of its output; directions with autograd compute the gradients of the
    other tensors. The calls of all operations but `network` are written as source, which `python -m benchmarks repro` also
    prints.
    """

    name: ClassVar[str]
    Shape: ClassVar[type[Shape]]
    directions: ClassVar[tuple[str, ...]] = ("fprop", "train")
    #: The directions that run without autograd: `expression` is the whole call.
    direct: ClassVar[tuple[str, ...]] = ("fprop",)
    layouts: ClassVar[tuple[str, ...]] = LAYOUTS
    baselines: ClassVar[tuple[str, ...]] = BASELINES
    #: torch.backends.cudnn.<precision>.fp32_precision switches this op between IEEE arithmetic and TF32.
    precision: ClassVar[str] = "conv"
    #: The imports that the expressions of engines and of baselines need.
    ours_import: ClassVar[str]
    torch_import: ClassVar[str] = "import torch.nn.functional as F"

    @abstractmethod
    def sizes(self, shape: Any) -> dict[str, tuple[int, ...]]:
        """The sizes of the inputs by name; names that begin with `w` are weights."""

    @abstractmethod
    def output(self, shape: Any) -> tuple[int, ...]:
        """The size of the output."""

    @abstractmethod
    def expression(self, shape: Any, direction: str, provider: str) -> str:
        """The provider's call as source that refers to the inputs by name."""

    @abstractmethod
    def flops(self, shape: Any, direction: str) -> int:
        """Floating-point operations, counting a multiply-add as two."""

    @abstractmethod
    def shrink(self, shape: Any) -> Any:
        """A small shape of the same geometry."""

    def bytes(self, shape: Any, direction: str, element_size: int) -> int:
        """Counts each input and the output once; `train` adds the output's gradient, the inputs again and their gradients."""
        inputs = sum(math.prod(size) for size in self.sizes(shape).values())
        forward = inputs + math.prod(self.output(shape))
        return element_size * (forward if direction == "fprop" else 2 * forward + inputs)

    def tensors(self, case: Case, device: torch.device, seed: int) -> dict[str, Tensor]:
        """Inputs and `dy`, uniform in [−1, 1], with weights divided by the square root of their fan-in.

        The values are the same on every device.
        """
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, size in {**self.sizes(case.shape), "dy": self.output(case.shape)}.items():
            values = torch.rand(size, generator=generator) * 2 - 1
            if name.startswith("w"):
                values /= math.sqrt(max(1, math.prod(size[1:])))
            values = values.to(device, case.torch_dtype)
            if len(size) == 4 and case.layout == "channels_last":
                values = values.contiguous(memory_format=torch.channels_last)
            tensors[name] = values
        return tensors

    def refusal(self, case: Case, engine: str, device: torch.device) -> str | None:
        """Why the engine cannot run the case on the device; None if it can."""
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
        """What is wrong with the results of a call; None if nothing is.

        `exact` holds torch's results in float64, and `torchs` its results in the case's own dtype.
        """
        return complaint(results, exact, torchs)

    def function(self, shape: Any, direction: str, provider: str) -> Callable[..., Any]:
        """The expression as a function that takes all tensors, including `dy`, as keyword arguments."""
        names = [*self.sizes(shape), "dy"]
        scope: dict[str, Any] = {"torch": torch}
        exec(self.ours_import if is_engine(provider) else self.torch_import, scope)
        return eval(f"lambda {', '.join(names)}: {self.expression(shape, direction, provider)}", scope)

    def call(self, case: Case, tensors: Tensors, provider: str) -> Call:
        """The call that is checked and timed; it returns the results to compare."""
        function = self.function(case.shape, case.direction, provider)
        if provider == "compile":
            function = torch.compile(function)
        if case.direction in self.direct:
            return direct_call(function, tensors)
        return (train_call if case.direction == "train" else backward_call)(function, tensors)
