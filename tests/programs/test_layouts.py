"""Tensors without strides, nested tensors and quantized tensors: the error of a named engine names the argument.

If no engine is named, torch's own operator gets the call unchanged. If torch has no such operator, the error is that of a named
engine.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import torch_unroll as tu
from torch_unroll.engines import claims
from torch_unroll.testing import Target, targets

TARGETS = targets("conv2d")

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "coo": lambda tensor: tensor.to_sparse(),
    "hybrid coo": lambda tensor: tensor.to_sparse(1),
    "mkldnn": lambda tensor: tensor.float().to_mkldnn(),
    "nested": lambda tensor: torch.nested.nested_tensor([tensor, tensor]),
    "jagged": lambda tensor: torch.nested.nested_tensor([tensor, tensor] if tensor.dim() else [tensor], layout=torch.jagged),
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.quint8),
    "quantized by channel": lambda tensor: torch.quantize_per_channel(
        tensor.float(), torch.ones(len(tensor)), torch.zeros(len(tensor)), 0, torch.qint8
    ),
    "csr": lambda tensor: tensor.reshape(len(tensor), -1).to_sparse_csr(),
    "csc": lambda tensor: tensor.reshape(len(tensor), -1).to_sparse_csc(),
    "bsr": lambda tensor: tensor.reshape(len(tensor), -1).to_sparse_bsr((1, 1)),
    "bsc": lambda tensor: tensor.reshape(len(tensor), -1).to_sparse_bsc((1, 1)),
}


def rnn(input: Tensor, h0: Tensor, weights: tuple[Tensor, ...], lengths: Tensor | None = None, **options: Any) -> Any:
    return tu.rnn(input, h0, list(weights), lengths=lengths, **options)


SEQUENCE, STATE = torch.randn(4, 2, 3), torch.randn(1, 2, 5)
WEIGHTS = (torch.randn(5, 3), torch.randn(5, 5), torch.randn(5), torch.randn(5))
IMAGE = torch.randn(2, 3, 5, 5)
#: A function, and its tensors by name.
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Tensor]]] = {
    "conv2d": (tu.conv2d, {"input": IMAGE, "weight": torch.randn(4, 3, 2, 2), "bias": torch.randn(4)}),
    "conv_transpose2d": (tu.conv_transpose2d, {"input": IMAGE, "weight": torch.randn(3, 4, 2, 2), "bias": torch.randn(4)}),
    "unfold": (partial(tu.unfold, kernel_size=2), {"input": IMAGE}),
    "fold": (partial(tu.fold, output_size=5, kernel_size=2), {"input": torch.randn(2, 12, 16)}),
    "max_pool2d": (partial(tu.max_pool2d, kernel_size=2), {"input": IMAGE}),
    "max_over_time": (tu.max_over_time, {"x": SEQUENCE, "lengths": torch.tensor([3, 1])}),
    "rnn": (
        lambda a, b, c, d, **rest: rnn(weights=(a, b, c, d), **rest),
        {"input": SEQUENCE, "h0": STATE, "lengths": torch.tensor([3, 1]), **dict(zip("abcd", WEIGHTS, strict=True))},
    ),
    "rnn_cell": (
        tu.rnn_cell,
        {"input": SEQUENCE[0], "h": STATE[0], **dict(zip(("w_ih", "w_hh", "b_ih", "b_hh"), WEIGHTS, strict=True))},
    ),
}
NAMES = {letter: f"weights[{place}]" for place, letter in enumerate("abcd")}
PLACES = [(call, argument) for call, (_, tensors) in CALLS.items() for argument in tensors]


def of_kind(kind: str, tensor: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return KINDS[kind](tensor)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("call", "argument"), PLACES)
def test_a_named_engine_says_which(call: str, argument: str, kind: str) -> None:
    function, tensors = CALLS[call]
    other = of_kind(kind, tensors[argument])
    for target in TARGETS:
        with pytest.raises(RuntimeError) as raised:
            function(**{**tensors, argument: other}, engine=target.engine)
        name = NAMES.get(argument, argument)
        assert str(raised.value).startswith(f"{name}: expected a strided tensor"), raised.value
        assert str(other.layout) in str(raised.value)


TORCHS: dict[str, Callable[..., Any]] = {
    "conv2d": F.conv2d,
    "conv_transpose2d": F.conv_transpose2d,
    "unfold": partial(F.unfold, kernel_size=2),
    "fold": partial(F.fold, output_size=5, kernel_size=2),
    "max_pool2d": partial(F.max_pool2d, kernel_size=2),
    "rnn_cell": lambda h, **tensors: torch.rnn_tanh_cell(hx=h, **tensors),
}


def outcome(function: Callable[..., Any], **tensors: Tensor) -> Any:
    """A result as plain numbers, or the type and message of an error."""
    try:
        result = function(**tensors)
    except Exception as error:
        return type(error), re.sub(
            r"\bj\d+\b", "j", str(error)
        )  # jagged extents have running numbers, which differ between calls
    if result.is_nested:
        return result.values()
    return result.dequantize() if result.is_quantized else result.to_dense() if result.layout != torch.strided else result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("call", "argument"), [place for place in PLACES if place[0] in TORCHS])
def test_torchs_operator_gets_the_call_as_it_is(call: str, argument: str, kind: str) -> None:
    function, tensors = CALLS[call]
    tensors = {**tensors, argument: of_kind(kind, tensors[argument])}
    expected, result = outcome(TORCHS[call], **tensors), outcome(function, **tensors)
    if isinstance(expected, tuple):
        assert result == expected
    else:
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_ops_without_a_torch_operator_refuse_the_argument_by_name(kind: str) -> None:
    with pytest.raises(RuntimeError, match="x: expected a strided tensor"):
        tu.max_over_time(of_kind(kind, SEQUENCE))
    with pytest.raises(RuntimeError, match=r"weights\[1\]: expected a strided tensor"):
        rnn(SEQUENCE, STATE, (WEIGHTS[0], of_kind(kind, WEIGHTS[1]), *WEIGHTS[2:]), nonlinearity="sigmoid")
    with pytest.raises(RuntimeError, match="b_hh: expected a strided tensor"):
        tu.rnn_cell(SEQUENCE[0], STATE[0], *WEIGHTS[:3], of_kind(kind, WEIGHTS[3]), nonlinearity="identity")


@pytest.mark.parametrize("kind", ["coo", "mkldnn", "quantized"])
def test_within_transforms(kind: str) -> None:
    weight = torch.randn(4, 3, 2, 2)
    odd = {"input": of_kind(kind, IMAGE), "weight": of_kind(kind, weight)}

    def call(input: Tensor = IMAGE, weight: Tensor = weight) -> Tensor:
        return tu.conv2d(input, weight, engine="torch")

    transformed: dict[str, list[Callable[[], Any]]] = {
        "weight": [
            lambda: torch.func.vmap(lambda x: call(x, odd["weight"]))(IMAGE),
            lambda: torch.func.grad(lambda x: call(x, odd["weight"]).sum())(IMAGE),
            lambda: torch.func.jvp(lambda x: call(x, odd["weight"]), (IMAGE,), (IMAGE,)),
        ],
        "input": [lambda: torch.func.functionalize(call)(odd["input"])],
    }
    if kind != "quantized":  # torch.func does not differentiate quantized tensors
        transformed["input"].append(lambda: torch.func.grad(lambda x: call(x).sum())(odd["input"]))
        batch = of_kind(kind, torch.stack((IMAGE, IMAGE)))
        transformed["input"].append(lambda: torch.func.vmap(call)(batch))
    for name, calls in transformed.items():
        for run in calls:
            with pytest.raises(RuntimeError, match=f"{name}: expected a strided tensor"):
                run()


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_operators_that_are_called_directly(target: Target) -> None:
    weight = torch.randn(4, 3, 2, 2)
    geometry = ((1, 1), (0, 0, 0, 0), (1, 1), 1, "ieee", target.engine, False)
    for kind in set(KINDS) - {"nested", "jagged"}:  # the dispatcher itself rejects these two
        with pytest.raises(RuntimeError, match="x: expected a strided tensor"):
            torch.ops.torch_unroll.conv2d_fprop(of_kind(kind, IMAGE), weight, None, *geometry)
        with pytest.raises(RuntimeError, match="w: expected a strided tensor"):
            torch.ops.torch_unroll.conv2d_fprop(IMAGE, of_kind(kind, weight), None, *geometry)


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_engine_claims_no_such_tensor_on_a_gpu(kind: str) -> None:
    def on_gpu(tensor: Tensor) -> Any:
        facts = ("dtype", "layout", "is_nested", "is_quantized")
        return SimpleNamespace(is_cuda=True, **{name: getattr(tensor, name) for name in facts})

    x, w, other = on_gpu(IMAGE), on_gpu(torch.randn(4, 3, 2, 2)), on_gpu(of_kind(kind, IMAGE))
    assert claims("auto", x, (w, None), ("weight", "bias"))
    assert not claims("auto", other, (w, None), ("weight", "bias"))
    assert not claims("auto", x, (other, None), ("weight", "bias"))
    assert not claims("auto", x, (w, other), ("weight", "bias"))
