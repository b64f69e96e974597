"""Batched gradients, by `is_grads_batched` or torch.autograd.functional with `vectorize`, equal those computed one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

from tests.programs.operations import OPERATIONS
from torch_unroll.testing import Target, targets

TARGETS = targets("conv2d")
#: Batching does not depend on the engine, so the quick suite runs expensive tests on one engine only.
DEAR = [pytest.param(target, id=str(target), marks=[] if target.engine == "torch" else pytest.mark.slow) for target in TARGETS]


def _leaves(name: str, target: Target) -> list[Tensor]:
    return [tensor.requires_grad_() for tensor in OPERATIONS[name].tensors(device=target.device)]


def _seeds(y: Tensor) -> Tensor:
    return torch.linspace(-1, 1, 3 * y.numel(), dtype=y.dtype, device=y.device).sin().view(3, *y.shape)


def _one_by_one(y: Tensor, leaves: list[Tensor], seeds: Tensor, create_graph: bool = False) -> list[Tensor]:
    rows = [torch.autograd.grad(y, leaves, seed, retain_graph=True, create_graph=create_graph) for seed in seeds]
    return [torch.stack(parts) for parts in zip(*rows, strict=True)]


def _squared(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *tensors: function(*tensors).square().sum()


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_first_order(target: Target, name: str) -> None:
    leaves, others = _leaves(name, target), _leaves(name, target)
    y, expected = OPERATIONS[name].on(target.engine)(*leaves), OPERATIONS[name].torchs(*others)
    batched = torch.autograd.grad(y, leaves, _seeds(y), is_grads_batched=True)
    torch.testing.assert_close(list(batched), _one_by_one(expected, others, _seeds(expected)))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("target", DEAR)
def test_second_order(target: Target, name: str) -> None:
    """A batch of gradients is differentiated again, and a single gradient is differentiated for a batch of seeds."""
    leaves, others = _leaves(name, target), _leaves(name, target)
    y, expected = OPERATIONS[name].on(target.engine)(*leaves).sin(), OPERATIONS[name].torchs(*others).sin()
    first = torch.autograd.grad(y, leaves, _seeds(y), is_grads_batched=True, create_graph=True)
    first_expected = _one_by_one(expected, others, _seeds(expected), create_graph=True)
    loss = sum((part.square().sum() for part in first), torch.zeros((), dtype=y.dtype))
    loss_expected = sum((part.square().sum() for part in first_expected), torch.zeros((), dtype=y.dtype))
    torch.testing.assert_close(torch.autograd.grad(loss, leaves, retain_graph=True), torch.autograd.grad(loss_expected, others))

    (dx,) = torch.autograd.grad(y.sum(), leaves[0], create_graph=True)
    seeds = _seeds(dx.detach())
    again = torch.autograd.grad(dx, leaves, seeds, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(list(again), _one_by_one(dx, leaves, seeds))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("target", DEAR)
def test_vectorized(target: Target, name: str) -> None:
    operation = OPERATIONS[name]
    tensors = operation.tensors(device=target.device)
    ours = operation.on(target.engine)
    expected = jacobian(operation.torchs, tuple(tensors))
    torch.testing.assert_close(jacobian(ours, tuple(tensors), vectorize=True), expected)
    torch.testing.assert_close(jacobian(ours, tuple(tensors), vectorize=True, strategy="forward-mode"), expected)

    def of_the_first(function: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: _squared(function)(x, *tensors[1:])

    expected_hessian = hessian(of_the_first(operation.torchs), tensors[0])
    torch.testing.assert_close(hessian(of_the_first(ours), tensors[0], vectorize=True), expected_hessian)
    forward_over_reverse = hessian(of_the_first(ours), tensors[0], vectorize=True, outer_jacobian_strategy="forward-mode")
    torch.testing.assert_close(forward_over_reverse, expected_hessian)
