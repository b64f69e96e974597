"""`__torch_function__`: a handler of torch's functions also handles this package's functions, and if it then calls torch's
function, ours computes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.overrides import TorchFunctionMode

import torch_unroll as tu
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.testing import targets

pytestmark = pytest.mark.skipif(
    "cuda-emulated" not in map(str, targets("conv2d")), reason="the emulated kernels tell whose function computed"
)


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@dataclass(frozen=True)
class Call:
    """Our function, torch's function with the same meaning, and the arguments of both, the first of which is a tensor."""

    ours: Callable[..., Any]
    torchs: Callable[..., Any]
    arguments: tuple[Any, ...]


IMAGE, FILTERS = _drawn(2, 3, 6, 5), _drawn(4, 3, 3, 2)
WEIGHTS = (_drawn(4, 3), _drawn(4, 4), _drawn(4), _drawn(4))
CALLS = {
    "conv2d": Call(tu.conv2d, F.conv2d, (IMAGE, FILTERS, _drawn(4), 2, (1, 0), 1, 1)),
    "conv2d-same": Call(tu.conv2d, F.conv2d, (IMAGE, FILTERS, None, 1, "same", (2, 1), 1)),
    "conv2d-unbatched": Call(tu.conv2d, F.conv2d, (IMAGE[0], FILTERS, None, 1, 0, 1, 1)),
    "conv_transpose2d": Call(
        tu.conv_transpose2d, F.conv_transpose2d, (_drawn(2, 4, 3, 3), _drawn(4, 2, 3, 2), _drawn(4), 2, 1, (1, 0), 2, 1)
    ),
    "unfold": Call(tu.unfold, F.unfold, (IMAGE, (3, 2), 1, 1, 2)),
    "fold": Call(tu.fold, F.fold, (_drawn(2, 12, 12), (4, 5), 2, 1, 0, 1)),
    "max_pool2d": Call(tu.max_pool2d, F.max_pool2d, (IMAGE, 3, 2, 1, 1, True)),
    "rnn_cell": Call(tu.rnn_cell, torch.rnn_tanh_cell, (_drawn(2, 3), _drawn(2, 4), *WEIGHTS)),
    "rnn_cell-without": Call(tu.rnn_cell, torch.rnn_tanh_cell, (_drawn(2, 3), _drawn(2, 4), *WEIGHTS[:2], None, None)),
    "max_pool2d-indices": Call(tu.max_pool2d, F.max_pool2d_with_indices, (IMAGE, 2, None, 0, 1, False, True)),
}
PLACES = [
    (name, place) for name, call in CALLS.items() for place, value in enumerate(call.arguments) if isinstance(value, Tensor)
]
AT_EACH_PLACE = pytest.mark.parametrize(("name", "place"), PLACES, ids=[f"{name}-{place}" for name, place in PLACES])


def _replaced(call: Call, place: int, value: Any) -> tuple[Any, ...]:
    return (*call.arguments[:place], value, *call.arguments[place + 1 :])


def _assert_equal(result: Any, expected: Any) -> None:
    results, expectations = (value if isinstance(value, (tuple, list)) else (value,) for value in (result, expected))
    for tensor, wanted in zip(results, expectations, strict=True):
        torch.testing.assert_close(tensor.as_subclass(Tensor), wanted.as_subclass(Tensor), rtol=1e-4, atol=1e-4)


class Silent(Tensor):
    """A subclass without a handler of its own."""


class Handler(Tensor):
    """A subclass that records the calls that it is offered, and passes them to the handler of Tensor."""

    asked: list[Any] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.asked.append((func, args, kwargs))
        return super().__torch_function__(func, types, args, kwargs or {})


@AT_EACH_PLACE
def test_a_subclass_that_handles_nothing(name: str, place: int) -> None:
    call = CALLS[name]
    arguments = _replaced(call, place, call.arguments[place].as_subclass(Silent))
    with recording() as record:
        result = call.ours(*arguments, engine="cuda")
    assert record.launches, "torch's function computed, and not the engine that was asked for"
    _assert_equal(result, call.torchs(*call.arguments))
    assert type(result[0] if isinstance(result, tuple) else result) is Silent


@AT_EACH_PLACE
def test_a_subclass_is_offered_calls_as_torch_offers_them(name: str, place: int) -> None:
    """A subclass is offered torch's function once, before anything is computed, with valid arguments of that function."""
    call = CALLS[name]
    arguments = _replaced(call, place, call.arguments[place].as_subclass(Handler))
    Handler.asked = []
    with recording() as record:
        result = call.ours(*arguments, engine="cuda")
    asked, Handler.asked = Handler.asked, []
    assert record.launches, "torch's function computed, and not the engine that was asked for"
    _assert_equal(result, call.torchs(*call.arguments))
    function, positional, named = asked[0]
    assert function is call.torchs
    assert [other for other, *_ in asked].count(call.torchs) == 1
    assert function(*positional, **(named or {})) is not None


class Doubled:
    """An object that is not a tensor. It calls functions with twice the tensor that it contains."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*(2 * value.tensor if isinstance(value, cls) else value for value in args), **(kwargs or {}))


@AT_EACH_PLACE
def test_an_object_that_is_no_tensor(name: str, place: int) -> None:
    """An object that unwraps itself and calls the function again reaches the engine that was asked for."""
    call = CALLS[name]
    with recording() as record:
        result = call.ours(*_replaced(call, place, Doubled(call.arguments[place])), engine="cuda")
    assert record.launches
    _assert_equal(result, call.torchs(*_replaced(call, place, 2 * call.arguments[place])))


class Ignorant:
    """Implements no function."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return NotImplemented


@AT_EACH_PLACE
def test_an_object_that_knows_no_answer(name: str, place: int) -> None:
    call = CALLS[name]
    with pytest.raises(TypeError, match=rf"torch_unroll.{call.ours.__name__}: no implementation for .*Ignorant"):
        call.ours(*_replaced(call, place, Ignorant()))


class Noting(TorchFunctionMode):
    """Records the functions that it is offered, and may answer one of them itself."""

    def __init__(self, answered: Any = None):
        super().__init__()
        self.asked: list[Any] = []
        self.answered = answered

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.asked.append(func)
        return "answered" if func is self.answered else func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CALLS)
def test_modes_are_consulted_from_the_innermost_outwards(name: str) -> None:
    call = CALLS[name]
    with torch.device("cpu"), recording() as record, Noting() as outer, tu.override(), Noting() as inner, torch.device("cpu"):
        result = call.ours(*call.arguments, engine="cuda")
    assert record.launches
    assert inner.asked.count(call.torchs) == outer.asked.count(call.torchs) == 1
    _assert_equal(result, call.torchs(*call.arguments))


@pytest.mark.parametrize("name", CALLS)
def test_a_mode_may_answer(name: str) -> None:
    call = CALLS[name]
    with Noting(call.torchs):
        assert call.ours(*call.arguments, engine="cuda") == "answered"


def test_an_engine_holds_for_the_call_that_named_it_alone() -> None:
    """torch computes the other functions that a handler calls, and all later calls."""

    class Twice(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = super().__torch_function__(func, types, args, kwargs or {})
            return F.max_pool2d(result.as_subclass(Tensor), 2) if func is F.conv2d else result

    with recording() as record:
        tu.conv2d(IMAGE.as_subclass(Twice), FILTERS, engine="cuda")
    assert {plan.variant for _, plan in record.launches} & {"simt", "mma", "im2col", "direct"}
    with recording() as record:
        F.conv2d(IMAGE, FILTERS)
    assert not record.launches


@pytest.mark.parametrize("name", CALLS)
def test_traced_by_fx(name: str) -> None:
    """The program that torch.fx records calls our function with the engine, and can be run on other inputs."""
    call = CALLS[name]
    traced = fx.symbolic_trace(lambda x: call.ours(x, *call.arguments[1:], engine="cuda"))
    assert call.ours in {node.target for node in traced.graph.nodes}
    example = call.arguments[0]
    for x in (example, -example if "unbatched" in name or "rnn" in name else torch.cat((example, -example))):
        for runnable in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(traced)), fx.symbolic_trace(traced)):
            with recording() as record:
                _assert_equal(runnable(x), call.torchs(x, *call.arguments[1:]))
            assert record.launches


SEQUENCE, START = _drawn(4, 2, 3), _drawn(1, 2, 4)
BATCH_SIZES = torch.tensor([3, 3, 2])
BY_TORCH = {
    "padded": ((SEQUENCE, START, WEIGHTS), {}),
    "batch first, no start": ((SEQUENCE, None, WEIGHTS), {"batch_first": True}),
    "no biases, relu": ((SEQUENCE, START, WEIGHTS[:2]), {"nonlinearity": "relu"}),
    "packed": ((_drawn(8, 3), _drawn(1, 3, 4), WEIGHTS), {"batch_sizes": BATCH_SIZES}),
    "packed, no start": ((_drawn(8, 3), None, WEIGHTS), {"batch_sizes": BATCH_SIZES}),
}
BEYOND_TORCH = {
    "unbatched": ((SEQUENCE[:, 0], None, WEIGHTS), {}),
    "sigmoid": ((SEQUENCE, START, WEIGHTS), {"nonlinearity": "sigmoid"}),
    "lengths": ((SEQUENCE, START, WEIGHTS), {"lengths": torch.tensor([2, 4])}),
    "segments": ((SEQUENCE, START, WEIGHTS), {"recompute_segments": 2}),
}


@pytest.mark.parametrize("name", [*BY_TORCH, *BEYOND_TORCH])
@pytest.mark.parametrize("place", ["input", "weight"])
def test_recurrences_are_offered(name: str, place: str) -> None:
    """A handler is offered torch's recurrence in place of tu.rnn if torch has an equivalent one."""
    (x, start, weights), options = (BY_TORCH | BEYOND_TORCH)[name]
    expected = tu.rnn(x, start, weights, engine="cuda", **options)
    if place == "input":
        x = x.as_subclass(Handler)
    else:
        weights = (*weights[:1], weights[1].as_subclass(Handler), *weights[2:])
    Handler.asked = []
    with recording() as record:
        result = tu.rnn(x, start, weights, engine="cuda", **options)
    asked = [function for function, *_ in Handler.asked]
    torchs = torch.rnn_relu if options.get("nonlinearity") == "relu" else torch.rnn_tanh
    assert asked.count(torchs if name in BY_TORCH else tu.rnn) == 1
    assert asked.count(tu.rnn if name in BY_TORCH else torchs) == 0
    assert record.launches
    _assert_equal(result, expected)
    assert type(result[0]) is Handler


@pytest.mark.parametrize("name", [*BY_TORCH, *BEYOND_TORCH])
def test_recurrence_traced_by_fx(name: str) -> None:
    (x, start, weights), options = (BY_TORCH | BEYOND_TORCH)[name]
    traced = fx.symbolic_trace(lambda x: tu.rnn(x, start, weights, engine="cuda", **options))
    with recording() as record:
        _assert_equal(traced(x), tu.rnn(x, start, weights, engine="torch", **options))
    assert record.launches


class Nets(nn.Module):
    """Every module that `replace` swaps, in sequence: (2, 3, 8, 8) -> (4, 3)."""

    def __init__(self, namespace: Any) -> None:
        super().__init__()
        self.conv = namespace.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.reflect = namespace.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False)
        self.up, self.columns, self.image = namespace.ConvTranspose2d(4, 4, 3, 2), namespace.Unfold(2), namespace.Fold(17, 2)
        self.pool = namespace.MaxPool2d(2)
        self.rnn = namespace.RNN(8, 5, 2, bidirectional=True)
        self.cell = namespace.RNNCell(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reflect(torch.relu(self.norm(self.conv(x))))
        x = self.image(self.columns(self.up(x)))[..., ::2, ::2]
        x = self.pool(x[..., :8, :8])
        output, h_n = self.rnn(x.flatten(2).transpose(1, 2)[:, :4].flatten(2).repeat(1, 1, 2))
        return self.cell(output[0]) + h_n.mean()


def _replaced_nets() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    torchs = Nets(nn).eval()
    ours = copy.deepcopy(torchs)
    tu.replace(ours)
    return ours, torchs


def test_modules_are_leaves_of_traced_programs() -> None:
    ours, torchs = _replaced_nets()
    x = _drawn(2, 3, 8, 8)
    traced, expected = fx.symbolic_trace(ours), fx.symbolic_trace(torchs)
    assert [(node.op, str(node.target)) for node in traced.graph.nodes] == [
        (node.op, str(node.target)) for node in expected.graph.nodes
    ]
    with tu.use_engine("cuda"), recording() as record:
        _assert_equal(traced(x), torchs(x))
    assert record.launches


def test_a_module_with_hooks_is_traced_once() -> None:
    """Hooks are recorded around a leaf and must not run again inside it."""
    model = nn.Sequential(tu.nn.Conv2d(3, 4, 3), tu.nn.MaxPool2d(2))
    model[0].register_forward_hook(lambda module, inputs, output: 3 * output)
    model[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    model[1].register_forward_hook(lambda module, inputs, output: output - 1)
    x = _drawn(2, 3, 6, 6)
    _assert_equal(fx.symbolic_trace(model)(x), model(x))


@pytest.mark.parametrize(
    "make", [lambda: tu.nn.Conv2d(3, 4, 3), lambda: tu.nn.MaxPool2d(2), lambda: tu.nn.Conv2d(3, 2, 3, padding="same")]
)
def test_a_module_that_is_the_program_is_traced_inside(make: Callable[[], nn.Module]) -> None:
    module, x = make(), _drawn(2, 3, 6, 6)
    traced = fx.symbolic_trace(module)
    assert {node.op for node in traced.graph.nodes} >= {"placeholder", "call_function", "output"}
    _assert_equal(traced(x), module(x))


def test_a_program_traced_within_override_is_ours_for_good() -> None:
    def program(x: Any) -> Any:
        return F.max_pool2d(torch.relu(F.conv2d(x, FILTERS)), 2)

    with tu.override():
        traced = fx.symbolic_trace(program)
    with tu.use_engine("cuda"), recording() as record:
        _assert_equal(traced(IMAGE), program(IMAGE))
    assert len(record.launches) >= 2


def test_fused_with_batch_norm() -> None:
    """torch's fusion looks modules up by their exact class, so it leaves ours unchanged, and the result stays right."""
    ours, torchs = _replaced_nets()
    x = _drawn(2, 3, 8, 8)
    _assert_equal(fuse(ours)(x), torchs(x))


SAMPLED = {
    "conv": (lambda namespace: namespace.Conv2d(3, 4, 3, 2, 1), (3, 3, 6, 5)),
    "groups": (lambda namespace: namespace.Conv2d(4, 6, (3, 2), dilation=(1, 2), groups=2, bias=False), (3, 4, 6, 5)),
    "same": (lambda namespace: namespace.Conv2d(3, 4, 3, padding="same"), (2, 3, 5, 4)),
    "rnn": (lambda namespace: namespace.RNN(3, 4, batch_first=True), (3, 5, 3)),
    "layers": (lambda namespace: namespace.RNN(3, 4, 2, bidirectional=True, nonlinearity="relu", batch_first=True), (3, 4, 3)),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_gradients_of_each_sample_by_expanded_weights(name: str) -> None:
    make, shape = SAMPLED[name]
    samples = []
    for namespace in (tu.nn, nn):
        torch.manual_seed(0)
        module = make(namespace)
        output = call_for_per_sample_grads(module, loss_reduction="sum")(_drawn(*shape))
        (output[0] if isinstance(output, tuple) else output).sin().sum().backward()
        samples.append([parameter.grad_sample for parameter in module.parameters()])
    _assert_equal(*samples)
