"""A convolution keeps for its backward only the tensors that a wanted gradient needs, uncopied, on every engine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from torch import Tensor

import torch_unroll as tu
from torch_unroll.testing import Target, targets

TARGETS = targets("conv2d")
OPS = ("conv2d", "conv_transpose2d")
SIZES = {"x": (2, 16, 6, 5), "w": (16, 16, 3, 3), "bias": (16,)}
WANTED = [wanted for wanted in product((False, True), repeat=3) if any(wanted)]


def kept(call: Callable[[], Any]) -> tuple[Any, dict[int, Tensor]]:
    """Returns the result of a call, and address -> tensor for the tensors that it saves for backward."""
    tensors: dict[int, Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: tensors.setdefault(t.data_ptr(), t), lambda t: t):
        return call(), tensors


def bytes_of(tensors: dict[int, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def leaves(wanted: tuple[bool, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(size).to(dtype).requires_grad_(needed) for size, needed in zip(SIZES.values(), wanted, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("wanted", WANTED, ids=lambda w: " ".join(name for name, needed in zip(SIZES, w, strict=True) if needed))
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_each_factor_is_kept_for_the_other(target: Target, name: str, wanted: tuple[bool, ...], dtype: torch.dtype) -> None:
    tensors = leaves(wanted, dtype)
    (x, w, _), needed = tensors, [tensor for tensor in tensors if tensor.requires_grad]
    y, first = kept(lambda: getattr(tu, name)(*tensors, engine=target.engine))
    right, torchs_first = kept(lambda: getattr(F, name)(*tensors))
    assert first.keys() == {t.data_ptr() for t, other in ((x, wanted[1]), (w, wanted[0])) if other}
    assert bytes_of(first) <= bytes_of(torchs_first)
    dy = torch.randn_like(y).requires_grad_()
    gradients, second = kept(lambda: torch.autograd.grad(y, needed, dy, create_graph=True))
    expected, torchs_second = kept(lambda: torch.autograd.grad(right, needed, dy, create_graph=True))
    assert second.keys() <= {x.data_ptr(), w.data_ptr(), dy.data_ptr()}
    assert bytes_of(second) <= bytes_of(torchs_second)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-1)


@pytest.mark.parametrize("wanted", [(False, True), (True, False)], ids=["dy", "factor"])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_gradients_keep_no_more(target: Target, wanted: tuple[bool, bool]) -> None:
    """A gradient that is to be differentiated with respect to one of its factors keeps only the other."""
    x, w, _ = leaves((True, True, False))
    for factor, differentiated in ((w, x), (x, w)):  # dgrad multiplies dy and w, wgrad dy and x
        y = tu.conv2d(x, w, engine=target.engine)
        dy = torch.randn_like(y).requires_grad_(wanted[0])
        other = factor.detach().requires_grad_(wanted[1])
        pair = {"input": x, "weight": w} | {"weight" if factor is w else "input": other}
        y = tu.conv2d(**pair, engine=target.engine)
        _, tensors = kept(
            lambda differentiated=differentiated, y=y, dy=dy: torch.autograd.grad(y, differentiated, dy, create_graph=True)
        )
        assert tensors.keys() == {(other if wanted[0] else dy).data_ptr()}


CHAINS: dict[str, Callable[[Any, Tensor, list[Tensor], dict[str, Any]], Tensor]] = {
    "conv relu conv": lambda op, x, w, o: op.conv2d(op.conv2d(x, w[0], **o).relu(), w[1], **o),
    "three of them": lambda op, x, w, o: op.conv2d(
        op.conv2d(op.conv2d(x, w[0], padding=1, **o).relu(), w[1], padding=1, **o).relu(), w[2], **o
    ),
    "groups": lambda op, x, w, o: op.conv2d(
        op.conv2d(x, w[0][:, :8].contiguous(), groups=2, **o).relu(), w[1][:, :8].contiguous(), None, 1, 1, 1, 2, **o
    ),
    "transposed": lambda op, x, w, o: op.conv2d(op.conv_transpose2d(x, w[0], **o).relu(), w[1], **o),
    "pooled": lambda op, x, w, o: F.max_pool2d(op.conv2d(op.conv2d(x, w[0], padding=1, **o).relu(), w[1], **o), 2),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, "autocast"], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_chain_keeps_what_torchs_keeps(
    target: Target, name: str, layout: torch.memory_format, dtype: torch.dtype | str
) -> None:
    autocast = torch.autocast(target.device.type, torch.bfloat16) if isinstance(dtype, str) else nullcontext()
    numbers = torch.float32 if isinstance(dtype, str) else dtype
    x = torch.randn(2, 16, 6, 5).to(numbers).contiguous(memory_format=layout).requires_grad_()
    weights = [torch.randn(16, 16, 3, 3).to(numbers).requires_grad_() for _ in range(3)]
    with autocast:
        y, ours = kept(lambda: CHAINS[name](tu, x, weights, {"engine": target.engine, "precision": "tf32"}))
        _, theirs = kept(lambda: CHAINS[name](F, x, weights, {}))
    assert bytes_of(ours) == bytes_of(theirs)
    y.float().sum().backward()


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_what_is_not_kept_may_be_changed_in_place(target: Target, name: str) -> None:
    def op(*tensors: Tensor) -> Tensor:
        return getattr(tu, name)(*tensors, engine=target.engine)

    def frozen_and_rectified(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        y = op(x, w.detach(), bias)
        z = op(y, w.detach())
        y.relu_()
        return z

    def image_overwritten(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        image = x * 1
        y = op(image, w.detach(), bias)
        image.zero_()
        return y

    def filter_overwritten(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        filters = w * 1
        y = op(x.detach(), filters, bias)
        with torch.no_grad():
            filters.zero_()
        return y

    def bias_alone(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        image, filters = x.detach().clone(), w.detach().clone()
        y = op(image, filters, bias)
        image.zero_(), filters.zero_()
        return y

    tensors = leaves((True, True, True))
    for program in (frozen_and_rectified, image_overwritten, filter_overwritten, bias_alone):
        gradients = torch.autograd.grad(program(*tensors).sum(), tensors, allow_unused=True)
        y = getattr(F, name)(*tensors)
        if program is frozen_and_rectified:
            y = getattr(F, name)(y, tensors[1])
        for gradient, right in zip(gradients, torch.autograd.grad(y.sum(), tensors), strict=True):
            if gradient is not None:
                torch.testing.assert_close(gradient, right, rtol=1e-4, atol=1e-3)
    image = tensors[0] * 1
    y = op(image, tensors[1])
    image.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("moved", WANTED, ids=str)
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_tangents_need_no_gradients(target: Target, name: str, moved: tuple[bool, ...]) -> None:
    """Tangents are right whichever inputs have them, and whether or not an input requires grad."""
    tangents = [torch.randn(size).double() for size in SIZES.values()]
    for wanted in ((False,) * 3, (True, False, False), (False, True, True)):
        tensors = leaves(wanted, torch.float64)
        outcomes = []
        for call in (lambda *t: getattr(tu, name)(*t, engine=target.engine), getattr(F, name)):
            with fwAD.dual_level():
                duals = [
                    fwAD.make_dual(tensor, tangent) if moves else tensor
                    for tensor, tangent, moves in zip(tensors, tangents, moved, strict=True)
                ]
                y = call(*duals)
                outcomes.append([fwAD.unpack_dual(y).tangent])
                needed = [dual for dual, needs in zip(duals, wanted, strict=True) if needs]
                if needed:  # forward over reverse
                    outcomes[-1] += [fwAD.unpack_dual(g).tangent for g in torch.autograd.grad(y.square().sum(), needed)]
        for ours, theirs in zip(*outcomes, strict=True):
            torch.testing.assert_close(ours, theirs)
