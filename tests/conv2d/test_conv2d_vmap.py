"""Convolutions of one tensor with many others under torch.func.vmap: the shared tensor is not copied for each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_unroll as tu
import torch_unroll.ops.conv2d as conv2d_ops
from torch_unroll import prepared
from torch_unroll.ops.conv2d import conv2d_dgrad, conv2d_fprop, conv2d_wgrad
from torch_unroll.testing import Target, assert_exact, targets

TARGETS = targets("conv2d")
B = 3


@dataclass(frozen=True)
class Case:
    """An operator, the sizes of its tensors, and its other arguments."""

    op: Callable[..., Tensor]
    sizes: tuple[tuple[int, ...], ...]
    before: tuple[Any, ...]
    groups: int

    def __call__(self, engine: str, *tensors: Tensor) -> Tensor:
        return self.op(*tensors, *self.before, (2, 1), (1, 1, 1, 1), (1, 1), self.groups, "conv", engine, None)


def cases(groups: int) -> dict[str, Case]:
    x, w, dy = (2, 4, 5, 6), (6, 4 // groups, 3, 3), (2, 6, 3, 6)
    return {
        f"fprop, {groups}": Case(conv2d_fprop, (x, w), (None,), groups),
        f"fprop with bias, {groups}": Case(conv2d_fprop, (x, w, (6,)), (), groups),
        f"dgrad, {groups}": Case(conv2d_dgrad, (dy, w), ((5, 6),), groups),
        f"wgrad, {groups}": Case(conv2d_wgrad, (dy, x), ((3, 3), (4 // groups * 9, 9, 3, 1)), groups),
    }


CASES = cases(1) | cases(2) | {"fprop, depthwise": Case(conv2d_fprop, ((2, 4, 5, 6), (8, 1, 3, 3), (8,)), (), 4)}


def integers(*size: int) -> Tensor:
    return torch.randint(-2, 3, size).double()


@pytest.fixture
def elements(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Collects for each call of an engine how many elements each of its tensors has."""
    calls: list[list[int]] = []
    select = conv2d_ops.select

    class Watched:
        def __init__(self, engine: Any) -> None:
            self.engine = engine

        def __getattr__(self, name: str) -> Callable[..., Any]:
            def called(*inputs: Any) -> Any:
                calls.append([value.numel() for value in inputs if isinstance(value, Tensor)])
                return getattr(self.engine, name)(*inputs)

            return called

    monkeypatch.setattr(conv2d_ops, "select", lambda *which: Watched(select(*which)))
    monkeypatch.setattr(prepared, "sights", 0)  # a prepared call does not reach the engine
    return calls


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_each_tensor_reaches_the_engine_once(target: Target, name: str, elements: list[list[int]]) -> None:
    """x, w and dy are not repeated, whichever are batched, along the first or the last dimension. A bias may be repeated."""
    case = CASES[name]
    for batched in product((False, True), repeat=len(case.sizes)):
        if not any(batched):
            continue
        for last in (False, True):
            tensors = [integers(B, *size) if many else integers(*size) for size, many in zip(case.sizes, batched, strict=True)]
            dims = tuple((-1 if last else 0) if many else None for many in batched)
            handed = [t.movedim(0, -1) if many and last else t for t, many in zip(tensors, batched, strict=True)]
            elements.clear()
            result = torch.func.vmap(lambda *t: case(target.engine, *t), dims)(*handed)
            assert len(elements) == 1
            assert elements[0][:2] == [t.numel() for t in tensors[:2]]
            for i in range(B):
                one = [t[i] if many else t for t, many in zip(tensors, batched, strict=True)]
                assert_exact(result[i], case(target.engine, *one))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_an_ensemble_on_one_batch(target: Target, name: str, groups: int, elements: list[list[int]]) -> None:
    """Outputs and all gradients are right, and the images are not repeated for each member."""
    x, many_w, many_bias = integers(4, 4, 7, 6), integers(B, 4, 4 // groups, 2, 2), integers(B, 4)

    def loss(x: Tensor, w: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        numbers = (1, 0, 1, groups) if name == "conv2d" else (1, 0, 0, groups)
        y = getattr(tu, name)(x, w, bias, *numbers, engine=target.engine)
        return (y * y).sum(), y

    ensemble = torch.func.vmap(torch.func.grad(loss, (0, 1, 2), has_aux=True), (None, 0, 0))
    gradients, y = ensemble(x, many_w, many_bias)
    assert len(elements) == 3
    assert sorted(sorted(sizes[:2]) for sizes in elements) == sorted(
        sorted((first.numel(), second.numel())) for first, second in ((x, many_w), (y, many_w), (y, x))
    )
    for i in range(B):
        right, y_of_one = torch.func.grad(loss, (0, 1, 2), has_aux=True)(x, many_w[i], many_bias[i])
        assert_exact(y[i], y_of_one)
        for ours, theirs in zip(gradients, right, strict=True):
            assert_exact(ours[i], theirs)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_nested_and_in_parts(target: Target, elements: list[list[int]]) -> None:
    x, w = integers(2, 4, 5, 5), integers(2, B, 6, 2, 3, 3)

    def call(x: Tensor, w: Tensor) -> Tensor:
        return tu.conv2d(x, w, None, 1, 1, 1, 2, engine=target.engine)

    nested = torch.func.vmap(torch.func.vmap(call, (None, 0)), (None, 0))(x, w)
    parts = torch.func.vmap(call, (None, 0), chunk_size=2)(x, w[0])
    assert elements == [[x.numel(), part.numel()] for part in (w, w[0, :2], w[0, 2:])]
    for i, j in product(range(2), range(B)):
        assert_exact(nested[i, j], call(x, w[i, j]))
        assert_exact(parts[j], call(x, w[0, j]))
    with torch.autocast(target.device.type, torch.bfloat16):
        lowered = torch.func.vmap(call, (None, 0))(x.float(), w[0].float())
    for j in range(B):
        assert_exact(lowered[j].double(), call(x, w[0, j]))
    tangents = torch.func.vmap(lambda t: torch.func.jvp(lambda x: call(x, w[0, 0]), (x,), (t,))[1])(integers(B, *x.shape))
    assert tangents.shape == (B, *call(x, w[0, 0]).shape)
