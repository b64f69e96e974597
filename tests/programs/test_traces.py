"""torch.jit.trace records ops whose arguments depend on the sizes of their inputs; the trace can be saved, and replayed
with inputs of other sizes."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_unroll as tu
from torch_unroll.testing import Target, targets

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")

TARGETS = targets("conv2d")
#: Recording does not depend on the engine, so the quick suite runs expensive tests on one engine only.
DEAR = [pytest.param(target, id=str(target), marks=[] if target.engine == "torch" else pytest.mark.slow) for target in TARGETS]
_W, _TRANSPOSED, _BIAS = (torch.randn(shape, dtype=torch.float64) for shape in ((3, 2, 3, 3), (2, 3, 3, 3), (3,)))

#: Calls, as functions of a namespace (torch's or ours) and of an image, with or without a batch.
CALLS: dict[str, Callable[[Any, Tensor], Any]] = {
    "conv_transpose2d": lambda ops, x: ops.conv_transpose2d(x, _TRANSPOSED, _BIAS, 2, 1, (1, 0)),
    "same": lambda ops, x: ops.conv2d(x, _W, padding="same", dilation=(2, 1)),
    "indices": lambda ops, x: ops.max_pool2d(x, (3, 2), 1, 1, return_indices=True),
    "ceil": lambda ops, x: ops.max_pool2d(x, 2, ceil_mode=True),
    "unfold": lambda ops, x: ops.unfold(x, (3, 2), padding=1, stride=2),
    "fold": lambda ops, x: ops.fold(ops.unfold(x, 3, padding=1), x.shape[-2:], 3, padding=1),
    "stride of a size": lambda ops, x: ops.conv_transpose2d(x, _TRANSPOSED, None, (x.shape[-1], 2)),
    "padding of a size": lambda ops, x: ops.conv2d(x, _W, padding=(x.shape[-2] // 2, 1)),
    "groups of a size": lambda ops, x: ops.conv2d(x, _W[:2, :1], groups=x.shape[-3]),
    "window of a size": lambda ops, x: ops.max_pool2d(x, (x.shape[-2], 2)),
    "whole plane": lambda ops, x: ops.max_pool2d(x, x.shape[-2:]),
}


class _Ours:
    """Our functions on an engine, under the names of torch's functions."""

    def __init__(self, engine: str):
        for name in ("conv2d", "conv_transpose2d", "max_pool2d", "unfold", "fold"):
            setattr(self, name, self._on(getattr(tu, name), engine))

    @staticmethod
    def _on(function: Callable[..., Any], engine: str) -> Callable[..., Any]:
        return lambda *inputs, **options: function(*inputs, **options, engine=engine)


def _image(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _stored(program: Any) -> Any:
    file = io.BytesIO()
    torch.jit.save(program, file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_other_sizes(target: Target, name: str) -> None:
    call, ours = CALLS[name], _Ours(target.engine)
    for shape, others in (((2, 2, 7, 6), [(2, 2, 7, 6), (5, 2, 7, 6), (3, 2, 9, 8)]), ((2, 7, 6), [(2, 6, 9)])):
        program = _stored(torch.jit.trace(lambda x: call(ours, x), _image(*shape), check_trace=True))
        for other in others:
            x = _image(*other)
            torch.testing.assert_close(program(x), call(F, x))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_numbers_that_do_not_fit(target: Target, name: str) -> None:
    """A trace contains no checks written in Python, so the operator has to check its arguments."""
    call, ours = CALLS[name], _Ours(target.engine)
    program = torch.jit.trace(lambda x: call(ours, x), _image(2, 2, 7, 6))
    for wrong in (_image(7, 6), _image(2, 2, 7, 6, 1), _image(2, 2, 7, 6).to_sparse()):
        with pytest.raises(RuntimeError):
            program(wrong)


class _Trainable(nn.Module):
    def __init__(self, ops: Any):
        super().__init__()
        self.ops = ops
        self.weight, self.bias = nn.Parameter(torch.ones(2, 3, 3, 3)), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ops.conv_transpose2d(x, self.weight, self.bias, 2, 1, (1, 0))
        return self.ops.conv2d(y, self.weight, self.bias[:2], padding="same")


@pytest.mark.parametrize("lowered", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("gradients", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_can_be_trained(target: Target, gradients: bool, lowered: bool) -> None:
    """A trace can be trained, whether or not it was recorded for training; a trace of autocast keeps autocast's dtypes."""
    model, x = _Trainable(_Ours(target.engine)), torch.randn(2, 2, 5, 6)
    with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16, enabled=lowered, cache_enabled=False):
        program = _stored(torch.jit.trace(model, x))
    x = torch.randn(3, 2, 6, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
        expected = _Trainable(F)
        y_expected = expected(x)
    y = program(x)
    assert y.dtype == y_expected.dtype
    results = [y, *torch.autograd.grad(y.float().square().sum(), [x, *program.parameters()])]
    wanted = [y_expected, *torch.autograd.grad(y_expected.float().square().sum(), [x, *expected.parameters()])]
    for ours, theirs in zip(results, wanted, strict=True):
        assert (ours - theirs).float().norm() < (3e-2 if lowered else 1e-5) * theirs.float().norm()


def _gradient(function: Callable[[Tensor], Any], order: int, loss: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function that returns the gradient dx of `loss` of `function`'s first result or, for order 2, the gradient of Σ dx³.

    The expected values are computed without a trace, because torch.jit.trace raises at the gradient of torch's own convolution.
    """

    def run(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = (x * 1).requires_grad_()
            outputs = function(x)
            y = outputs[0] if isinstance(outputs, tuple) else outputs
            (dx,) = torch.autograd.grad(loss(y), x, create_graph=order == 2)
            return torch.autograd.grad(dx.pow(3).sum(), x)[0] if order == 2 else dx

    return run


@pytest.mark.parametrize("order", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("target", DEAR)
def test_gradients_within_a_trace(target: Target, name: str, order: int) -> None:
    call, ours, x = CALLS[name], _Ours(target.engine), _image(2, 2, 4, 5)
    program = torch.jit.trace(_gradient(lambda x: call(ours, x), order, lambda y: y.square().sum()), x, check_trace=True)
    torch.testing.assert_close(_stored(program)(x), _gradient(lambda x: call(F, x), order, lambda y: y.square().sum())(x))


@pytest.mark.parametrize("name", ["indices", "ceil", "window of a size"])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_gradient_with_a_history_within_a_trace(target: Target, name: str) -> None:
    """The gradient of the sum of a max pooling does not change with the input's values, so its own gradient is zero."""
    call, ours, x = CALLS[name], _Ours(target.engine), _image(2, 2, 4, 5)
    program = torch.jit.trace(_gradient(lambda x: call(ours, x), 2, Tensor.sum), x)
    assert not _stored(program)(x).any()


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_local_connections_of_another_batch(target: Target) -> None:
    module = tu.nn.LocallyConnected2d(2, 3, (7, 6), 3, engine=target.engine)
    program = _stored(torch.jit.trace(module, torch.randn(2, 2, 7, 6)))
    x = torch.randn(5, 2, 7, 6)
    torch.testing.assert_close(program(x), module(x))
