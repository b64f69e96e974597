"""NCHW images on tensor cores: which tensors a training step packs, and that results and derivatives are exact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import torch_unroll as tu
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.kernels import planning
from torch_unroll.kernels.cuda.conv2d.pack_channels import plan_pack_channels
from torch_unroll.shapes import dtype_name
from torch_unroll.testing import Target, assert_exact, targets

TARGETS = targets("conv2d")
EMULATED = [target for target in TARGETS if str(target) == "cuda-emulated"]
MATHS = [(torch.float16, "conv"), (torch.bfloat16, "conv"), (torch.float32, "tf32")]


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def slice_of_channels(tensor: Tensor) -> Tensor:
    return torch.cat((tensor, -tensor), -3)[..., : tensor.shape[-3], :, :]


@dataclass(frozen=True)
class Case:
    """A call of conv2d or conv_transpose2d whose images have a multiple of 8 channels in each group."""

    x: tuple[int, ...] = (2, 16, 7, 5)
    w: tuple[int, ...] = (8, 16, 3, 2)
    stride: tuple[int, int] = (1, 2)
    padding: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = False
    transposed: bool = False
    x_layout: Callable[[Tensor], Tensor] = lambda tensor: tensor
    w_layout: Callable[[Tensor], Tensor] = lambda tensor: tensor
    dy_layout: Callable[[Tensor], Tensor] = lambda tensor: tensor
    packs_x: bool = True
    packs_dy: bool = True

    def inputs(self, target: Target, dtype: torch.dtype) -> list[Tensor]:
        """Returns tensors of -1, 0 and 1, so that results and first and second derivatives are exact in every dtype."""
        outputs = self.w[1] * self.groups if self.transposed else self.w[0]
        sizes = [self.x, self.w, *([(outputs,)] if self.bias else [])]
        generator = torch.Generator().manual_seed(0)
        x, w, *bias = (torch.randint(-1, 2, size, generator=generator).to(target.device, dtype) for size in sizes)
        return [tensor.requires_grad_() for tensor in (self.x_layout(x), self.w_layout(w), *bias)]

    def ours(self, *tensors: Tensor, **options: Any) -> Tensor:
        if self.transposed:
            bias = tensors[2] if self.bias else None
            return tu.conv_transpose2d(*tensors[:2], bias, self.stride, self.padding, 0, self.groups, **options)
        return tu.conv2d(*tensors[:2], tensors[2] if self.bias else None, self.stride, self.padding, 1, self.groups, **options)

    def torchs(self, *tensors: Tensor) -> Tensor:
        bias = tensors[2] if self.bias else None
        if self.transposed:
            return F.conv_transpose2d(*tensors[:2], bias, self.stride, self.padding, 0, self.groups)
        return F.conv2d(*tensors[:2], bias, self.stride, self.padding, 1, self.groups)


CASES = {
    "plain": Case(),
    "bias": Case(bias=True),
    "groups": Case(x=(3, 16, 7, 6), w=(16, 8, 3, 3), groups=2),
    "unbatched": Case(x=(16, 7, 5)),
    "1x1": Case(w=(40, 16, 1, 1), stride=(1, 1), padding=(0, 0)),
    "channels_last filter": Case(w_layout=channels_last),
    "channels_last image": Case(x_layout=channels_last, packs_x=False),
    "channels_last": Case(x_layout=channels_last, dy_layout=channels_last, packs_x=False, packs_dy=False),
    "slices of channels": Case(x_layout=slice_of_channels, dy_layout=slice_of_channels),
    "transposed": Case(w=(16, 8, 3, 2), transposed=True),
    "transposed, groups and bias": Case(w=(16, 8, 2, 2), transposed=True, groups=2, bias=True),
}


def weighting(y: Tensor, case: Case) -> Tensor:
    dy = torch.randint(-1, 2, y.shape, generator=torch.Generator().manual_seed(1)).to(y.device, y.dtype)
    return case.dy_layout(dy).detach()


def results(call: Callable[..., Tensor], case: Case, inputs: list[Tensor]) -> list[Tensor]:
    """Returns y, its gradients, and the gradients of these."""
    y = call(*inputs)
    dy = weighting(y, case).requires_grad_()
    first = torch.autograd.grad(y, inputs, dy, create_graph=True)
    generator = torch.Generator().manual_seed(2)
    along = [torch.randint(-1, 2, tensor.shape, generator=generator).to(tensor) for tensor in first]
    second = torch.autograd.grad(first, [*inputs[:2], dy], along)
    return [tensor.detach() for tensor in (y, *first, *second)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "precision"), MATHS, ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_results_of_every_order(target: Target, dtype: torch.dtype, precision: str, name: str) -> None:
    case = CASES[name]
    inputs = case.inputs(target, dtype)
    ours = results(lambda *tensors: case.ours(*tensors, engine=target.engine, precision=precision), case, inputs)
    exact = results(case.torchs, case, [tensor.detach().double().requires_grad_() for tensor in inputs])
    for result, right in zip(ours, exact, strict=True):
        assert_exact(result.double(), right)


def packs(launches: list[Any]) -> Counter[Any]:
    return Counter(plan for _, plan in launches if plan.kernel.name == "pack_channels_kernel")


STEPS = [(name, "mma", *maths) for name in CASES for maths in MATHS]
#: wgmma has no wgrad of TF32, and no fprop or dgrad of groups of 8 channels.
STEPS += [(name, "wgmma", *maths) for name, case in CASES.items() for maths in MATHS[:2] if case.groups == 1]


@pytest.mark.parametrize(("name", "variant", "dtype", "precision"), STEPS, ids=str)
@pytest.mark.parametrize("target", EMULATED, ids=str)
def test_launches_of_a_training_step(target: Target, name: str, variant: str, dtype: torch.dtype, precision: str) -> None:
    """A product packs each operand that is not channels_last.

    Each of x, w and dy is an operand of two of the three products of a step, so it is packed twice or not at all.
    """
    case = CASES[name]
    inputs = case.inputs(target, dtype)
    with planning.force("conv2d", variant), recording() as record:
        y = case.ours(*inputs, engine=target.engine, precision=precision)
        torch.autograd.grad(y, inputs, weighting(y, case))
    first, last = (image if image.dim() == 4 else image.unsqueeze(0) for image in (inputs[0], y))
    of_first, of_last, of_w = (
        plan_pack_channels(dtype_name(dtype), image.shape[0], image[0, 0].numel(), image.shape[1] // groups, groups)
        for image, groups in ((first, case.groups), (last, case.groups), (inputs[1], 1))
    )
    assert len({of_first, of_last, of_w}) == 3
    expected = Counter({of_first: 2 * case.packs_x, of_last: 2 * case.packs_dy, of_w: 2 * (inputs[1].stride(1) > 1)})
    assert packs(record.launches) == +expected


OTHERS: dict[str, tuple[Case, tuple[torch.dtype, str]]] = {
    "float32 of IEEE products": (Case(), (torch.float32, "ieee")),
    "float64": (Case(), (torch.float64, "conv")),
    "channels_last": (Case(x_layout=channels_last, w_layout=channels_last, dy_layout=channels_last), (torch.bfloat16, "conv")),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("target", EMULATED, ids=str)
def test_nothing_is_packed_for_other_products(target: Target, name: str) -> None:
    case, (dtype, precision) = OTHERS[name]
    inputs = case.inputs(target, dtype)
    with recording() as record:
        y = case.ours(*inputs, engine=target.engine, precision=precision)
        torch.autograd.grad(y, inputs, weighting(y, case))
    assert record.launches
    assert not packs(record.launches)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_autocast(target: Target) -> None:
    case = CASES["bias"]
    inputs = case.inputs(target, torch.float32)
    with torch.autocast(target.device.type, torch.bfloat16):
        y = case.ours(*inputs, engine=target.engine)
    dy = weighting(y, case)
    gradients = torch.autograd.grad(y, inputs, dy)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = case.torchs(*exact)
    assert y.dtype == torch.bfloat16
    assert_exact(y.double(), expected)
    for ours, theirs, like in zip(gradients, torch.autograd.grad(expected, exact, dy.double()), inputs, strict=True):
        assert_exact(ours.double(), theirs)
        assert ours.dtype == like.dtype
        assert ours.stride() == like.stride()
