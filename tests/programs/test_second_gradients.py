"""Gradients can be differentiated again if and only if torch's can, with the same result: numbers, None or an exception."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_unroll as tu
from torch_unroll.testing import Target, targets

TARGETS = targets("conv2d")


def _second(call: Callable[..., Tensor], leaves: dict[str, Tensor]) -> dict[str, Any]:
    """Differentiates the sum of a call's results twice.

    Returns each first gradient, whether it requires a gradient, and its own gradient with respect to each leaf, or the error.
    """
    wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    first = torch.autograd.grad(call(**leaves).sum(), list(wanted.values()), create_graph=True)
    outcomes: dict[str, Any] = {}
    for name, gradient in zip(wanted, first, strict=True):
        outcomes |= {f"d{name}": gradient.detach(), f"d{name} history": (gradient.requires_grad, gradient.is_leaf)}
        for other, leaf in wanted.items():
            for allow_unused in (True, False):
                try:
                    (second,) = torch.autograd.grad(gradient.sum(), leaf, allow_unused=allow_unused, retain_graph=True)
                except RuntimeError as error:
                    second = str(error).partition(".")[0]
                outcomes[f"d{name} d{other} {allow_unused}"] = second
    return outcomes


def _assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        if isinstance(ours[name], Tensor) and isinstance(theirs[name], Tensor):
            torch.testing.assert_close(ours[name], theirs[name], msg=lambda text, name=name: f"{name}: {text}")
        else:
            assert ours[name] == theirs[name], name


def _leaves(shapes: dict[str, tuple[int, ...]], wanted: str) -> dict[str, Tensor]:
    return {name: torch.randn(shape, dtype=torch.float64, requires_grad=name in wanted.split()) for name, shape in shapes.items()}


POOLINGS: dict[str, dict[str, Any]] = {
    "2": {"kernel_size": 2},
    "overlapping, padded": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 2, "dilation": 2},
    "rounded up": {"kernel_size": 3, "stride": 2, "ceil_mode": True},
}


@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (3, 6, 5)], ids=str)
@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_max_pool2d(target: Target, name: str, shape: tuple[int, ...]) -> None:
    leaves = _leaves({"x": shape}, "x")
    ours = _second(lambda x: tu.max_pool2d(x, **POOLINGS[name], engine=target.engine), leaves)
    _assert_same(ours, _second(lambda x: F.max_pool2d(x, **POOLINGS[name]), leaves))
    assert not ours["dx dx False"].any()


@pytest.mark.parametrize("wanted", ["x", "w", "b", "x w", "x b", "w b", "x w b"])
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_convolution(target: Target, name: str, wanted: str) -> None:
    leaves = _leaves({"x": (1, 2, 5, 5), "w": (2, 2, 3, 3), "b": (2,)}, wanted)
    ours = _second(lambda x, w, b: getattr(tu, name)(x, w, b, engine=target.engine), leaves)
    _assert_same(ours, _second(lambda x, w, b: getattr(F, name)(x, w, b), leaves))


@pytest.mark.parametrize("wanted", ["x", "w_ih w_hh", "x h w_ih w_hh b_ih b_hh"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_recurrence(target: Target, nonlinearity: str, wanted: str) -> None:
    weights = {"w_ih": (5, 4), "w_hh": (5, 5), "b_ih": (5,), "b_hh": (5,)}
    cell = _leaves({"x": (2, 4), "h": (2, 5)} | weights, wanted)
    ours = _second(lambda **t: tu.rnn_cell(*t.values(), nonlinearity=nonlinearity, engine=target.engine), cell)
    _assert_same(ours, _second(lambda **t: getattr(torch, f"rnn_{nonlinearity}_cell")(*t.values()), cell))
    leaves = _leaves({"x": (3, 2, 4), "h": (1, 2, 5)} | weights, wanted)
    settings = (True, 1, 0.0, False, False, False)
    ours = _second(lambda x, h, **w: tu.rnn(x, h, [*w.values()], nonlinearity=nonlinearity, engine=target.engine)[0], leaves)
    _assert_same(
        ours, _second(lambda x, h, **w: getattr(torch, f"rnn_{nonlinearity}")(x, h, [*w.values()], *settings)[0], leaves)
    )


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_gradient_penalty(target: Target, frozen: bool) -> None:
    """Wasserstein critics are trained with a penalty on the norm of their gradient with respect to the images. This critic is
    piecewise linear, so the gradient of the penalty with respect to the images is zero."""
    critic = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(3, 1, 2), nn.Flatten(), nn.Linear(4, 1)
    ).double()
    critic.requires_grad_(not frozen)
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)

    def penalty() -> list[Tensor | None]:
        (gradient,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
        loss = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
        leaves = [images, *(parameter for parameter in critic.parameters() if parameter.requires_grad)]
        return [loss.detach(), *torch.autograd.grad(loss, leaves, allow_unused=True)]

    expected = penalty()
    tu.replace(critic)
    with tu.use_engine(target.engine):
        for ours, theirs in zip(penalty(), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_gradient_is_an_ordinary_tensor(target: Target) -> None:
    """A gradient can be changed in place, and accumulates in x.grad, like any other tensor."""
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    for call in (
        lambda: tu.max_pool2d(x, 2, engine=target.engine),
        lambda: tu.conv2d(x, torch.ones(1, 2, 3, 3), engine=target.engine),
    ):
        (gradient,) = torch.autograd.grad(call().sum(), x, create_graph=True)
        before = gradient.detach().clone()
        gradient.mul_(2)
        torch.testing.assert_close(gradient.detach(), 2 * before)
        x.grad = None
        call().sum().backward(create_graph=True)
        call().sum().backward(create_graph=True)
        assert x.grad is not None
        torch.testing.assert_close(x.grad.detach(), 2 * before)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_batched_gradients_with_a_history(target: Target) -> None:
    x, w = torch.randn(1, 2, 6, 6, dtype=torch.float64, requires_grad=True), torch.randn(2, 2, 3, 3, dtype=torch.float64)
    rnn = nn.RNN(6, 5, nonlinearity="relu").double()

    def batched(call: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
        y = call(x)
        weightings = torch.linspace(-1, 1, 3 * y.numel(), dtype=y.dtype).view(3, *y.shape)
        (gradients,) = torch.autograd.grad(y, x, weightings, is_grads_batched=True, create_graph=True)
        return [gradients.detach(), *torch.autograd.grad(gradients.sum(), x, allow_unused=True)]

    calls = (
        lambda x: F.conv2d(x, w),
        lambda x: F.conv_transpose2d(x, w),
        lambda x: F.max_pool2d(x, 2),
        lambda x: rnn(x[0])[0],
        lambda x: F.unfold(x * x, 2),
    )
    for call in calls:
        expected = batched(call)
        with tu.override(), tu.use_engine(target.engine):
            for ours, theirs in zip(batched(call), expected, strict=True):
                torch.testing.assert_close(ours, theirs)
