"""Sizes that depend on data, within one compiled graph: the number of images, rows or columns that a mask selects."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.config
import torch.nn.functional as F
from torch import Tensor

import torch_unroll as tu
from torch_unroll.testing import Target, targets

TARGETS = targets("conv2d")


def _weight(x: Tensor, *shape: int) -> Tensor:
    return torch.linspace(-1, 1, torch.Size(shape).numel(), device=x.device).sin().view(shape).to(x.dtype)


#: Calls, as functions of a namespace (torch's or ours) and of images (N, 2, H, W).
CALLS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "conv2d": lambda ops, x: ops.conv2d(x, _weight(x, 3, 2, 3, 2), _weight(x, 3), 2, 1),
    "same": lambda ops, x: ops.conv2d(x, _weight(x, 3, 2, 3, 2), padding="same"),
    "unbatched": lambda ops, x: ops.conv2d(x[0], _weight(x, 3, 2, 3, 2)),
    "conv_transpose2d": lambda ops, x: ops.conv_transpose2d(x, _weight(x, 2, 3, 3, 2), None, 2, 1),
    "max_pool2d": lambda ops, x: ops.max_pool2d(x, 2),
    "indices": lambda ops, x: torch.cat(ops.max_pool2d(x, 3, 2, 1, return_indices=True)),
    "unfold": lambda ops, x: ops.unfold(x, 2),
    "fold": lambda ops, x: ops.fold(ops.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1),
    "max_over_time": lambda ops, x: ops.max_over_time(x[:, :, 0].permute(1, 0, 2)),
}

#: The dimension that a mask selects from: images, rows or columns.
CHOICES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "N": lambda x, mask: x[mask],
    "H": lambda x, mask: x[:, :, mask],
    "W": lambda x, mask: x[:, :, :, mask],
}


class _Torchs:
    """torch's functions, and replacements for those that torch lacks."""

    conv2d, conv_transpose2d = staticmethod(F.conv2d), staticmethod(F.conv_transpose2d)
    max_pool2d, unfold, fold = staticmethod(F.max_pool2d), staticmethod(F.unfold), staticmethod(F.fold)

    @staticmethod
    def max_over_time(x: Tensor) -> Tensor:
        return x.amax(0)


def _cases() -> list[Any]:
    def marks(target: Target, name: str, choice: str, train: bool) -> list[pytest.MarkDecorator]:
        is_quick = (
            target.engine == "torch" and train and (choice == "N" or (name, choice) in (("conv2d", "H"), ("max_pool2d", "W")))
        )
        return [] if is_quick else [pytest.mark.slow]

    return [
        pytest.param(*case, id="-".join(map(str, case)), marks=marks(*case))
        for case in itertools.product(TARGETS, CALLS, CHOICES, (False, True))
    ]


def _as_torch(
    target: Target, name: str, choice: str, train: bool, dtype: torch.dtype = torch.float32, lowered: bool = False
) -> None:
    torch._dynamo.reset()
    choose = CHOICES[choice]

    def run(x: Tensor, mask: Tensor) -> Tensor:
        return CALLS[name](tu, choose(x, mask))

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    x = torch.randn(6, 2, 6, 6, dtype=dtype, device=target.device, requires_grad=train)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True), tu.use_engine(target.engine):
        for kept in ([0, 1, 3, 5], [1, 2, 3, 4, 5]):
            mask = torch.tensor([i in kept for i in range(6)], device=target.device)
            with torch.autocast(target.device.type, torch.bfloat16, enabled=lowered):
                y, expected = compiled(x, mask), CALLS[name](_Torchs, choose(x, mask))
            assert y.dtype == expected.dtype
            results, wanted = [y], [expected]
            if train:
                results += torch.autograd.grad(y.float().square().sum(), x)
                wanted += torch.autograd.grad(expected.float().square().sum(), x)
            for ours, theirs in zip(results, wanted, strict=True):
                assert ours.shape == theirs.shape
                low = lowered or dtype != torch.float32
                assert (ours - theirs).double().norm() <= (3e-2 if low else 1e-5) * theirs.double().norm()


@pytest.mark.parametrize(("target", "name", "choice", "train"), _cases())
def test_chosen_by_a_mask(target: Target, name: str, choice: str, train: bool) -> None:
    _as_torch(target, name, choice, train)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "lowered"),
    [(torch.bfloat16, False), (torch.float16, False), (torch.float32, True)],
    ids=["bf16", "fp16", "autocast"],
)
@pytest.mark.parametrize("name", ["max_pool2d", "unfold", "fold", "max_over_time"])
def test_lower_precision(name: str, dtype: torch.dtype, lowered: bool) -> None:
    _as_torch(TARGETS[-1], name, "N", True, dtype, lowered)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_graph_refuses_the_same_calls_as_the_op(target: Target) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, mask: tu.max_pool2d(x[:, :, mask], 2, engine=target.engine), fullgraph=True, backend="aot_eager"
    )
    x = torch.randn(1, 1, 4, 4, device=target.device)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        assert compiled(x, torch.ones(4, dtype=torch.bool, device=target.device)).shape == (1, 1, 2, 2)
        for kept in (0, 1):
            with pytest.raises(RuntimeError):
                compiled(x, torch.arange(4, device=target.device) < kept)
