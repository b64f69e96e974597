"""Layouts of gradients of any order: those of images have the output's memory format, and those of filters the filter's strides.

If a filter has gaps in memory, its gradient is contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import torch_unroll as tu
from torch_unroll.engines import use_engine
from torch_unroll.shapes import output_memory_format
from torch_unroll.testing import Target, assert_exact, targets

TARGETS = targets("conv2d")
OPS = ("conv2d", "conv_transpose2d")


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def slice_of_channels(tensor: Tensor) -> Tensor:
    return channels_last(torch.cat((tensor, tensor), 1))[:, : tensor.shape[1]]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": channels_last,
    "slice of channels": slice_of_channels,
    "columns": lambda t: t.mT.contiguous().mT,
    "expanded batch": lambda t: t[:1].expand(t.shape),
}

#: The sizes of x and w of conv2d, and groups. Extents of 1 leave strides ambiguous.
SHAPES = {
    "plain": ((2, 3, 4, 3), (2, 3, 3, 3), 1),
    "groups": ((2, 4, 3, 4), (6, 2, 3, 3), 2),
    "depthwise": ((2, 3, 4, 3), (3, 1, 3, 3), 3),
    "one channel": ((2, 1, 4, 3), (3, 1, 3, 3), 1),
    "one filter": ((2, 3, 4, 3), (1, 3, 3, 3), 1),
    "1x1 filter": ((2, 3, 4, 3), (2, 3, 1, 1), 1),
    "1x1 plane": ((2, 3, 1, 1), (2, 3, 1, 1), 1),
    "one image": ((1, 3, 4, 3), (2, 3, 3, 3), 1),
}


def integers(size: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns integers whose products and sums are exact here."""
    return torch.randint(-1, 2, size).to(dtype)


def call(name: str, x: Tensor, w: Tensor, groups: int, engine: str | None = None) -> Tensor:
    padding = w.shape[2] // 2
    numbers = (1, padding, 0, groups, 1) if name == "conv_transpose2d" else (1, padding, 1, groups)
    if engine is None:
        return getattr(F, name)(x, w, None, *numbers)
    return getattr(tu, name)(x, w, None, *numbers, engine=engine)


def factors(name: str, shape: str, x_layout: str, w_layout: str) -> list[Tensor]:
    x_size, w_size, groups = SHAPES[shape]
    if name == "conv_transpose2d":
        w_size = (x_size[1], w_size[0] // groups, *w_size[2:])
    return [LAYOUTS[x_layout](integers(x_size)).requires_grad_(), LAYOUTS[w_layout](integers(w_size)).requires_grad_()]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_gradients_of_images_are_laid_out_as_torchs(target: Target, name: str, shape: str) -> None:
    """The layouts of the gradients do not depend on the layout of dy."""
    groups = SHAPES[shape][2]
    for x_layout, w_layout in product(LAYOUTS, ("contiguous", "channels_last")):
        x, w = factors(name, shape, x_layout, w_layout)
        ours, theirs = call(name, x, w, groups, target.engine), call(name, x, w, groups)
        assert ours.stride() == theirs.stride()
        for dy_layout in ("contiguous", "slice of channels"):
            dy = LAYOUTS[dy_layout](integers(tuple(ours.shape)))
            dx, dw = torch.autograd.grad(ours, (x, w), dy, retain_graph=True)
            right_dx, right_dw = torch.autograd.grad(theirs, (x, w), dy, retain_graph=True)
            assert_exact(dx, right_dx)
            assert_exact(dw, right_dw)
            assert dx.stride() == right_dx.stride(), (x_layout, w_layout, dy_layout)
            assert dw.stride() == w.stride(), (x_layout, w_layout, dy_layout)


@pytest.mark.parametrize("shape", ["plain", "groups", "one image"])
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_second_gradients_are_laid_out_as_the_convolution(target: Target, name: str, shape: str) -> None:
    """The gradients of dx and dw have the layouts of dx and dw, as in a gradient penalty, or are contiguous: both are tested."""
    groups = SHAPES[shape][2]
    for x_layout, w_layout in product(("contiguous", "channels_last", "slice of channels"), ("contiguous", "channels_last")):
        leaves = factors(name, shape, x_layout, w_layout)
        results = []
        for engine in (target.engine, None):
            y = call(name, *leaves, groups, engine)
            dy = integers(tuple(y.shape)).requires_grad_() if not results else results[0][0].detach().requires_grad_()
            dx, dw = torch.autograd.grad(y, leaves, dy, create_graph=True)
            penalty = dx.square().sum() + dw.square().sum()
            results.append((dy, *torch.autograd.grad(penalty, (leaves[0], dy, leaves[1]), retain_graph=True)))
            if engine is not None:  # the gradients that arrive are contiguous
                ddx, ddw = (integers(tuple(first.shape)) for first in (dx, dw))
                memory_format = output_memory_format(*leaves)
                for first, second in ((dx, ddx), (dw, ddw)):
                    for image in torch.autograd.grad(first, (dy, leaves[0]), second, retain_graph=True, allow_unused=True):
                        if image is not None:
                            assert image.stride() == torch.empty(image.shape, memory_format=memory_format).stride()
        (_, *ours), (_, *theirs) = results
        for second, right in zip(ours, theirs, strict=True):
            assert_exact(second, right)
        for second, right in zip(ours[:2], theirs[:2], strict=True):
            assert second.stride() == right.stride(), (x_layout, w_layout)
        assert ours[2].stride() == leaves[1].stride()


@pytest.mark.parametrize("size", [(6, 4, 3, 2), (6, 4, 1, 1), (1, 4, 1, 3)], ids=str)
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_gradients_of_filters_have_their_strides(target: Target, name: str, size: tuple[int, ...]) -> None:
    """The dimensions of the filter lie in memory in any order, without gaps. Second gradients and autocast are tested too."""
    outputs = size[0] if name == "conv_transpose2d" else size[1]
    x = integers((2, outputs, 4, 4)).requires_grad_()
    for order in permutations(range(4)):
        back = sorted(range(4), key=order.__getitem__)
        w = integers(tuple(size[dim] for dim in order)).permute(back).requires_grad_()
        assert w.shape == size
        y, right = call(name, x, w, 1, target.engine), call(name, x, w, 1)
        dx, dw = torch.autograd.grad(y, (x, w), torch.ones_like(y), create_graph=True)
        assert_exact(dw.detach(), torch.autograd.grad(right.sum(), w)[0])
        assert dw.stride() == w.stride()
        assert torch.autograd.grad(dx.square().sum(), w)[0].stride() == w.stride()
        with torch.autocast(target.device.type, torch.bfloat16):
            y = call(name, x, w, 1, target.engine)
        assert torch.autograd.grad(y.float().sum(), w)[0].stride() == w.stride()


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_gradients_of_filters_with_gaps_are_contiguous(target: Target) -> None:
    x, whole = integers((2, 4, 4, 4)), integers((6, 8, 3, 3))
    for w in (whole[:, ::2], whole[:, :4], whole[:1, :4].expand(6, 4, 3, 3), channels_last(whole)[:, 4:]):
        leaf = w.detach().requires_grad_()
        dw, right = (torch.autograd.grad(call("conv2d", x, leaf, 1, engine).sum(), leaf)[0] for engine in (target.engine, None))
        assert_exact(dw, right)
        assert dw.is_contiguous()


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_channels_last_network_stays_so(target: Target) -> None:
    """Gradients between layers are channels_last even if the gradient of the output is contiguous."""
    image = channels_last(integers((2, 3, 6, 6))).requires_grad_()
    weights = [integers(size).requires_grad_() for size in ((4, 3, 3, 3), (4, 4, 1, 1), (4, 2, 3, 3))]
    seen: list[Tensor] = []

    class Seen(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, dx: Tensor) -> Tensor:
            seen.append(dx)
            return dx

    def network(x: Tensor) -> Tensor:
        x = Seen.apply(tu.conv2d(x, weights[0], engine=target.engine))
        x = Seen.apply(tu.conv2d(x.relu(), weights[1], engine=target.engine))
        return tu.conv_transpose2d(x, weights[2], engine=target.engine)

    y = network(image)
    y.backward(integers(tuple(y.shape)))
    assert len(seen) == 2
    assert all(gradient.is_contiguous(memory_format=torch.channels_last) for gradient in seen)


@pytest.mark.parametrize(
    "layouts", [("channels_last", "contiguous"), ("contiguous", "channels_last"), ("slice of channels", "columns")], ids=str
)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.slow
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_compiled_gradients_are_laid_out_the_same(target: Target, name: str, backend: str, layouts: tuple[str, str]) -> None:
    _check_compiled(target, name, backend, layouts)


@pytest.mark.parametrize("name", OPS)
def test_compiled_gradients_of_a_channels_last_image(name: str) -> None:
    _check_compiled(Target("torch", torch.device("cpu")), name, "aot_eager", ("channels_last", "contiguous"))


def _check_compiled(target: Target, name: str, backend: str, layouts: tuple[str, str]) -> None:
    torch._dynamo.reset()
    leaves = factors(name, "plain", *layouts)
    with use_engine(target.engine):
        compiled = torch.compile(lambda x, w: getattr(tu, name)(x, w, None, 1, 1), fullgraph=True, backend=backend)
        results = [function(*leaves) for function in (compiled, lambda x, w: getattr(tu, name)(x, w, None, 1, 1))]
        dy = integers(tuple(results[0].shape))
        gradients = [torch.autograd.grad(y, leaves, dy) for y in results]
    for ours, expected in zip((results[0], *gradients[0]), (results[1], *gradients[1]), strict=True):
        assert_exact(ours.detach(), expected.detach())
        assert ours.stride() == expected.stride()
