"""Inside `override`, torch's functions accept the same arguments as outside, by position and by name, and reject the same
calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import torch_unroll as tu

torch.manual_seed(0)
IMAGE, FILTER, TRANSPOSED = torch.randn(2, 4, 7, 7), torch.randn(4, 2, 3, 3), torch.randn(4, 3, 3, 3)
SEQUENCE, STATE = torch.randn(5, 3, 4), torch.randn(2, 3, 6)
PACKED = pack_padded_sequence(SEQUENCE, torch.tensor([5, 3, 2]))
WEIGHTS = [torch.randn(*size) for size in ((6, 4), (6, 6), (6,), (6,)) * 2]
STACK = [torch.randn(*size) for size in ((6, 4), (6, 6), (6, 6), (6, 6))]
CELL = {"w_ih": WEIGHTS[0], "w_hh": WEIGHTS[1], "b_ih": WEIGHTS[2], "b_hh": WEIGHTS[3]}
RNN = {"params": WEIGHTS, "has_biases": True, "num_layers": 1, "dropout": 0.0, "train": False, "bidirectional": True}
WINDOW = {"stride": 2, "padding": 1, "dilation": (1, 2), "ceil_mode": True}
CONV = {"bias": torch.randn(4), "stride": (2, 1), "padding": 1, "dilation": 2, "groups": 2}
CONV_TRANSPOSE = {"bias": torch.randn(3), "stride": 2, "padding": 1, "output_padding": (1, 0), "groups": 1, "dilation": 2}

#: A function, all its arguments in order, and the number of leading arguments that every valid call here passes.
Signature = tuple[Callable[..., Any], dict[str, Any], int]

SIGNATURES: dict[str, Signature] = {
    "F.conv2d": (F.conv2d, {"input": IMAGE, "weight": FILTER, **CONV}, 2),
    "torch.conv2d": (torch.conv2d, {"input": IMAGE[0], "weight": FILTER, **CONV}, 2),
    "F.conv_transpose2d": (F.conv_transpose2d, {"input": IMAGE, "weight": TRANSPOSED, **CONV_TRANSPOSE}, 2),
    "F.unfold": (F.unfold, {"input": IMAGE, "kernel_size": 3, "dilation": 2, "padding": 1, "stride": (1, 2)}, 2),
    "F.fold": (
        F.fold,
        {"input": torch.randn(2, 12, 16), "output_size": 8, "kernel_size": 2, "dilation": 1, "padding": 0, "stride": 2},
        6,
    ),
    "F.max_pool2d": (F.max_pool2d, {"input": IMAGE, "kernel_size": 3, **WINDOW, "return_indices": False}, 2),
    "F.max_pool2d, indices": (F.max_pool2d, {"input": IMAGE, "kernel_size": 3, **WINDOW, "return_indices": True}, 7),
    "F.max_pool2d_with_indices": (
        F.max_pool2d_with_indices,
        {"input": IMAGE, "kernel_size": (3, 2), **WINDOW, "return_indices": False},
        2,
    ),
    "torch.max_pool2d": (torch.max_pool2d, {"input": IMAGE, "kernel_size": 3, **WINDOW}, 2),
    "torch.rnn_tanh": (torch.rnn_tanh, {"input": SEQUENCE, "hx": STATE, **RNN, "batch_first": False}, 9),
    "torch.rnn_relu": (torch.rnn_relu, {"input": SEQUENCE.transpose(0, 1), "hx": STATE, **RNN, "batch_first": True}, 9),
    "torch.rnn_tanh, no biases": (
        torch.rnn_tanh,
        {"input": SEQUENCE, "hx": STATE, **RNN, "batch_first": False}
        | {"params": tuple(STACK), "has_biases": False, "num_layers": 2, "bidirectional": False},
        9,
    ),
    "torch.rnn_tanh, packed": (
        torch.rnn_tanh,
        {"data": PACKED.data, "batch_sizes": PACKED.batch_sizes, "hx": STATE, **RNN},
        9,
    ),
    "torch.rnn_relu, packed": (
        torch.rnn_relu,
        {"data": PACKED.data, "batch_sizes": PACKED.batch_sizes, "hx": STATE[:1], **RNN}
        | {"params": WEIGHTS[:4], "bidirectional": False},
        9,
    ),
    "torch.rnn_tanh_cell": (torch.rnn_tanh_cell, {"input": SEQUENCE[0], "hx": STATE[0], **CELL}, 4),
    "torch.rnn_relu_cell": (torch.rnn_relu_cell, {"input": SEQUENCE[0], "hx": STATE[0], **CELL}, 4),
}


class _Seen(TorchDispatchMode):
    """Records the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def _spellings(arguments: dict[str, Any], least: int) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """Every split of the arguments into positional ones and, in reverse order, named ones, for each number of optional arguments;
    also the required arguments with each optional one."""
    names = list(arguments)
    for count in range(least, len(names) + 1):
        for positional in range(count + 1):
            by_name = {name: arguments[name] for name in reversed(names[positional:count])}
            yield [arguments[name] for name in names[:positional]], by_name
    for name in names[least:]:
        yield [arguments[required] for required in names[:least]], {name: arguments[name]}


@pytest.mark.parametrize("name", SIGNATURES)
def test_every_spelling_is_served_by_us(name: str) -> None:
    function, arguments, least = SIGNATURES[name]
    served = 0
    for args, kwargs in _spellings(arguments, least):
        try:
            expected = function(*args, **kwargs)
        except RuntimeError:  # this geometry is invalid unless all arguments are passed
            expected = None
        with tu.use_engine("torch"), tu.override(), _Seen() as seen:
            if expected is None:
                with pytest.raises(RuntimeError):
                    function(*args, **kwargs)
                continue
            result = function(*args, **kwargs)
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
        assert any(called.startswith("torch_unroll.") for called in seen.names), (args, kwargs)
        served += 1
    assert served >= len(arguments)


@pytest.mark.parametrize("name", ["F.conv2d", "F.conv_transpose2d", "torch.max_pool2d", "torch.rnn_tanh", "torch.rnn_relu_cell"])
@pytest.mark.parametrize("alias", ["x", "a", "x1"])
def test_numpys_names_of_an_input(name: str, alias: str) -> None:
    function, arguments, _ = SIGNATURES[name]
    renamed = {alias if key == "input" else key: value for key, value in arguments.items()}
    expected = function(**renamed)
    with tu.use_engine("torch"), tu.override(), _Seen() as seen:
        torch.testing.assert_close(function(**renamed), expected, rtol=1e-4, atol=1e-4)
    assert any(called.startswith("torch_unroll.") for called in seen.names)


def _mistakes(arguments: dict[str, Any], least: int) -> Iterator[tuple[str, list[Any], dict[str, Any]]]:
    values = list(arguments.values())
    first = next(iter(arguments))
    yield "none", [], {}
    for left_out in list(arguments)[:least]:
        yield f"without {left_out}", [], {key: value for key, value in arguments.items() if key != left_out}
    yield "unknown", values, {"engine": "torch"}
    yield "unknown, by name", [], {**arguments, "precision": "ieee"}
    yield "twice", values, {first: values[0]}
    yield "too many", [*values, 1], {}
    for key, value in arguments.items():
        if isinstance(value, Tensor):
            yield f"{key} is no tensor", [], {**arguments, key: "no tensor"}
        if isinstance(value, bool):
            yield f"{key} is no bool", [], {**arguments, key: "no bool"}
        if isinstance(value, (int, tuple)) and not isinstance(value, bool):
            yield f"{key} is no number", [], {**arguments, key: object()}


def _is_refused(function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> bool:
    try:
        function(*args, **kwargs)
    except (TypeError, ValueError, RuntimeError):
        return True
    return False


MISTAKES = [
    pytest.param(name, args, kwargs, id=f"{name}: {mistake}")
    for name, (function, arguments, least) in SIGNATURES.items()
    for mistake, args, kwargs in _mistakes(arguments, least)
    if _is_refused(function, args, kwargs)
]


@pytest.mark.parametrize(("name", "args", "kwargs"), MISTAKES)
def test_a_mistake_is_of_torchs_type(name: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    function = SIGNATURES[name][0]
    with pytest.raises(Exception) as expected:  # noqa: PT011 (whichever it is)
        function(*args, **kwargs)
    with tu.use_engine("torch"), tu.override(), pytest.raises(expected.type) as raised:
        function(*args, **kwargs)
    assert raised.type is expected.type


RNN_MISMATCHES = {
    "biases that are not there": {"params": WEIGHTS[:2]},
    "biases that are not announced": {"has_biases": False},
    "a layer too many": {"num_layers": 2},
    "a direction too many": {"params": WEIGHTS[:4]},
    "a direction too few": {"bidirectional": False},
    "no layer": {"num_layers": 0, "params": []},
    "a weight that is none": {"params": [*WEIGHTS[:7], None]},
    "weights of a generator": {"params": iter(WEIGHTS)},
    "no state": {"hx": None},
}


@pytest.mark.parametrize("mismatch", RNN_MISMATCHES)
@pytest.mark.parametrize("name", ["torch.rnn_tanh", "torch.rnn_relu", "torch.rnn_tanh, packed"])
def test_weights_that_disagree_with_the_rest(name: str, mismatch: str) -> None:
    function, arguments, _ = SIGNATURES[name]
    changed = {**arguments, **RNN_MISMATCHES[mismatch]}
    with pytest.raises((RuntimeError, TypeError)) as expected:
        function(**changed)
    for engine in ("torch", "auto"):
        with tu.use_engine(engine), tu.override(), pytest.raises(expected.type):
            function(**changed)


def test_a_spelling_by_name_compiles_without_graph_breaks() -> None:
    torch._dynamo.reset()
    backend = torch._dynamo.testing.EagerAndRecordGraphs()
    compiled = torch.compile(lambda x, w: torch.conv2d(weight=w, input=x, padding="same"), fullgraph=True, backend=backend)
    x, w = torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3)
    with tu.use_engine("torch"), tu.override():
        torch.testing.assert_close(compiled(x, w), torch.conv2d(x, w, padding=1))
    assert "torch_unroll.conv2d_fprop" in str(backend.graphs[0].graph)
