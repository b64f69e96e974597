"""Under torch.autocast, our ops and modules compute in the same dtypes as torch's, or raise the same exceptions.

There is one difference: we refuse a recurrence if some of its tensors are fp64 and others are not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_unroll as tu
from torch_unroll.testing import Target, targets

TARGETS = targets("conv2d")
DTYPES = [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)]
WEIGHTS = [(5, 4), (5, 5), (5,), (5,)]
RNN = (True, 1, 0.0, False, False, False)  # biases, layers, dropout, training, bidirectional, batch_first

#: name -> the call with torch, the call with torch_unroll, and the shapes of their tensors.
CALLS: dict[str, tuple[Callable[..., Any], Callable[..., Any], list[tuple[int, ...]]]] = {
    "conv2d": (lambda *t: F.conv2d(*t, padding=1), lambda *t: tu.conv2d(*t, padding=1), [(2, 4, 6, 6), (4, 4, 3, 3), (4,)]),
    "conv2d groups": (
        lambda x, w: F.conv2d(x, w, groups=2, stride=2),
        lambda x, w: tu.conv2d(x, w, groups=2, stride=2),
        [(2, 4, 6, 6), (4, 2, 3, 3)],
    ),
    "conv2d unbatched": (lambda x, w: F.conv2d(x, w), lambda x, w: tu.conv2d(x, w), [(4, 6, 6), (4, 4, 3, 3)]),
    "conv_transpose2d": (
        lambda *t: F.conv_transpose2d(*t, stride=2),
        lambda *t: tu.conv_transpose2d(*t, stride=2),
        [(2, 4, 3, 3), (4, 4, 3, 3), (4,)],
    ),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), lambda x: tu.max_pool2d(x, 2), [(2, 4, 6, 6)]),
    "unfold": (lambda x: F.unfold(x, 2), lambda x: tu.unfold(x, 2), [(2, 4, 6, 6)]),
    "fold": (lambda x: F.fold(x, (3, 3), 2), lambda x: tu.fold(x, (3, 3), 2), [(2, 8, 4)]),
    "rnn": (
        lambda x, h, *w: torch.rnn_tanh(x, h, list(w), *RNN)[0],
        lambda x, h, *w: tu.rnn(x, h, w)[0],
        [(3, 2, 4), (1, 2, 5), *WEIGHTS],
    ),
    "rnn state": (
        lambda x, h, *w: torch.rnn_relu(x, h, list(w), *RNN)[1],
        lambda x, h, *w: tu.rnn(x, h, w, nonlinearity="relu")[1],
        [(3, 2, 4), (1, 2, 5), *WEIGHTS],
    ),
    "two layers of rnn, both directions": (
        lambda x, h, *w: torch.rnn_tanh(x, h, list(w), True, 2, 0.0, False, True, True)[0],
        lambda x, h, *w: tu.rnn(x, h, w, num_layers=2, bidirectional=True, batch_first=True)[0],
        [(2, 3, 4), (4, 2, 5), *WEIGHTS, *WEIGHTS, *([(5, 10), *WEIGHTS[1:]] * 2)],
    ),
    "rnn cell": (torch.rnn_tanh_cell, tu.rnn_cell, [(2, 4), (2, 5), *WEIGHTS]),
}


def _tensors(shapes: list[tuple[int, ...]], dtypes: list[torch.dtype]) -> list[Tensor]:
    values = [(torch.randn(shape) / 2).bfloat16() for shape in shapes]  # every dtype represents the values of bf16
    return [tensor.to(dtypes[i % len(dtypes)]).requires_grad_() for i, tensor in enumerate(values)]


def _outcome(call: Callable[..., Tensor], tensors: list[Tensor], dtype: torch.dtype, within: bool = False) -> list[Tensor] | type:
    """The output and the gradients, or the type of the exception; with `within`, backward also runs under autocast."""
    try:
        with torch.autocast("cpu", dtype):
            y = call(*tensors)
            if within:
                return [y.detach(), *torch.autograd.grad(y.float().sum(), tensors)]
        return [y.detach(), *torch.autograd.grad(y.float().sum(), tensors)]
    except Exception as error:
        return type(error)


def _assert_same(ours: list[Tensor] | type, theirs: list[Tensor] | type, *dtypes: torch.dtype) -> None:
    """Asserts equality up to the precision of the coarsest dtype that the results passed through."""
    if isinstance(theirs, type) or isinstance(ours, type):
        assert ours is theirs
        return
    for result, expected in zip(ours, theirs, strict=True):
        assert result.dtype == expected.dtype
        rounding = 2.0**-7 if torch.bfloat16 in dtypes else 2.0**-10
        scale = float(expected.double().abs().max().clamp(min=1))
        torch.testing.assert_close(result.double(), expected.double(), rtol=4 * rounding, atol=4 * rounding * scale)


KINDS = {
    "fp32": [torch.float32],
    "fp16": [torch.float16],
    "bf16": [torch.bfloat16],
    "fp32 beside bf16": [torch.float32, torch.bfloat16],
    "bf16 beside fp32": [torch.bfloat16, torch.float32],
    "fp16 beside bf16": [torch.float16, torch.bfloat16],
    "fp64": [torch.float64],
    "fp64 beside fp32": [torch.float64, torch.float32],
    "fp32 beside fp64": [torch.float32, torch.float64],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_calls(target: Target, name: str, kind: str, dtype: torch.dtype) -> None:
    """autocast leaves fp64 tensors as they are. We refuse a recurrence if some of its tensors are fp64 and others are not;
    torch's CPU operators promote them to one dtype."""
    torchs, ours, shapes = CALLS[name]
    tensors = _tensors(shapes, KINDS[kind])
    expected = _outcome(torchs, tensors, dtype)
    if "rnn" in name and torch.float64 in KINDS[kind] and len(KINDS[kind]) > 1:
        expected = RuntimeError
    with tu.use_engine(target.engine):
        _assert_same(_outcome(ours, tensors, dtype), expected, dtype, *KINDS[kind])
        _assert_same(_outcome(ours, tensors, dtype, within=True), expected, dtype, *KINDS[kind])
        with tu.override():
            _assert_same(_outcome(torchs, tensors, dtype), expected, dtype, *KINDS[kind])


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d", "rnn", "rnn cell"])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_an_fp64_tensor_among_others(target: Target, name: str) -> None:
    """Under autocast, an fp64 tensor among fp32 tensors is refused, whichever argument it is."""
    _, ours, shapes = CALLS[name]
    for odd in range(len(shapes)):
        tensors = _tensors(shapes, [torch.float32])
        tensors[odd] = tensors[odd].detach().double()
        with tu.use_engine(target.engine), torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="expected"):
            ours(*tensors)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "two convolutions": (lambda: nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)), (2, 8, 8, 8)),
    "normalised": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 2)),
        (2, 3, 8, 8),
    ),
    "transposed": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ConvTranspose2d(4, 3, 3, 2), nn.Conv2d(3, 2, 1)),
        (2, 3, 7, 7),
    ),
    "reflected": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 3, 1)), (1, 3, 5, 5)),
    "lenet": (lambda: tu.models.LeNet5(nn=nn), (2, 1, 32, 32)),
}


class _Output(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        output, h_n = self.rnn(x)
        return torch.cat((output.flatten(), h_n.flatten()))


class _Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = None
        for step in x:
            h = self.cell(step, h)  # the state is first None, then a result in autocast's dtype
        assert h is not None
        return h


MODELS |= {
    "rnn": (lambda: _Output(nn.RNN(4, 5, 2, bidirectional=True)), (3, 2, 4)),
    "batch first": (lambda: _Output(nn.RNN(4, 5, batch_first=True, nonlinearity="relu")), (2, 3, 4)),
    "cell": (_Steps, (3, 2, 4)),
}


def _step(model: nn.Module, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype):
        y = model(x)
    return [y.detach(), *torch.autograd.grad(y.float().square().sum(), [x, *model.parameters()])]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("way", ["replace", "override"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_models(target: Target, name: str, way: str, dtype: torch.dtype) -> None:
    build, shape = MODELS[name]
    model, x = build(), torch.randn(shape)
    expected = _step(model, x, dtype)
    model = copy.deepcopy(model)
    if way == "replace":
        tu.replace(model)
    with tu.use_engine(target.engine), tu.override() if way == "override" else nullcontext():
        _assert_same(_step(model, x, dtype), expected, dtype)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_compiled_and_mapped(target: Target) -> None:
    torch._dynamo.reset()
    model, x = nn.Sequential(nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1)), torch.randn(2, 4, 6, 6)
    expected = _step(model, x, torch.bfloat16)
    tu.replace(model)
    with tu.use_engine(target.engine):
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        _assert_same(_step(compiled, x, torch.bfloat16), expected, torch.bfloat16)

        def mapped(images: Tensor) -> Tensor:
            return torch.func.vmap(lambda image: model(image))(images)

        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = mapped(leaf)
        gradients = torch.autograd.grad(y.float().square().sum(), [leaf, *model.parameters()])
        _assert_same([y.detach(), *gradients], expected, torch.bfloat16)


def test_a_module_checks_dtypes_as_torchs_does() -> None:
    """nn.RNN skips its own check under any autocast; the operator then refuses the call."""
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    for module in (nn.RNN(4, 5), tu.nn.RNN(4, 5, engine="torch")):
        with pytest.raises(ValueError, match="does not match weight dtype"):
            module(x)
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError):
            module(x)
        state = torch.randn(1, 2, 5)
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError):
            module.double()(x, state)
