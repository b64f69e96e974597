"""Every operator rejects tensors that do not fit together, whether it is called directly, from a trace or from a graph."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import torch_unroll as tu
from torch_unroll.ops.registration import Operator
from torch_unroll.testing import Target, targets

TARGETS = targets("conv2d")
GEOMETRY = ((1, 1), (1, 1, 1, 1), (1, 1), 2, "conv")  # stride, padding, dilation, groups, precision
WINDOW = ((2, 2), (2, 2), (0, 0), (1, 1))
LENGTHS = (3, 0, 2)


@dataclass(frozen=True)
class Call:
    """A valid call: the shape of each tensor, with the set of those dimensions whose extents may change while all other arguments
    stay the same; and the arguments before and after the name of the engine."""

    shapes: dict[str, tuple[tuple[int, ...], set[int]]]
    before: tuple[Any, ...]
    after: tuple[Any, ...] = ()
    made: dict[str, Callable[[], Tensor]] | None = None  # tensors that are not random float32

    def tensors(self) -> dict[str, Tensor]:
        drawn = {name: torch.randn(shape) for name, (shape, _) in self.shapes.items()}
        return drawn | {name: make() for name, make in (self.made or {}).items()}

    def rest(self, engine: str) -> tuple[Any, ...]:
        return *self.before, engine, *self.after


def _offsets(shape: tuple[int, ...]) -> Callable[[], Tensor]:
    return lambda: torch.zeros(shape, dtype=torch.uint8)


X, W = ((2, 4, 6, 5), {0, 2, 3}), ((6, 2, 3, 3), {2, 3})
ROWS, STATE, MATRIX = ((4, 3, 10), {0}), ((2, 3, 5), set[int]()), ((2, 5, 5), set[int]())
LAYER = ("tanh", "rnn")
lengths = {"lengths": lambda: torch.tensor(LENGTHS)}
sizes = {"batch_sizes": lambda: torch.tensor([3, 2, 2])}
CALLS = {
    "conv2d_fprop": Call({"x": X, "w": W, "bias": ((6,), set())}, GEOMETRY, (None,)),
    "conv2d_dgrad": Call({"dy": ((2, 6, 6, 5), {0}), "w": ((6, 2, 3, 3), {1})}, ((6, 5), *GEOMETRY), (None,)),
    "conv2d_wgrad": Call({"dy": ((2, 6, 6, 5), {1}), "x": ((2, 4, 6, 5), {1})}, ((3, 3), None, *GEOMETRY), (None,)),
    "unfold": Call({"x": ((2, 3, 6, 5), {0, 1, 2, 3})}, ((2, 2), (1, 1), (0, 0), (1, 1))),
    "fold": Call({"columns": ((2, 12, 20), {0, 1})}, ((6, 5), (2, 2), (1, 1), (0, 0), (1, 1))),
    "max_pool2d_forward": Call({"x": ((2, 3, 6, 4), {0, 1, 2, 3})}, (*WINDOW, False, True)),
    "max_pool2d_backward": Call(
        {"dy": ((2, 3, 3, 2), set()), "offsets": ((2, 3, 3, 2), set())},
        ((6, 4), *WINDOW),
        made={"offsets": _offsets((2, 3, 3, 2))},
    ),
    "max_pool2d_gather": Call(
        {"x": ((2, 3, 6, 4), set()), "offsets": ((2, 3, 3, 2), set())}, WINDOW, made={"offsets": _offsets((2, 3, 3, 2))}
    ),
    "max_pool2d_indices": Call({"offsets": ((2, 3, 3, 2), {0, 1})}, ((6, 4), *WINDOW), made={"offsets": _offsets((2, 3, 3, 2))}),
    "max_over_time_forward": Call({"x": ((4, 3, 5), {0, 2}), "lengths": ((3,), set())}, (True,), made=lengths),
    "max_over_time_backward": Call({"dy": ((3, 5), set()), "offsets": ((3, 5), set())}, (4,), made={"offsets": _offsets((3, 5))}),
    "max_over_time_gather": Call({"x": ((4, 3, 5), {0}), "offsets": ((3, 5), set())}, (), made={"offsets": _offsets((3, 5))}),
    "rnn_forward": Call({"z": ROWS, "w_hh": MATRIX, "h0": STATE, "lengths": ((3,), set())}, (None, *LAYER), made=lengths),
    "rnn_backward": Call(
        {"dh": ((4, 3, 10), set()), "h": ((4, 3, 10), set()), "w_hh": MATRIX, "h0": STATE, "lengths": ((3,), set())},
        (None, *LAYER),
        made=lengths,
    ),
    "rnn_tangent": Call(
        {"p": ((4, 3, 10), set()), "h": ((4, 3, 10), set()), "w_hh": MATRIX, "u0": STATE, "lengths": ((3,), set())},
        (None, *LAYER),
        made=lengths,
    ),
    "rnn_cell_forward": Call(
        {
            "x": ((3, 4), set()),
            "h": ((3, 5), set()),
            "w_ih": ((5, 4), set()),
            "w_hh": ((5, 5), set()),
            "b_ih": ((5,), set()),
            "b_hh": ((5,), set()),
        },
        LAYER,
    ),
    "rnn_cell_backward": Call(
        {"dh_next": ((3, 5), set()), "h_next": ((3, 5), set()), "w_ih": ((5, 4), {1}), "w_hh": ((5, 5), set())}, LAYER
    ),
}
PACKED = {
    "rnn_forward": Call({"z": ((7, 10), set()), "w_hh": MATRIX, "h0": STATE}, LAYER, made=sizes),
    "rnn_backward": Call({"dh": ((7, 10), set()), "h": ((7, 10), set()), "w_hh": MATRIX, "h0": STATE}, LAYER, made=sizes),
    "rnn_tangent": Call({"p": ((7, 10), set()), "h": ((7, 10), set()), "w_hh": MATRIX, "u0": STATE}, LAYER, made=sizes),
}


def _wrong(tensors: dict[str, Tensor], call: Call) -> dict[str, dict[str, Tensor]]:
    """Calls in which one tensor does not fit, by a description of the mistake."""
    calls = {}
    numbers = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    for name, tensor in tensors.items():
        shape, free = call.shapes.get(name, (tuple(tensor.shape), set()))
        wrong = {"rank": tensor.unsqueeze(0), "scalar": tensor.flatten()[0], "sparse": tensor.to_sparse()}
        wrong["dtype that no kernel has"] = tensor.to(torch.complex64)
        for dim in set(range(len(shape))) - free:
            wrong[f"extent {dim} larger"] = torch.cat((tensor, tensor), dim)
            if shape[dim] > 1:
                wrong[f"extent {dim} smaller"] = tensor.narrow(dim, 0, 1)
        if len(tensors) > 1:
            wrong["device"] = tensor.to("meta")
        if numbers != [name]:
            wrong["dtype"] = tensor.to(torch.float64 if tensor.is_floating_point() else torch.float32)
        calls |= {f"{name}: {what}": tensors | {name: other} for what, other in wrong.items()}
    return calls


def _error(function: Callable[..., Any], tensors: dict[str, Any]) -> Exception | None:
    try:
        function(*tensors.values())
    except Exception as error:
        return error
    return None


def _function(name: str, call: Call, tensors: dict[str, Tensor], engine: str) -> Callable[..., Any]:
    op = getattr(torch.ops.torch_unroll, name)
    if "batch_sizes" not in tensors:
        return lambda *values: op(*values, *call.rest(engine))
    return lambda *values: op(*values[:-1], None, values[-1], *call.rest(engine))


ROUTES: dict[str, Callable[[Callable[..., Any], tuple[Tensor, ...]], Callable[..., Any]]] = {
    "directly": lambda function, tensors: function,
    "traced": lambda function, tensors: torch.jit.trace(function, tensors),
    "graph": lambda function, tensors: make_fx(function)(*tensors),
    "symbolic graph": lambda function, tensors: make_fx(function, tracing_mode="symbolic")(*tensors),
}


def test_every_operator_is_here() -> None:
    every = (name.removesuffix("_recorded") for name in torch._C._dispatch_get_all_op_names())
    names = {name.partition("::")[2] for name in every if name.startswith("torch_unroll::")}
    assert names == set(CALLS), "give the new operator a row in CALLS"


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("name", "call"), [*CALLS.items(), *PACKED.items()], ids=[*CALLS, *(f"{name}-packed" for name in PACKED)]
)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_tensors_that_do_not_fit(target: Target, name: str, call: Call, route: str) -> None:
    tensors = call.tensors()
    function = ROUTES[route](_function(name, call, tensors, target.engine), tuple(tensors.values()))
    expected = _function(name, call, tensors, target.engine)(*tensors.values())
    torch.testing.assert_close(function(*tensors.values()), expected)
    for what, wrong in _wrong(tensors, call).items():
        error = _error(function, wrong)
        assert isinstance(error, RuntimeError), f"{what}: {error!r}"
        assert "expected" in str(error) or "no engine takes" in str(error), f"{what}: {error}"


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_no_tensor_at_all(target: Target, name: str) -> None:
    """None is accepted for an optional tensor only."""
    call, op = CALLS[name], getattr(torch.ops.torch_unroll, name)
    optional = {argument.name for argument in op.default._schema.arguments if "Optional" in str(argument.type)}
    for missing in call.tensors().keys() - optional:
        error = _error(_function(name, call, call.tensors(), target.engine), call.tensors() | {missing: None})
        assert isinstance(error, RuntimeError), f"{missing}: {error!r}"


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_numbers_that_do_not_fit(target: Target) -> None:
    ops, engine = torch.ops.torch_unroll, target.engine
    x, w = torch.randn(2, 4, 6, 5), torch.randn(6, 2, 3, 3)
    stride, padding, dilation, groups, precision = GEOMETRY

    def fprop(**numbers: Any) -> Callable[[], Any]:
        values = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "precision": precision} | numbers
        return lambda: ops.conv2d_fprop(x, w, None, *values.values(), engine, None)

    def pool(*window: Any) -> Callable[[], Any]:
        return lambda: ops.max_pool2d_forward(x, *window, False, True, engine)

    wrong = [
        fprop(stride=(0, 1)), fprop(stride=(1,)), fprop(stride=(1, 1, 1)), fprop(stride=(-1, 1)), fprop(padding=(1, 1)),
        fprop(padding=(-1, 1, 1, 1)), fprop(dilation=(1, 0)), fprop(dilation=(9, 9)), fprop(groups=0), fprop(groups=-2),
        fprop(groups=3), fprop(groups=1), pool((0, 2), *WINDOW[1:]), pool((2,), *WINDOW[1:]), pool((2, 2), (0, 1), *WINDOW[2:]),
        pool((2, 2), (2, 2), (2, 0), (1, 1)), pool((2, 2), (2, 2), (-1, 0), (1, 1)), pool((2, 2), (2, 2), (0, 0), (9, 1)),
        pool((2**31, 2), *WINDOW[1:]), pool((2**16, 2**16), (1, 1), (2**15, 2**15), (1, 1)),
        lambda: ops.conv2d_dgrad(x, torch.randn(4, 2, 3, 3), (9, 9), stride, padding, dilation, 1, precision, engine, None),
        lambda: ops.conv2d_wgrad(x, x, (0, 3), None, stride, padding, dilation, 1, precision, engine, None),
        lambda: ops.conv2d_wgrad(x, x, (3, 3), (9, 3, 1), stride, padding, dilation, 1, precision, engine, None),
        lambda: ops.conv2d_wgrad(x, x, (3, 3), (36, 9, 3, -1), stride, padding, dilation, 1, precision, engine, None),
        lambda: ops.unfold(x, (2, 2), (0, 1), (0, 0), (1, 1), engine),
        lambda: ops.unfold(x, (7, 2), (1, 1), (0, 0), (1, 1), engine),
        lambda: ops.fold(torch.randn(2, 12, 20), (6, 6), (2, 2), (1, 1), (0, 0), (1, 1), engine),
        lambda: ops.max_pool2d_indices(torch.zeros(2, 3, 3, 2, dtype=torch.uint8), (60, 40), *WINDOW, engine),
        lambda: ops.max_over_time_backward(torch.randn(3, 5), torch.zeros(3, 5, dtype=torch.uint8), 0, engine),
        lambda: ops.max_over_time_backward(torch.randn(3, 5), torch.zeros(3, 5, dtype=torch.uint8), 256, engine),
    ]  # fmt: skip
    for i, call in enumerate(wrong):
        error = _error(call, {})
        assert isinstance(error, RuntimeError), f"call {i}: {error!r}"
        assert "expected" in str(error)
    z, w_hh, h0 = torch.randn(4, 3, 10), torch.randn(2, 5, 5), torch.randn(2, 3, 5)
    for options in (("gelu", "rnn", engine), ("tanh", "fast", engine), ("tanh", "rnn", "opencl")):
        with pytest.raises(ValueError, match="expected one of"):
            ops.rnn_forward(z, w_hh, h0, None, None, *options)
    for sizes in ([3, 2], [2, 2, 3], [3, 4], [3, 2, 2, 1], [0, 7], [3, -1, 5], [4, 2, 1]):
        with pytest.raises(RuntimeError, match="batch_sizes: expected"):
            ops.rnn_forward(torch.randn(7, 10), w_hh, h0, None, torch.tensor(sizes), "tanh", "rnn", engine)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_hooks_that_hand_back_another_tensor(target: Target) -> None:
    """If a hook on saved tensors gives backward another tensor than forward saved, backward raises RuntimeError."""
    x, w = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    rnn = tu.nn.RNN(8, 5, engine=target.engine)
    calls = {
        "conv2d": lambda: tu.conv2d(x.requires_grad_(), w.requires_grad_(), padding=1, engine=target.engine),
        "max_pool2d": lambda: tu.max_pool2d(x.requires_grad_(), 2, engine=target.engine),
        "rnn": lambda: rnn(x[0].requires_grad_())[0],
    }
    hooks: dict[str, Callable[[Tensor], Tensor]] = {
        "another dtype": lambda tensor: tensor.to(torch.float64),
        "fewer": lambda tensor: tensor[:1],
        "another rank": lambda tensor: tensor.flatten(),
        "another device": lambda tensor: tensor.to("meta"),
    }
    for what, unpack in hooks.items():
        for name, call in calls.items():
            with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
                y = call()
            error = _error(y.sum().backward, {})
            assert isinstance(error, RuntimeError), f"{name}, {what}: {error!r}"


def test_the_cached_check_agrees_with_the_check() -> None:
    """The cached check agrees with the uncached one in any order of calls, with any optional tensors None, and with numbers in
    tuples or lists."""
    from torch_unroll.checks import remembering
    from torch_unroll.ops.conv2d import Conv2dFprop
    from torch_unroll.ops.rnn import RnnForward

    draw = random.Random(0)
    x, w, bias = torch.randn(2, 4, 6, 5), torch.randn(6, 2, 3, 3), torch.randn(6)
    z, w_hh, h0 = torch.randn(4, 3, 10), torch.randn(2, 5, 5), torch.randn(2, 3, 5)
    lengths, batch_sizes = torch.tensor([4, 2, 1]), torch.tensor([3, 2, 1, 1])
    stride, *rest = GEOMETRY
    wrongs: list[Callable[[Tensor], Tensor]] = [
        lambda tensor: tensor.to(torch.float64),
        lambda tensor: tensor.to("meta"),
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.unsqueeze(0),
        lambda tensor: torch.cat((tensor, tensor)),
    ]
    tables: list[tuple[type[Operator], list[list[Any]], list[tuple[Any, ...]]]] = [
        (Conv2dFprop, [[x], [w], [bias, None]], [(s, *rest, "torch", None) for s in (stride, list(stride), (2, 2), (0, 1))]),
        (
            RnnForward,
            [[z, torch.randn(7, 10)], [w_hh], [h0], [lengths, None], [batch_sizes, None]],
            [(name, "rnn", "torch") for name in ("tanh", "relu", "sine")],
        ),
    ]
    for definition, tensors, numbers in tables:
        known = remembering(definition.check, len(tensors))
        choices = [[*rights * 4, *(wrong(rights[0]) for wrong in wrongs)] for rights in tensors]
        outcomes = set()
        for _ in range(4000):
            inputs = (*map(draw.choice, choices), *draw.choice(numbers))
            expected = _error(definition.check, dict(enumerate(inputs)))
            outcomes.add(repr(expected))
            assert repr(_error(known, dict(enumerate(inputs)))) == repr(expected), [getattr(i, "shape", i) for i in inputs]
        assert len(outcomes) > 10
        assert "None" in outcomes


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_known_call_is_checked_quickly(target: Target) -> None:
    """The look-up is at least three times faster than the check itself, even on a busy machine."""
    from torch_unroll.checks import remembering
    from torch_unroll.ops.conv2d import Conv2dFprop

    inputs = (torch.randn(2, 4, 6, 5), torch.randn(6, 2, 3, 3), torch.randn(6), *GEOMETRY, target.engine, None)
    known = remembering(Conv2dFprop.check, 3)
    known(*inputs)

    def fastest(check: Callable[..., None]) -> float:
        times = []
        for _ in range(200):
            start = time.perf_counter()
            for _ in range(10):
                check(*inputs)
            times.append(time.perf_counter() - start)
        return min(times)

    assert fastest(known) < fastest(Conv2dFprop.check) / 3
