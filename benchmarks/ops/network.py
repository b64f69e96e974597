"""A whole training step of a network: forward, loss, backward, SGD; under autocast for the 16-bit dtypes."""

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

from benchmarks.cases import Case, Shape
from benchmarks.check import error
from benchmarks.models import NETWORKS, build
from benchmarks.ops.operation import Call, Operation, Tensors, double, is_engine
from torch_unroll.engines import refusal, use_engine


@dataclass(frozen=True)
class NetworkShape(Shape):
    """A network by name, and the batch it trains on."""

    network: str
    N: int
    image: int


class Network(Operation):
    """Ours is the same unmodified model after `torch_unroll.replace`. The learning rate is 0, so that every step is the same."""

    name = "network"
    Shape = NetworkShape
    directions = ("train",)
    ours_import = "import torch_unroll"

    def sizes(self, shape: NetworkShape) -> dict[str, tuple[int, ...]]:
        return {"x": (shape.N, NETWORKS[shape.network].channels, shape.image, shape.image)}

    def output(self, shape: NetworkShape) -> tuple[int, ...]:
        return (shape.N, NETWORKS[shape.network].classes)

    def expression(self, shape: NetworkShape, direction: str, provider: str) -> str:
        raise NotImplementedError("a training step is not one expression: see `call`")

    def call(self, case: Case, tensors: Tensors, provider: str) -> Call:
        x = tensors["x"]
        torch.manual_seed(0)
        model = build(case.shape.network).to(x.device, torch.float64 if x.dtype == torch.float64 else torch.float32)
        x = x.to(next(model.parameters()).dtype)
        if case.layout == "channels_last":
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # absent from torch's stubs
        if is_engine(provider):
            from torch_unroll.replace import replace as replace_modules

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
        """A network multiplies rounding errors until a ReLU or a maximum flips, so that two right runs differ at random. So ours
        has to agree in float64, where nothing flips, and in its own dtype its logits may be a few times as far off as torch's."""
        if error(results[:1], exact[:1]) > 8 * error(torchs[:1], exact[:1]) + 64 * torch.finfo(case.torch_dtype).eps:
            return f"logits: error {error(results[:1], exact[:1]):.3g}, torch's own {error(torchs[:1], exact[:1]):.3g}"
        if is_engine(provider):
            in_double = error(self.call(case, double(tensors), provider)(), exact)
            if in_double > 1e-6:
                return f"in float64: error {in_double:.3g}"
        return None

    def refusal(self, case: Case, engine: str, device: torch.device) -> str | None:
        if device.type != "cuda" and engine != "torch":
            return "a whole network is more than emulated or simulated kernels are for"
        return refusal(engine, "conv2d", device, case.torch_dtype)

    def flops(self, shape: NetworkShape, direction: str) -> int:
        """Three times the forward pass's convolutions and products, as torch counts them, without recomputation."""
        return _flops(shape)

    def bytes(self, shape: NetworkShape, direction: str, element_size: int) -> int:
        """Unknown: it depends on what is kept."""
        return 0

    def shrink(self, shape: NetworkShape) -> NetworkShape:
        return replace(shape, N=2, image=NETWORKS[shape.network].smallest)


@cache
def _flops(shape: NetworkShape) -> int:
    with FakeTensorMode(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        build(shape.network)(torch.empty(shape.N, NETWORKS[shape.network].channels, shape.image, shape.image))
    return 3 * counter.get_total_flops()
