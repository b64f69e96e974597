"""Recurrence keeps for backward only what a gradient reads, and no more bytes than torch; the rest may change in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

import torch_unroll as tu
from torch_unroll.testing import Target, assert_exact, targets

TARGETS = targets("rnn")
T, N, I, H = 6, 3, 5, 4  # noqa: E741 (the letters of recurrence)


def _kept(call: Callable[[], Any]) -> list[Tensor]:
    """Returns the tensors that a call saves for backward, one for each storage."""
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return list(saved.values())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


FROZEN: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "w_ih": ("weight_ih",),
    "w_hh": ("weight_hh",),
    "biases": ("bias_",),
    "weights": ("weight_",),
    "all": ("weight_", "bias_"),
}


@dataclass
class Leaves:
    """Which of a call's inputs require grad."""

    x: bool
    h0: bool

    def draw(self, target: Target, *shapes: tuple[int, ...]) -> list[Tensor]:
        return [
            torch.randn(shape, device=target.device, requires_grad=wanted)
            for shape, wanted in zip(shapes, (self.x, self.h0), strict=True)
        ]


LEAVES = {"both": Leaves(True, True), "x": Leaves(True, False), "h0": Leaves(False, True), "neither": Leaves(False, False)}
wanted = pytest.mark.parametrize("leaves", LEAVES.values(), ids=LEAVES)
frozen = pytest.mark.parametrize("frozen", FROZEN.values(), ids=FROZEN)


def _freeze(module: torch.nn.Module, prefixes: tuple[str, ...]) -> None:
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not name.startswith(prefixes or "-"))


@wanted
@frozen
@pytest.mark.parametrize("nonlinearity", ["tanh", "identity"])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_what_the_operator_keeps(target: Target, nonlinearity: str, frozen: tuple[str, ...], leaves: Leaves) -> None:
    z, h0 = leaves.draw(target, (T, N, H), (1, N, H))
    need_w = "weight_hh" not in frozen and "weight_" not in frozen
    w_hh = torch.randn(1, H, H, device=target.device, requires_grad=need_w)
    results: list[Tensor] = []
    arguments = (None, None, nonlinearity, "rnn", target.engine)
    kept = _kept(lambda: results.append(torch.ops.torch_unroll.rnn_forward(z, w_hh, h0, *arguments)))
    memories = {tensor.untyped_storage().data_ptr() for tensor in kept}

    def keeps(tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in memories

    anything = leaves.x or leaves.h0 or need_w
    assert not keeps(z)
    assert keeps(w_hh) == anything
    assert keeps(h0) == need_w
    assert keeps(results[0]) == (anything and (need_w or nonlinearity != "identity"))


@wanted
@frozen
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_cell_keeps_no_more_than_torchs(target: Target, nonlinearity: str, frozen: tuple[str, ...], leaves: Leaves) -> None:
    torchs = torch.nn.RNNCell(I, H, nonlinearity=nonlinearity, device=target.device)
    ours = tu.nn.RNNCell(I, H, nonlinearity=nonlinearity, engine=target.engine, device=target.device)
    for module in (torchs, ours):
        _freeze(module, frozen)
    inputs = leaves.draw(target, (N, I), (N, H))
    kept, theirs = (_kept(lambda module=module: module(*inputs)) for module in (ours, torchs))
    assert _bytes(kept) <= _bytes(theirs)


@wanted
@frozen
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2}, {"batch_first": True}], ids=str)
@pytest.mark.parametrize("target", TARGETS[-1:], ids=str)  # what is kept does not depend on the engine
def test_no_more_is_kept_than_by_torch(target: Target, options: dict[str, Any], frozen: tuple[str, ...], leaves: Leaves) -> None:
    torchs = torch.nn.RNN(I, H, device=target.device, **options)
    ours = tu.nn.RNN(I, H, engine=target.engine, device=target.device, **options)
    for module in (torchs, ours):
        _freeze(module, frozen)
    layers = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    inputs = leaves.draw(target, (T, N, I), (layers, T if options.get("batch_first") else N, H))
    kept = _kept(lambda: ours(*inputs))
    assert _bytes(kept) <= _bytes(_kept(lambda: torchs(*inputs)))


@pytest.mark.parametrize("lengths", [None, [6, 0, 2]], ids=str)
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"batch_first": True}], ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_state_may_change_that_no_weight_needs(target: Target, options: dict[str, Any], lengths: Any) -> None:
    module = tu.nn.RNN(I, H, engine=target.engine, device=target.device, **options).requires_grad_(False)
    module.weight_ih_l0.requires_grad_()
    counts = None if lengths is None else torch.tensor(lengths, device=target.device)
    shape = (N, T, I) if options.get("batch_first") else (T, N, I)
    states = 2 if options.get("bidirectional") else 1
    x, h0 = torch.randn(shape, device=target.device), torch.randn(states, N, H, device=target.device)
    expected = torch.autograd.grad(module(x, h0, counts)[0].sum(), module.weight_ih_l0)
    output, _ = module(x, h0, counts)
    h0.mul_(3)
    assert_exact(torch.autograd.grad(output.sum(), module.weight_ih_l0)[0], expected[0])


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_outputs_may_change_that_no_gradient_needs(target: Target) -> None:
    """If W_hh is frozen, no gradient of an identity recurrence reads its output."""
    x = torch.randn(T, N, I, device=target.device, requires_grad=True)
    weights = [torch.randn(H, I, device=target.device), torch.randn(H, H, device=target.device)]
    call = {"nonlinearity": "identity", "engine": target.engine}
    expected = torch.autograd.grad(tu.rnn(x, None, weights, **call)[0].relu().sum(), x)
    output = tu.rnn(x, None, weights, **call)[0].relu_()
    assert_exact(torch.autograd.grad(output.sum(), x)[0], expected[0])
    h = torch.randn(N, H, device=target.device)
    expected = torch.autograd.grad(tu.rnn_cell(x[0], h, *weights, **call).relu().sum(), x)
    output = tu.rnn_cell(x[0], h, *weights, **call).relu_()
    h.mul_(3)
    assert_exact(torch.autograd.grad(output.sum(), x)[0], expected[0])


@frozen
@wanted
@pytest.mark.parametrize(
    "nonlinearity", ["tanh", "identity", *(pytest.param(name, marks=pytest.mark.slow) for name in ("relu", "sigmoid"))]
)
def test_derivatives_of_every_choice_of_leaves(nonlinearity: str, frozen: tuple[str, ...], leaves: Leaves) -> None:
    """First and second derivatives are right, so no tensor that they read is missing."""
    for kind in ("RNN", "RNNCell"):
        module = getattr(tu.nn, kind)(2, 3, nonlinearity=nonlinearity, engine="torch", dtype=torch.float64)
        _freeze(module, frozen)
        shapes = ((3, 2, 2), (1, 2, 3)) if kind == "RNN" else ((2, 2), (2, 3))
        x, h0 = (
            (torch.rand(shape, dtype=torch.float64) + 0.1).requires_grad_(needed)
            for shape, needed in zip(shapes, (leaves.x, leaves.h0), strict=True)
        )
        parameters = dict(module.named_parameters())
        inputs = [tensor for tensor in (x, h0, *parameters.values()) if tensor.requires_grad]
        if not inputs:
            continue

        def call(*_: Tensor, module: torch.nn.Module = module, x: Tensor = x, h0: Tensor = h0) -> Any:
            return module(x, h0)

        assert torch.autograd.gradcheck(call, inputs, fast_mode=True, check_forward_ad=False)
        assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)
