"""Sizes are accepted as torch accepts them: whatever `operator.index` accepts, but no bools; and extents of zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import torch_unroll as tu
from torch_unroll.testing import Target, targets

TARGETS = targets("conv2d")
X, W = torch.randn(1, 4, 8, 8), torch.randn(4, 2, 3, 3)
COLUMNS = torch.randn(1, 4, 16)

#: Each call as a function of a namespace (torch's or ours), the argument under test, and the engine for ours.
CALLS: dict[str, Callable[[Any, Any, dict[str, Any]], Tensor]] = {
    "conv2d stride": lambda f, size, engine: f.conv2d(X, W, stride=size, groups=2, **engine),
    "conv2d padding": lambda f, size, engine: f.conv2d(X, W, padding=size, groups=2, **engine),
    "conv2d dilation": lambda f, size, engine: f.conv2d(X, W, dilation=size, groups=2, **engine),
    "conv2d groups": lambda f, size, engine: f.conv2d(X, W, groups=size, **engine),
    "conv_transpose2d stride": lambda f, size, engine: f.conv_transpose2d(X, W, stride=size, groups=2, **engine),
    "conv_transpose2d output_padding": lambda f, size, engine: f.conv_transpose2d(X, W, stride=3, output_padding=size, **engine),
    "conv_transpose2d groups": lambda f, size, engine: f.conv_transpose2d(X, W, groups=size, **engine),
    "max_pool2d kernel_size": lambda f, size, engine: f.max_pool2d(X, size, **engine),
    "max_pool2d stride": lambda f, size, engine: f.max_pool2d(X, 3, size, **engine),
    "max_pool2d dilation": lambda f, size, engine: f.max_pool2d(X, 2, dilation=size, **engine),
    "max_pool2d ceil_mode": lambda f, size, engine: f.max_pool2d(X, 3, ceil_mode=size, **engine),
    "unfold kernel_size": lambda f, size, engine: f.unfold(X, size, **engine),
    "unfold stride": lambda f, size, engine: f.unfold(X, 2, stride=size, **engine),
    "fold kernel_size": lambda f, size, engine: f.fold(COLUMNS, (8, 8), size, stride=2, **engine),
    "fold stride": lambda f, size, engine: f.fold(COLUMNS, (8, 8), 2, stride=size, **engine),
}
SIZES: dict[str, Any] = {
    "int": 2,
    "int64": np.int64(2),
    "int32": np.int32(2),
    "uint8": np.uint8(2),
    "pair of int64": (np.int64(2), np.int64(2)),
    "list": [2, np.int16(2)],
    "torch.Size": torch.Size([2, 2]),
    "one in a tuple": (2,),
    "pair with a tensor": (torch.tensor(2), 2),
    "bool": True,
    "numpy bool": np.bool_(True),
    "pair with a bool": (2, True),
    "float": 2.0,
    "numpy float": np.float32(2),
    "float tensor": torch.tensor(2.0),
    "string": "2",
    "None in a pair": (2, None),
    "three": (2, 2, 2),
    "beyond 64 bits": 2**70,
    "pair beyond 64 bits": (2**64, 2),
    "tensor": torch.tensor(2),
    "array": np.array([2, 2]),
}


def _outcome(call: Callable[[], Tensor]) -> Any:
    try:
        return call()
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_like_torch(target: Target, name: str, size: str) -> None:
    expected = _outcome(lambda: CALLS[name](F, SIZES[size], {}))
    outcome = _outcome(lambda: CALLS[name](tu, SIZES[size], {"engine": target.engine}))
    if isinstance(expected, Tensor):
        assert isinstance(outcome, Tensor), outcome
        torch.testing.assert_close(outcome, expected)
    else:
        assert outcome is expected, outcome


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_sizes_of_a_trace(target: Target) -> None:
    """Under `torch.jit.trace`, extents are tensors without dimensions."""

    def pooled(x: Tensor) -> Tensor:
        return tu.max_pool2d(x, x.shape[2] // 4, engine=target.engine)

    def convolved(x: Tensor) -> Tensor:
        return tu.conv2d(x, W, stride=x.shape[2] // 4, padding=(x.shape[3] // 8, 1), groups=x.shape[1] // 2, engine=target.engine)

    def unfolded(x: Tensor) -> Tensor:
        return tu.unfold(x, (x.shape[2] // 2, 2), engine=target.engine)

    for call in (pooled, convolved, unfolded):
        with pytest.warns(torch.jit.TracerWarning):
            traced = torch.jit.trace(call, X)
        torch.testing.assert_close(traced(X), call(X))


def test_layers_are_counted_in_ints() -> None:
    weights = [torch.randn(3, 3) for _ in range(4)]
    for engine in ("torch", None):
        expected = tu.rnn(torch.randn(2, 1, 3), None, weights, num_layers=2, engine=engine)[0].shape
        assert tu.rnn(torch.randn(2, 1, 3), None, weights, num_layers=np.int64(2), engine=engine)[0].shape == expected
        with pytest.raises(TypeError, match="num_layers: expected an int, got True"):
            tu.rnn(torch.randn(2, 1, 3), None, weights[:2], num_layers=True, engine=engine)


EMPTY: dict[str, Callable[[Any, dict[str, Any]], Tensor]] = {
    "no channels": lambda f, engine: f.conv2d(_grad(2, 0, 5, 5), _grad(3, 0, 3, 3), **engine),
    "no channels, with bias": lambda f, engine: f.conv2d(_grad(2, 0, 5, 5), _grad(3, 0, 3, 3), _grad(3), **engine),
    "no channels, strided": lambda f, engine: f.conv2d(_grad(2, 0, 5, 5), _grad(3, 0, 3, 3), stride=2, padding=1, **engine),
    "no channels, same": lambda f, engine: f.conv2d(_grad(2, 0, 5, 5), _grad(3, 0, 3, 3), padding="same", **engine),
    "no channels in groups": lambda f, engine: f.conv2d(_grad(2, 0, 5, 5), _grad(4, 0, 3, 3), groups=2, **engine),
    "no channels, unbatched": lambda f, engine: f.conv2d(_grad(0, 5, 5), _grad(3, 0, 3, 3), **engine),
    "no channels, no batch": lambda f, engine: f.conv2d(_grad(0, 0, 5, 5), _grad(3, 0, 3, 3), **engine),
    "no batch": lambda f, engine: f.conv2d(_grad(0, 4, 5, 5), _grad(3, 4, 3, 3), **engine),
    "no channels against one": lambda f, engine: f.conv2d(_grad(2, 0, 5, 5), _grad(3, 1, 3, 3), **engine),
    "one channel against none": lambda f, engine: f.conv2d(_grad(2, 1, 5, 5), _grad(3, 0, 3, 3), **engine),
    "no channels, filter too large": lambda f, engine: f.conv2d(_grad(2, 0, 2, 2), _grad(3, 0, 3, 3), **engine),
    "no output channels": lambda f, engine: f.conv2d(_grad(2, 4, 5, 5), _grad(0, 4, 3, 3), **engine),
    "no rows": lambda f, engine: f.conv2d(_grad(2, 4, 0, 5), _grad(3, 4, 3, 3), padding=2, **engine),
    "no filter rows": lambda f, engine: f.conv2d(_grad(2, 4, 5, 5), _grad(3, 4, 0, 3), **engine),
    "transposed, no batch": lambda f, engine: f.conv_transpose2d(_grad(0, 4, 5, 5), _grad(4, 3, 3, 3), **engine),
    "transposed, no batch, no pixels": lambda f, engine: f.conv_transpose2d(_grad(0, 2, 0, 3), _grad(2, 3, 1, 1), **engine),
    "transposed, no channels": lambda f, engine: f.conv_transpose2d(_grad(2, 0, 5, 5), _grad(0, 3, 3, 3), **engine),
    "transposed, no output channels": lambda f, engine: f.conv_transpose2d(_grad(2, 4, 5, 5), _grad(4, 0, 3, 3), **engine),
    "transposed, no rows": lambda f, engine: f.conv_transpose2d(_grad(2, 4, 0, 5), _grad(4, 3, 3, 3), **engine),
    "pooling, no channels": lambda f, engine: f.max_pool2d(_grad(2, 0, 5, 5), 2, **engine),
    "pooling, no batch": lambda f, engine: f.max_pool2d(_grad(0, 3, 5, 5), 2, **engine),
    "unfold, no channels": lambda f, engine: f.unfold(_grad(2, 0, 5, 5), 2, **engine),
    "unfold, no batch": lambda f, engine: f.unfold(_grad(0, 3, 5, 5), 2, **engine),
    "fold, no batch": lambda f, engine: f.fold(_grad(0, 8, 9), (4, 4), 2, **engine),
    "fold, no rows": lambda f, engine: f.fold(_grad(2, 0, 9), (4, 4), 2, **engine),
}


def _grad(*shape: int) -> Tensor:
    return torch.ones(shape, requires_grad=True)


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_empty_extents(target: Target, name: str) -> None:
    expected = _outcome(lambda: EMPTY[name](F, {}))
    outcome = _outcome(lambda: EMPTY[name](tu, {"engine": target.engine}))
    if isinstance(expected, Tensor):
        torch.testing.assert_close(outcome, expected)
        assert outcome.requires_grad == expected.requires_grad
        outcome.sum().backward()
    else:
        assert outcome is expected


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_operators_on_no_channels(target: Target) -> None:
    """A sum of no products is zero, to which the bias is added."""
    geometry = ((1, 1), (0, 0, 0, 0), (1, 1), 1, "ieee", target.engine)
    ops, x, w, dy = torch.ops.torch_unroll, torch.ones(2, 0, 5, 5), torch.ones(3, 0, 3, 3), torch.ones(2, 3, 3, 3)
    bias = torch.tensor([1.0, 2.0, 3.0])
    assert ops.conv2d_fprop(x, w, bias, *geometry, None).equal(bias.view(1, 3, 1, 1).expand(2, 3, 3, 3))
    assert not ops.conv2d_fprop(x, w, None, *geometry, None).any()
    assert ops.conv2d_dgrad(dy, w, (5, 5), *geometry, None).shape == (2, 0, 5, 5)
    assert ops.conv2d_wgrad(dy, x, (3, 3), None, *geometry, None).shape == (3, 0, 3, 3)
