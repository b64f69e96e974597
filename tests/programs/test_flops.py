"""`torch.utils.flop_counter` counts the same number of FLOPs for our operators as for torch's.

There are two exceptions: second derivatives of grouped convolutions, and the product for an initial state without gradient.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import torch_unroll as tu


def count(function: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((2, 4, 9, 7), (6, 4, 3, 3), {}),
    "strided": ((2, 4, 9, 7), (6, 4, 3, 2), {"stride": (2, 1), "padding": 1}),
    "dilated": ((3, 4, 9, 9), (5, 4, 3, 3), {"dilation": 2}),
    "without a batch": ((4, 9, 7), (6, 4, 3, 3), {"bias": True}),
    "pointwise": ((2, 4, 5, 5), (6, 4, 1, 1), {"bias": True}),
}
GROUPS = {"groups": ((2, 4, 9, 7), (6, 2, 3, 3), {"groups": 2}), "depthwise": ((2, 4, 9, 7), (4, 1, 3, 3), {"groups": 4})}
GROUPED = {**CONVOLUTIONS, **GROUPS}
Case = tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]


def _derivatives(function: Any, case: Case, order: int, **engine: Any) -> Callable[[], Any]:
    size, filter, options = case
    options = dict(options)
    outputs = filter[0] if "transpose" not in function.__name__ else filter[1] * options.get("groups", 1)
    bias = torch.randn(outputs) if options.pop("bias", False) else None

    def run() -> None:
        x, w = torch.randn(size, requires_grad=order > 0), torch.randn(filter, requires_grad=order > 0)
        y = function(x, w, bias, **options, **engine)
        if order > 0:
            gradients = torch.autograd.grad(y.square().sum(), [x, w], create_graph=order > 1)
        if order > 1:
            torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), [x, w])

    return run


#: torch counts groups differently in first and in second derivatives, so second derivatives are compared without groups.
ORDERS = [
    *((name, order) for name in GROUPED for order in (0, 1)),
    *(pytest.param(name, 2, marks=pytest.mark.slow if name != "strided" else ()) for name in CONVOLUTIONS),
]


@pytest.mark.parametrize(("name", "order"), ORDERS)
def test_conv2d(name: str, order: int) -> None:
    expected = count(_derivatives(F.conv2d, GROUPED[name], order))
    assert count(_derivatives(tu.conv2d, GROUPED[name], order, engine="torch")) == expected > 0


@pytest.mark.parametrize("order", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv_transpose2d(name: str, order: int) -> None:
    size, filter, options = CONVOLUTIONS[name]
    case = (size, (filter[1], filter[0], *filter[2:]), options)
    expected = count(_derivatives(F.conv_transpose2d, case, order))
    assert count(_derivatives(tu.conv_transpose2d, case, order, engine="torch")) == expected > 0


RECURRENT: dict[str, dict[str, Any]] = {
    "one layer": {},
    "two layers, bidirectional": {"num_layers": 2, "bidirectional": True},
    "batch first, no bias": {"batch_first": True, "bias": False, "nonlinearity": "relu"},
}


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", RECURRENT)
def test_rnn(name: str, trained: bool) -> None:
    options = RECURRENT[name]

    def run(module: nn.Module) -> None:
        states = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
        x = torch.randn(4, 4, 3, requires_grad=trained)
        h0 = torch.randn(states, 4, 5, requires_grad=trained)
        with torch.set_grad_enabled(trained):
            output, _ = module(x, h0)
        if trained:
            output.sum().backward()

    expected = count(lambda: run(nn.RNN(3, 5, **options)))
    assert count(lambda: run(tu.nn.RNN(3, 5, engine="torch", **options))) == expected > 0


@pytest.mark.parametrize("trained", [False, True])
def test_rnn_cell(trained: bool) -> None:
    def run(module: nn.Module) -> None:
        x, h = torch.randn(4, 3, requires_grad=trained), torch.randn(4, 5, requires_grad=trained)
        with torch.set_grad_enabled(trained):
            h = module(x, h)
        if trained:
            h.sum().backward()

    expected = count(lambda: run(nn.RNNCell(3, 5)))
    assert count(lambda: run(tu.nn.RNNCell(3, 5, engine="torch"))) == expected > 0


def test_packed_sequences_and_tangents() -> None:
    weights = [torch.randn(5, 3), torch.randn(5, 5)]
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(4, 3, 3), torch.tensor([4, 2, 1]))
    h0 = torch.randn(1, 3, 5)
    rows = 4 + 2 + 1
    forward = count(lambda: tu.rnn(packed.data, h0, weights, batch_sizes=packed.batch_sizes, engine="torch"))
    assert forward == 2 * rows * 5 * (3 + 5)

    z = torch.randn(4, 3, 5)
    options = (None, None, "tanh", "ieee", "torch")
    assert count(lambda: torch.ops.torch_unroll.rnn_tangent(z, z, weights[1][None], h0, *options)) == 2 * z.numel() * 5


@pytest.mark.parametrize("way", ["override", "replace"])
def test_models(way: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(2), nn.RNN(9, 5))
    x = torch.randn(2, 3, 8, 8)

    def train() -> None:
        model(x)[0].sum().backward()

    expected = count(train)
    if way == "replace":
        tu.replace(model)
    with tu.use_engine("torch"), tu.override():
        ours = count(train)
    # The initial state requires no gradient, so torch omits the product for that gradient; ours does not.
    assert ours - expected == 2 * 4 * 5 * 5


def test_a_counter_that_is_imported_later_and_open_already() -> None:
    """Runs in a separate process, in which nothing is registered yet, because importing this package does not import the
    counter."""
    script = """
import sys, torch, torch_unroll as tu
assert "torch.utils.flop_counter" not in sys.modules and "torch.distributed.tensor" not in sys.modules
from torch.utils.flop_counter import FlopCounterMode
for _ in range(2):
    with FlopCounterMode(display=False) as counter:
        tu.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2), engine="torch")
    print(counter.get_total_flops())
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "pyext")}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert ran.stdout.split() == ["32", "32"], ran.stderr
