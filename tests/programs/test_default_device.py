"""A default device or dtype that differs from the inputs' has no effect: new tensors are created where the inputs are."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._device import _device_constructors

import torch_unroll as tu
from torch_unroll.testing import Target, assert_exact, targets

TARGETS = targets("rnn")
PACKAGE = Path(tu.__file__).parent


@contextmanager
def _default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def _default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SETTINGS: dict[str, Callable[[], Any]] = {
    "set_default_device": _default_device,
    "with torch.device": lambda: torch.device("meta"),
    "set_default_dtype": _default_dtype,
}


def _rnn(x: Tensor, h0: Tensor, *weights: Tensor, **options: Any) -> Any:
    return tu.rnn(x, h0, weights, bidirectional=True, **options)


SIZES = torch.tensor([3, 2, 2, 1])
LENGTHS = torch.tensor([2, 0, 9])
_WEIGHTS = [(4, 5), (4, 4), (4,), (4,)] * 2

#: The shapes of a function's tensors, and the function of these tensors and the engine.
FUNCTIONS: dict[str, tuple[list[tuple[int, ...]], Callable[..., Any]]] = {
    "conv2d": ([(2, 4, 6, 6), (6, 2, 3, 3), (6,)], lambda *xs, **engine: tu.conv2d(*xs, 2, 1, groups=2, **engine)),
    "conv_transpose2d": ([(2, 4, 3, 3), (4, 3, 3, 3), (3,)], lambda *xs, **engine: tu.conv_transpose2d(*xs, 2, 1, **engine)),
    "unfold": ([(2, 3, 5, 5)], lambda x, **engine: tu.unfold(x, 3, stride=2, **engine)),
    "fold": ([(2, 12, 9)], lambda x, **engine: tu.fold(x, (6, 6), 2, stride=2, **engine)),
    "max_pool2d": ([(2, 3, 6, 6)], lambda x, **engine: tu.max_pool2d(x, 3, 2, 1, **engine)),
    "max_pool2d-indices": ([(2, 3, 6, 6)], lambda x, **engine: tu.max_pool2d(x, 3, 2, return_indices=True, **engine)),
    "max_over_time": ([(4, 3, 5)], tu.max_over_time),
    "max_over_time-lengths": ([(4, 3, 5)], lambda x, **engine: tu.max_over_time(x, LENGTHS, **engine)),
    "rnn_cell": ([(3, 5), (3, 4), *_WEIGHTS[:4]], tu.rnn_cell),
    "rnn": ([(4, 3, 5), (2, 3, 4), *_WEIGHTS], _rnn),
    "rnn-packed": ([(8, 5), (2, 3, 4), *_WEIGHTS], lambda *xs, **engine: _rnn(*xs, batch_sizes=SIZES, **engine)),
    "rnn-lengths": ([(4, 3, 5), (2, 3, 4), *_WEIGHTS], lambda *xs, **engine: _rnn(*xs, lengths=LENGTHS, **engine)),
    "rnn-recomputed": (
        [(4, 3, 5), (1, 3, 4), *_WEIGHTS[:4]],
        lambda x, h0, *weights, **engine: tu.rnn(x, h0, weights, lengths=LENGTHS, recompute_segments=2, **engine),
    ),
    "rnn-no-h0": ([(4, 3, 5), *_WEIGHTS], lambda x, *weights, **engine: _rnn(x, None, *weights, **engine)),
}

MODULES: dict[str, tuple[Callable[..., torch.nn.Module], tuple[int, ...]]] = {
    "Conv2d": (lambda **engine: tu.nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect", **engine), (2, 3, 6, 6)),
    "MaxPool2d": (lambda **engine: tu.nn.MaxPool2d(2, **engine), (2, 3, 6, 6)),
    "LocallyConnected2d": (lambda **engine: tu.nn.LocallyConnected2d(3, 4, 6, 3, **engine), (2, 3, 6, 6)),
    "RNN": (lambda **engine: tu.nn.RNN(5, 4, num_layers=2, **engine), (4, 3, 5)),
    "RNN-packed": (lambda **engine: tu.nn.RNN(5, 4, num_layers=2, **engine), (8, 5)),
    "RNNCell": (lambda **engine: tu.nn.RNNCell(5, 4, **engine), (3, 5)),
}


def _results(function: Callable[..., Any], inputs: list[Tensor]) -> list[Tensor]:
    """The outputs, the gradients, and the gradients of the gradients."""
    outputs = [leaf for leaf in torch.utils._pytree.tree_leaves(function(*inputs)) if isinstance(leaf, Tensor)]
    floating = [output.where(output.isfinite(), 0) for output in outputs if output.is_floating_point()]
    loss = sum(output.square().sum() for output in floating)
    first = torch.autograd.grad(loss, inputs, create_graph=True)
    second = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), inputs, materialize_grads=True)
    return [*outputs, *first, *second]


def _check(setting: str, function: Callable[..., Any], inputs: list[Tensor]) -> None:
    expected = _results(function, inputs)
    with SETTINGS[setting]():
        results = _results(function, inputs)
    for number, (result, alone) in enumerate(zip(results, expected, strict=True)):
        assert (result.device, result.dtype) == (alone.device, alone.dtype)
        assert_exact(result.detach(), alone.detach(), f"result {number}")


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_functions(target: Target, name: str, setting: str) -> None:
    shapes, function = FUNCTIONS[name]
    inputs = [torch.randn(shape, device=target.device).requires_grad_() for shape in shapes]
    _check(setting, lambda *tensors: function(*tensors, engine=target.engine), inputs)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_modules(target: Target, name: str, setting: str) -> None:
    build, shape = MODULES[name]
    module = build(engine=target.engine).to(target.device)
    packed = name.endswith("packed")
    inputs = [torch.randn(shape, device=target.device).requires_grad_(), *module.parameters()]
    _check(setting, lambda x, *_: module(PackedSequence(x, SIZES) if packed else x), inputs)


def _factory_calls(source: str) -> list[tuple[int, bool]]:
    """The calls of torch's functions that create a tensor: the line of each, and whether it passes `device` or `**options`.

    A call that passes neither creates the tensor on the default device.
    """
    names = {constructor.__name__ for constructor in _device_constructors()}
    return [
        (node.lineno, any(keyword.arg in ("device", None) for keyword in node.keywords))
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
        and node.func.attr in names
    ]


def test_every_new_tensor_is_created_on_a_named_device() -> None:
    files = [
        *PACKAGE.glob("*.py"),
        *(PACKAGE / "engines").rglob("*.py"),
        *(PACKAGE / "nn").rglob("*.py"),
        *(PACKAGE / "models").rglob("*.py"),
    ]
    calls = [(f"{path.name}:{line}", has_device) for path in files for line, has_device in _factory_calls(path.read_text())]
    assert len(calls) > 20
    assert [place for place, has_device in calls if not has_device] == []
