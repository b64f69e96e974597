"""Traced, compiled and exported programs run on other extents than those of the inputs they were made from."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim, export, load, save
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.onnx._internal.torchscript_exporter import onnx_proto_utils
from torch.utils._pytree import tree_leaves

import torch_unroll as tu
from torch_unroll.testing import targets

NAMED = [target.engine for target in targets("rnn") if target.device.type == "cpu"]
#: None is the default engine, for which torch's own operator serves eager calls on the CPU.
ENGINES = [None, *NAMED]


class Packed(torch.nn.Module):
    """An RNN that gets the tensors of a PackedSequence, and returns the data of its packed output and h_n."""

    def __init__(self, engine: str | None):
        super().__init__()
        self.rnn = tu.nn.RNN(3, 4, 2, bidirectional=True, engine=engine)

    def forward(self, data: Tensor, batch_sizes: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output, h_n = self.rnn(PackedSequence(data, batch_sizes), hx)
        return output.data, h_n


def _net(engine: str | None) -> torch.nn.Module:
    net = tu.models.RecurrentNet(3, 4, 2)
    net.rnn.engine = engine
    return net


def _packed(*lengths: int) -> tuple[Tensor, ...]:
    packed = pack_sequence([torch.randn(length, 3) for length in lengths])
    return packed.data, packed.batch_sizes


def _padded(T: int, N: int, *states: int) -> tuple[Tensor, ...]:
    return (torch.randn(T, N, 3), *(torch.randn(count, N, 4) for count in states))


# name -> the module for an engine, inputs to make the program from, and inputs of other extents
Program = tuple[Callable[[str | None], torch.nn.Module], tuple[Tensor, ...], tuple[Tensor, ...]]
PROGRAMS: dict[str, Program] = {
    "plain": (lambda engine: tu.nn.RNN(3, 4, engine=engine), _padded(5, 2), _padded(7, 6)),
    "hx": (lambda engine: tu.nn.RNN(3, 4, 2, engine=engine), _padded(5, 2, 2), _padded(6, 7, 2)),
    "batch_first": (lambda engine: tu.nn.RNN(3, 4, batch_first=True, engine=engine), _padded(3, 5), _padded(2, 8)),
    "bidirectional": (lambda engine: tu.nn.RNN(3, 4, 2, bidirectional=True, engine=engine), _padded(5, 2), _padded(7, 6)),
    "unbatched": (lambda engine: tu.nn.RNN(3, 4, engine=engine), (torch.randn(5, 3),), (torch.randn(9, 3),)),
    "lengths": (
        lambda engine: tu.nn.RNN(3, 4, bidirectional=True, engine=engine),
        (*_padded(5, 3, 2), torch.tensor([5, 1, 3])),
        (*_padded(7, 2, 2), torch.tensor([0, 6])),
    ),
    "packed": (Packed, _packed(4, 2, 2), _packed(5, 3, 2, 1, 1)),
    "packed_hx": (Packed, (*_packed(4, 2), torch.randn(4, 2, 4)), (*_packed(5, 1, 1), torch.randn(4, 3, 4))),
    "cell": (lambda engine: tu.nn.RNNCell(3, 4, engine=engine), (torch.randn(2, 3),), (torch.randn(5, 3),)),
    "cell_hx": (
        lambda engine: tu.nn.RNNCell(3, 4, engine=engine),
        (torch.randn(2, 3), torch.randn(2, 4)),
        (torch.randn(5, 3), torch.randn(5, 4)),
    ),
    "net": (_net, _padded(5, 2), _padded(7, 6)),
}


def _slow(name: str, *quick: str) -> list[pytest.MarkDecorator]:
    return [] if name in quick else [pytest.mark.slow]


def _program(name: str, engine: str | None) -> Program:
    make, made_from, others = PROGRAMS[name]
    torch.manual_seed(0)
    module = make(engine)
    return lambda _: module, made_from, others


def _assert_same(program: Callable[..., Any], module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
    for ours, expected in zip(tree_leaves(program(*inputs)), tree_leaves(module(*inputs)), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    ("engine", "name"),
    [
        pytest.param(engine, name, marks=[] if engine == "torch" or name in ("packed", "cell") else pytest.mark.slow)
        for engine in ENGINES
        for name in PROGRAMS
    ],
)
def test_a_trace_runs_on_other_extents(engine: str | None, name: str) -> None:
    make, inputs, others = _program(name, engine)
    module = make(engine)
    trace = torch.jit.trace(module, inputs)
    _assert_same(trace, module, others)
    file = io.BytesIO()
    torch.jit.save(trace, file)
    file.seek(0)
    _assert_same(torch.jit.load(file), module, others)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_trace_of_the_function_runs_on_other_extents(engine: str | None) -> None:
    weights = [torch.randn(4, 3), torch.randn(4, 4)]

    def padded(x: Tensor) -> tuple[Tensor, Tensor]:
        return tu.rnn(x, None, weights, engine=engine)

    def packed(data: Tensor, batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
        return tu.rnn(data, None, weights, batch_sizes=batch_sizes, engine=engine)

    for function, inputs, others in (
        (padded, _padded(5, 3), _padded(2, 6)),
        (packed, _packed(3, 1), _packed(4, 4, 2)),
    ):
        trace = torch.jit.trace(function, inputs)
        for ours, expected in zip(trace(*others), function(*others), strict=True):
            torch.testing.assert_close(ours, expected)


def test_a_trace_for_the_default_engine_is_of_torchs_operators() -> None:
    for name, operator in (("plain", "rnn_tanh"), ("packed_hx", "rnn_tanh"), ("cell", "tanh"), ("net", "rnn_tanh")):
        make, inputs, _ = _program(name, None)
        graph = str(torch.jit.trace(make(None), inputs).inlined_graph)
        assert f"aten::{operator}(" in graph, name
        assert "torch_unroll::" not in graph, name


@pytest.fixture
def _data_dependent_sizes() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        yield


MASK = torch.tensor([True, False, True])
Masked = Callable[[torch.nn.Module, Tensor, Tensor], Any]
# name -> the module's name in PROGRAMS, and a call of that module on the part of x (3, 3, 3) that a mask selects
MASKED: dict[str, tuple[str, Masked]] = {
    "batch": ("plain", lambda module, x, mask: module(x[:, mask])),
    "batch_hx": ("hx", lambda module, x, mask: module(x[:, mask], torch.ones(2, 3, 4, dtype=x.dtype)[:, mask])),
    "batch_first": ("batch_first", lambda module, x, mask: module(x[mask])),
    "bidirectional": ("bidirectional", lambda module, x, mask: module(x[:, mask])),
    "lengths": ("plain", lambda module, x, mask: module(x[:, mask], lengths=torch.tensor([2, 1, 3])[mask])),
    "time": ("plain", lambda module, x, mask: module(x[mask])),
    "time_lengths": ("plain", lambda module, x, mask: module(x[mask], lengths=torch.tensor([2, 1, 0]))),
    "unbatched": ("plain", lambda module, x, mask: module(x[0][mask])),
    "cell": ("cell", lambda module, x, mask: module(x[0][mask])),
    "cell_hx": ("cell", lambda module, x, mask: module(x[0][mask], torch.ones(3, 4, dtype=x.dtype)[mask])),
    "net": ("net", lambda module, x, mask: module(x[:, mask])),
    "packed": ("packed", lambda module, x, mask: module(x[0][mask], torch.tensor([1, 1]))),
}


@pytest.mark.usefixtures("_data_dependent_sizes")
@pytest.mark.parametrize("kind", ["float32", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("bfloat16", "autocast"))])
@pytest.mark.parametrize(
    ("engine", "name"),
    [
        pytest.param(engine, name, marks=[] if engine == "torch" and name in ("time", "cell_hx") else pytest.mark.slow)
        for engine in ENGINES
        for name in MASKED
    ],
)
def test_compiles_for_extents_that_data_decides(engine: str | None, name: str, kind: str) -> None:
    program, call = MASKED[name]
    make, *_ = _program(program, engine)
    module = make(engine).to(torch.bfloat16 if kind == "bfloat16" else torch.float32)
    compiled = torch.compile(lambda x, mask: call(module, x, mask), fullgraph=True, backend="aot_eager")
    results = []
    with tu.use_engine(engine or "torch"):  # not torch's own operator, which rounds at other places in 16 bits
        for run in (compiled, lambda x, mask: call(module, x, mask)):
            x = torch.randn(3, 3, 3, dtype=module.get_parameter(next(iter(module.state_dict()))).dtype).fill_(0.5)
            x = x.mul_(torch.arange(27).view(3, 3, 3)).requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
                outputs = tree_leaves(run(x, MASK))
            gradients = torch.autograd.grad(sum(output.float().sin().sum() for output in outputs), [x, *module.parameters()])
            results.append([*outputs, *gradients])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("_data_dependent_sizes")
def test_what_a_graph_could_not_know_is_asked_when_it_runs() -> None:
    """A state of another batch and a sequence without steps raise when the graph runs."""
    module = tu.nn.RNN(3, 4, engine="torch")
    call = torch.compile(lambda x, mask, h0, other: module(x[:, mask], h0[:, other])[0], fullgraph=True, backend="aot_eager")
    x, h0, none = torch.randn(5, 3, 3), torch.randn(1, 3, 4), torch.tensor([False, False, False])
    assert call(x, MASK, h0, MASK).shape == (5, 2, 4)
    with pytest.raises(RuntimeError):
        call(x, MASK, h0, ~MASK)
    torch._dynamo.reset()
    over_time = torch.compile(lambda x, mask: module(x[mask])[0], fullgraph=True, backend="aot_eager")
    assert over_time(x[:3], MASK).shape == (2, 3, 4)
    with pytest.raises(RuntimeError):
        over_time(x[:3], none)


def _calls_ours(graph: torch.fx.Graph) -> bool:
    return any("torch_unroll" in str(node.target) for node in graph.nodes)


_DYNAMIC: dict[str, tuple[dict[int, Any], ...]] = {
    "plain": ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},),
    "hx": ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {1: Dim.DYNAMIC}),
    "bidirectional": ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},),
    "packed": ({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC}),
    "packed_hx": ({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC}, {1: Dim.DYNAMIC}),
    "cell": ({0: Dim.DYNAMIC},),
    "cell_hx": ({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC}),
    "net": ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},),
}


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [pytest.param(name, marks=_slow(name, "plain", "cell_hx")) for name in _DYNAMIC])
def test_an_export_for_the_default_engine_keeps_its_steps_together(name: str, strict: bool) -> None:
    make, inputs, others = _program(name, None)
    module = make(None)
    program = export(module, inputs, dynamic_shapes=_DYNAMIC[name], strict=strict)
    assert _calls_ours(program.graph)
    file = io.BytesIO()
    save(program, file)
    file.seek(0)
    _assert_same(load(file).module(), module, others)


@pytest.mark.parametrize("name", [pytest.param(name, marks=_slow(name, "plain", "cell")) for name in _DYNAMIC])
def test_compiled_for_the_default_engine(name: str) -> None:
    make, inputs, others = _program(name, None)
    module = make(None)
    torch._dynamo.reset()
    graphs: list[torch.fx.Graph] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph.graph)
        return graph.forward

    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    for arguments in (inputs, others):
        _assert_same(compiled, module, arguments)
    assert len(graphs) == 1
    assert _calls_ours(graphs[0])


@pytest.mark.slow
def test_inductor_takes_a_long_sequence_whole() -> None:
    torch._dynamo.reset()
    module, x = tu.nn.RNN(3, 4), torch.randn(60, 2, 3, requires_grad=True)
    output, _ = torch.compile(module, fullgraph=True)(x)
    torch.testing.assert_close(output, module(x)[0])
    ours, expected = (torch.autograd.grad(result.sum(), x)[0] for result in (output, module(x)[0]))
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("name", ["plain", "hx", "bidirectional", "unbatched", "cell_hx", "net", "packed_hx"])
def test_made_a_graph_for_the_default_engine(name: str) -> None:
    make, inputs, _ = _program(name, None)
    module = make(None)
    graph = make_fx(module)(*inputs)
    assert _calls_ours(graph.graph)
    _assert_same(graph, module, inputs)


@pytest.mark.parametrize("name", ["plain", "hx", "batch_first", "unbatched", "packed", "packed_hx", "cell", "cell_hx", "net"])
def test_torch_func_for_the_default_engine(name: str) -> None:
    make, (x, *further), _ = _program(name, None)
    module = make(None)
    weights = {key: parameter.detach() for key, parameter in module.named_parameters()}

    def outputs(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(tree_leaves(functional_call(module, weights, (x, *further))))

    def loss(x: Tensor) -> Tensor:
        return torch.stack([output.sin().sum() for output in outputs(x)]).sum()

    batch = torch.stack([x, 0.5 * x, -x])
    looped = [torch.stack(parts) for parts in zip(*map(outputs, batch), strict=True)]
    torch.testing.assert_close(list(vmap(outputs)(batch)), looped)
    leaf = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(grad(loss)(x), dx)
    torch.testing.assert_close(vmap(grad(loss))(batch)[0], dx)
    torch.testing.assert_close(jacrev(loss)(x), dx)
    torch.testing.assert_close(jvp(loss, (x,), (x,))[1], (dx * x).sum())


@pytest.mark.parametrize("kind", ["plain", "lengths", "packed", "cell", "max_over_time"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fake", [False, True])
def test_without_data(fake: bool, engine: str | None, kind: str) -> None:
    """Checks tensors on the meta device, and fake tensors."""
    if fake and kind == "packed":
        pytest.skip("how many samples packed data has is data, to torch's modules too")
    device = "cpu" if fake else "meta"
    mode: Any = torch._subclasses.FakeTensorMode() if fake else torch.no_grad()
    with mode if fake else torch.enable_grad():
        rnn = tu.nn.RNN(3, 4, 2, bidirectional=True, engine=engine, device=device)
        x = torch.empty((7, 3) if kind in ("packed", "cell") else (5, 2, 3), device=device, requires_grad=True)
        lengths = torch.ones(2, dtype=torch.int64, device=device)
        if kind == "packed":
            packed, h_n = rnn(PackedSequence(x, torch.tensor([3, 2, 2])))
            outputs, shapes = (packed.data, h_n), [(7, 8), (4, 3, 4)]
        elif kind == "cell":
            outputs, shapes = (tu.nn.RNNCell(3, 4, engine=engine, device=device)(x),), [(7, 4)]
        elif kind == "max_over_time":
            outputs, shapes = (tu.max_over_time(x, lengths, engine=engine),), [(2, 3)]
        else:
            outputs, shapes = rnn(x, lengths=lengths if kind == "lengths" else None), [(5, 2, 8), (4, 2, 4)]
        assert [tuple(output.shape) for output in outputs] == shapes
        (dx,) = torch.autograd.grad(sum(output.sum() for output in outputs), x, create_graph=True)
        assert (dx.shape, dx.device) == (x.shape, x.device)
        if kind != "max_over_time":
            (ddx,) = torch.autograd.grad(dx.sum(), x, allow_unused=True)
            assert ddx is None or ddx.shape == x.shape


X = torch.randn(5, 2, 3)
EXPORTED = {
    "RNN": (tu.nn.RNN(3, 4, 2, bidirectional=True), (X,), b"RNN"),
    "RNN_hx": (tu.nn.RNN(3, 4, nonlinearity="relu", batch_first=True), (X, torch.zeros(1, 5, 4)), b"RNN"),
    "RNNCell": (tu.nn.RNNCell(3, 4), (X[0],), b"Gemm"),
    "RecurrentNet": (tu.models.RecurrentNet(3, 4, 2), (X,), b"RNN"),
    "SequenceClassifier": (tu.models.SequenceClassifier(3, 4, 2), (X,), b"ReduceMax"),
    "SequenceClassifier_lengths": (tu.models.SequenceClassifier(3, 4, 2), (X, torch.tensor([2, 5])), b"ReduceMax"),
}


@pytest.fixture
def _without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips the last step of an export, which needs the package onnx to look for functions written in onnxscript."""
    monkeypatch.setattr(onnx_proto_utils, "_add_onnxscript_fn", lambda model, *_: model)


@pytest.mark.usefixtures("_without_onnx")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EXPORTED)
def test_exports_to_onnx(name: str) -> None:
    module, inputs, operator = EXPORTED[name]
    file = io.BytesIO()
    torch.onnx.export(module, inputs, file, dynamo=False)
    assert operator in file.getvalue()
    assert b"torch_unroll" not in file.getvalue()


@pytest.mark.usefixtures("_without_onnx")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("engine", NAMED)
def test_what_onnx_cannot_express(engine: str) -> None:
    lengths = torch.tensor([2, 5])
    for module, inputs in (
        (tu.nn.RNN(3, 4, engine=engine), (X,)),
        (tu.nn.RNN(3, 4), (X, None, lengths)),
        (tu.nn.RNN(3, 4, nonlinearity="sigmoid"), (X,)),
        (tu.nn.RNNCell(3, 4, engine=engine), (X[0],)),
        (tu.nn.RNNCell(3, 4, nonlinearity="identity"), (X[0],)),
    ):
        with pytest.raises(RuntimeError, match="ONNX has torch's recurrences alone: expected nonlinearity tanh or relu"):
            torch.onnx.export(module, inputs, io.BytesIO(), dynamo=False)
    with (
        tu.use_engine(engine),
        pytest.raises(RuntimeError, match="ONNX has torch's"),
    ):
        torch.onnx.export(tu.models.SequenceClassifier(3, 4, 2), (X,), io.BytesIO(), dynamo=False)
