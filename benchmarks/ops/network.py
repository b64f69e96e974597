"""A whole training step of a network: forward pass, loss, backward pass and SGD.

For the 16-bit dtypes, the forward pass and the loss are computed under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import Case, Operation
from benchmarks.check import relative_error
from benchmarks.models import NETWORKS, build
from benchmarks.names import Shape
from benchmarks.providers import Call, Tensors, double, is_engine
from torch_unroll.engines import refusal, use_engine
from torch_unroll.replace import replace as replace_modules


@dataclass(frozen=True)
class NetworkShape(Shape):
    """The name of a network, and the batch that it trains on: N square images with `image` pixels per side."""

    network: str
    N: int
    image: int


class Network(Operation):
    """An engine runs the baselines' model after `torch_unroll.replace`. The learning rate is 0, so all steps are the same."""

    name = "network"
    Shape = NetworkShape
    directions = ("train",)
    ours_import = "import torch_unroll"

    def sizes(self, shape: NetworkShape) -> dict[str, tuple[int, ...]]:
        return {"x": (shape.N, NETWORKS[shape.network].channels, shape.image, shape.image)}

    def output(self, shape: NetworkShape) -> tuple[int, ...]:
        return (shape.N, NETWORKS[shape.network].classes)

    def expression(self, shape: NetworkShape, direction: str, provider: str) -> str:
        raise NotImplementedError("a training step is more than one expression: see `call`")

    def call(self, case: Case, tensors: Tensors, provider: str) -> Call:
        x = tensors["x"]
        torch.manual_seed(0)
        model = build(case.shape.network).to(x.device, torch.float64 if x.dtype == torch.float64 else torch.float32)
        x = x.to(next(model.parameters()).dtype)
        if case.layout == "channels_last":
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs
        if is_engine(provider):
            replace_modules(model)
        step: Any = torch.compile(model) if provider == "compile" else model
        target = torch.arange(len(x), device=x.device) % tensors["dy"].shape[1]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
        lowered = case.torch_dtype in (torch.float16, torch.bfloat16) and x.dtype == torch.float32

        def call() -> tuple[Tensor, ...]:
            with (
                use_engine(provider if is_engine(provider) else "auto"),
                torch.autocast(x.device.type, case.torch_dtype, enabled=lowered, cache_enabled=False),
            ):
                logits = step(x)
                loss = F.cross_entropy(logits, target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
            return (logits.detach(), gradients[0])

        return call

    def complaint(
        self,
        case: Case,
        provider: str,
        tensors: Tensors,
        results: Sequence[Tensor],
        exact: Sequence[Tensor],
        torchs: Sequence[Tensor],
    ) -> str | None:
        """Limits the error of the logits in the case's own dtype to 8 times torch's plus 64 times the dtype's eps.

        An engine also has to agree with torch in float64, to within 1e-6.

        A network amplifies rounding errors until a ReLU's input changes sign or another pixel becomes a maximum, so the
        gradients of two correct runs in a narrow dtype differ at random.
        """
        ours, theirs = relative_error(results[:1], exact[:1]), relative_error(torchs[:1], exact[:1])
        if ours > 8 * theirs + 64 * torch.finfo(case.torch_dtype).eps:
            return f"logits: error {ours:.3g}, torch's own {theirs:.3g}"
        if is_engine(provider):
            in_double = relative_error(self.call(case, double(tensors), provider)(), exact)
            if in_double > 1e-6:
                return f"in float64: error {in_double:.3g}"
        return None

    def refusal(self, case: Case, engine: str, device: torch.device) -> str | None:
        if device.type != "cuda" and engine != "torch":
            return "a whole network takes too long on emulated or simulated kernels"
        return refusal(engine, "conv2d", device, case.torch_dtype)

    def flops(self, shape: NetworkShape, direction: str) -> int:
        """Counts three times what torch counts for the convolutions and products of the forward pass."""
        return _flops(shape)

    def bytes(self, shape: NetworkShape, direction: str, element_size: int) -> int:
        """Returns 0: the number depends on what is saved for the backward pass, and is unknown."""
        return 0

    def shrink(self, shape: NetworkShape) -> NetworkShape:
        return replace(shape, N=2, image=NETWORKS[shape.network].smallest)


@cache
def _flops(shape: NetworkShape) -> int:
    with FakeTensorMode(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        build(shape.network)(torch.empty(shape.N, NETWORKS[shape.network].channels, shape.image, shape.image))
    return 3 * counter.get_total_flops()
