"""Recurrence under torch.func, torch.compile and opcheck, on every engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, vmap
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import torch_unroll as tu
from torch_unroll.testing import Target, targets
from torch_unroll.testing.rnn import CASES, Case

TARGETS = targets("rnn")
#: The derivatives and shapes that a compiler sees do not depend on the engine, so one engine is enough for the quick suite.
COMPILED = [
    pytest.param(target, id=str(target), marks=[] if target.engine == "torch" else pytest.mark.slow) for target in TARGETS
]
BY_NAME = {case.name: case for case in CASES}
LAYOUTS = ["bidirectional", "packed-bidirectional", "lengths-bidirectional"]


def _loss(function: Callable[..., Any]) -> Callable[..., Tensor]:
    def loss(*tensors: Tensor) -> Tensor:
        output, h_n = function(*tensors)
        return output.sin().sum() + h_n.cos().sum()

    return loss


def _ours(case: Case, target: Target) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda *tensors: case.run(*tensors, engine=target.engine)


def _one_by_one(function: Callable[..., Any], dims: tuple[int | None, ...], tensors: list[Tensor]) -> Any:
    """Computes what vmap should return, without vmap, which torch's own recurrence does not support."""
    B = next(tensor.shape[dim] for tensor, dim in zip(tensors, dims, strict=True) if dim is not None)
    results = [
        function(*(tensor if dim is None else tensor.select(dim, i) for tensor, dim in zip(tensors, dims, strict=True)))
        for i in range(B)
    ]
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_grad_and_jacobians(target: Target, name: str) -> None:
    case = BY_NAME[name]
    tensors = case.tensors(target.device, grad=False)
    ours, every = _ours(case, target), tuple(range(len(tensors)))
    torch.testing.assert_close(grad(_loss(ours), every)(*tensors), grad(_loss(case.torchs), every)(*tensors))
    expected = jacrev(case.torchs)(*tensors)
    torch.testing.assert_close(jacrev(ours)(*tensors), expected)
    torch.testing.assert_close(jacfwd(ours)(*tensors), expected)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_hessians(target: Target, name: str) -> None:
    case = BY_NAME[name]
    tensors, w_hh = case.tensors(target.device, grad=False), 3
    expected = jacrev(jacrev(_loss(case.torchs), w_hh), w_hh)(*tensors)
    torch.testing.assert_close(hessian(_loss(_ours(case, target)), w_hh)(*tensors), expected)  # forward mode over reverse mode
    torch.testing.assert_close(jacrev(jacrev(_loss(_ours(case, target)), w_hh), w_hh)(*tensors), expected)


@pytest.mark.parametrize("batched", ["input", "states", "all", "weights", "w_hh", "bias"])
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_vmap(target: Target, name: str, batched: str) -> None:
    case = BY_NAME[name]
    single = case.tensors(target.device, grad=False)
    count = len(single)
    chosen = {
        "input": {0},
        "states": {1},
        "all": set(range(count)),
        "weights": set(range(2, count)),
        "w_hh": {3},
        "bias": {count - 1},
    }[batched]
    dims = tuple((i % 2 if tensor.dim() > 1 else 0) if i in chosen else None for i, tensor in enumerate(single))
    tensors = [
        tensor if dim is None else torch.stack([tensor, 0.5 * tensor, -tensor], dim)
        for tensor, dim in zip(single, dims, strict=True)
    ]
    ours = _ours(case, target)
    torch.testing.assert_close(vmap(ours, dims)(*tensors), _one_by_one(case.torchs, dims, tensors))
    per_sample = vmap(grad(_loss(ours), tuple(range(count))), dims)(*tensors)
    torch.testing.assert_close(per_sample, _one_by_one(grad(_loss(case.torchs), tuple(range(count))), dims, tensors))


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_vmap_over_lengths(target: Target) -> None:
    case = Case("", T=3, N=2, bidirectional=True)
    x, h0, *weights = case.tensors(target.device, grad=False)
    lengths = torch.tensor([[3, 1], [0, 2], [1, 5]], device=target.device)

    def call(lengths: Tensor) -> tuple[Tensor, Tensor]:
        return tu.rnn(x, h0, weights, bidirectional=True, lengths=lengths, engine=target.engine)

    torch.testing.assert_close(vmap(call)(lengths), _one_by_one(call, (0,), [lengths]))


@pytest.mark.parametrize("dims", [(0, None, None, None), (1, 0, None, None), (0, 0, 0, 0), (None, None, 0, None)])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_vmap_of_a_cell(target: Target, dims: tuple[int | None, ...]) -> None:
    shapes = [(2, 3), (2, 4), (4, 3), (4, 4)]
    tensors = [
        torch.randn(shape if dim is None else (*shape[:dim], 3, *shape[dim:]), dtype=torch.float64, device=target.device)
        for shape, dim in zip(shapes, dims, strict=True)
    ]

    def ours(*tensors: Tensor) -> tuple[Tensor]:
        return (tu.rnn_cell(*tensors, nonlinearity="tanh", engine=target.engine),)

    def torchs(*tensors: Tensor) -> tuple[Tensor]:
        return (torch.rnn_tanh_cell(*tensors),)

    def loss(function: Callable[..., tuple[Tensor]]) -> Callable[..., Tensor]:
        return lambda *tensors: function(*tensors)[0].sin().sum()

    torch.testing.assert_close(vmap(ours, dims)(*tensors), _one_by_one(torchs, dims, tensors))
    every = tuple(range(4))
    torch.testing.assert_close(
        vmap(grad(loss(ours), every), dims)(*tensors), _one_by_one(grad(loss(torchs), every), dims, tensors)
    )
    plain = [tensor if dim is None else tensor.select(dim, 0) for tensor, dim in zip(tensors, dims, strict=True)]
    torch.testing.assert_close(hessian(loss(ours), every)(*plain), hessian(loss(torchs), every)(*plain))


@pytest.mark.parametrize("layout", ["padded", "packed", pytest.param("lengths", marks=pytest.mark.slow)])
@pytest.mark.parametrize("target", COMPILED)
def test_operators(target: Target, layout: str) -> None:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, device=target.device, requires_grad=True)

    lengths = torch.tensor([2, 1, 0], device=target.device) if layout == "lengths" else None
    batch_sizes = torch.tensor([3, 2, 1]) if layout == "packed" else None
    rows = (6, 8) if layout == "packed" else (2, 3, 8)
    options = (lengths, batch_sizes, "tanh", "rnn", target.engine)
    w_hh, h0, ops = draw(2, 4, 4), draw(2, 3, 4), torch.ops.torch_unroll
    torch.library.opcheck(ops.rnn_forward, (draw(*rows), w_hh, h0, *options))
    torch.library.opcheck(ops.rnn_backward, (draw(*rows), draw(*rows), w_hh, h0, *options))
    torch.library.opcheck(ops.rnn_tangent, (draw(*rows), draw(*rows), w_hh, h0, *options))


@pytest.mark.parametrize("target", COMPILED)
def test_operators_of_a_cell(target: Target) -> None:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, device=target.device, requires_grad=True)

    options = ("sigmoid", "rnn", target.engine)
    ops, weights = torch.ops.torch_unroll, (draw(4, 3), draw(4, 4))
    torch.library.opcheck(ops.rnn_cell_forward, (draw(2, 3), draw(2, 4), *weights, draw(4), None, *options))
    torch.library.opcheck(ops.rnn_cell_backward, (draw(2, 4), draw(2, 4), *weights, *options))


def _compiles(function: Callable[..., Any], inputs: list[Tensor], backend: str) -> None:
    """Checks that a function compiles without a graph break, with the values and gradients of eager mode."""
    torch._dynamo.reset()

    def floating(outputs: Any) -> list[Tensor]:
        leaves = torch.utils._pytree.tree_leaves(outputs)
        return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]

    compiled = floating(torch.compile(function, fullgraph=True, backend=backend)(*inputs))
    eager = floating(function(*inputs))
    torch.testing.assert_close(compiled, eager)
    weightings = [torch.randn_like(tensor) for tensor in eager]
    torch.testing.assert_close(torch.autograd.grad(compiled, inputs, weightings), torch.autograd.grad(eager, inputs, weightings))


@pytest.mark.parametrize("name", ["two-layers", *LAYOUTS])
@pytest.mark.parametrize("target", COMPILED)
def test_compiles_without_graph_breaks(target: Target, name: str) -> None:
    case = BY_NAME[name]
    backend = "inductor" if (target.engine, name) == ("torch", "two-layers") else "aot_eager"
    inputs = case.tensors(target.device, torch.float32)
    _compiles(_ours(case, target), inputs, backend)
    if name == "bidirectional":
        with tu.use_engine(target.engine):
            _compiles(case.run, inputs, "aot_eager")


@pytest.mark.parametrize(
    "engine", ["torch", pytest.param("cuda", marks=pytest.mark.slow), pytest.param(None, marks=pytest.mark.slow)]
)
def test_modules_compile_without_graph_breaks(engine: str | None) -> None:
    if engine not in (None, *(target.engine for target in TARGETS if target.device.type == "cpu")):
        pytest.skip("the emulated kernels are not built")
    backend = "inductor" if engine == "torch" else "aot_eager"
    module = tu.nn.RNN(3, 4, 2, bidirectional=True, engine=engine)
    x, h0 = torch.randn(5, 2, 3, requires_grad=True), torch.randn(4, 2, 4, requires_grad=True)
    _compiles(module, [x, h0], backend)
    for enforce_sorted in (False, True):
        packed = pack_sequence([torch.randn(length, 3) for length in (4, 2)], enforce_sorted=enforce_sorted)

        def run(data: Tensor, *states: Tensor, packed: PackedSequence = packed) -> Any:
            return module(packed._replace(data=data), *states)

        data = packed.data.requires_grad_()
        _compiles(run, [data] if enforce_sorted else [data, h0], "aot_eager")
    cell = tu.nn.RNNCell(3, 4, engine=engine)
    _compiles(cell, [x.detach()[0].requires_grad_(), h0.detach()[0].requires_grad_()], backend)


@pytest.mark.parametrize("target", COMPILED)
def test_compiles_for_dynamic_shapes(target: Target) -> None:
    torch._dynamo.reset()
    frames = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    case = Case("", bidirectional=True)
    _, _, *weights = case.tensors(target.device, torch.float32)
    call = torch.compile(
        lambda x, h0: tu.rnn(x, h0, weights, bidirectional=True, engine=target.engine),
        fullgraph=True,
        dynamic=True,
        backend=frames,
    )
    for T, N in ((5, 6), (7, 8), (9, 7)):
        x, h0 = torch.randn(T, N, 3, device=target.device), torch.randn(2, N, 4, device=target.device)
        torch.testing.assert_close(call(x, h0), case.torchs(x, h0, *weights))
    assert frames.frame_count == 1


@pytest.mark.parametrize("target", COMPILED)
def test_override_compiles(target: Target) -> None:
    case = BY_NAME["two-layers"]
    inputs = case.tensors(target.device, torch.float32)

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        with tu.override():
            return case.torchs(*tensors)

    with tu.use_engine(target.engine):
        _compiles(run, inputs, "aot_eager")


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_functional_call_replaces_the_weights(target: Target) -> None:
    module = tu.nn.RNN(3, 4, engine=target.engine).to(target.device)
    x = torch.randn(2, 2, 3, device=target.device)
    zeros = {name: torch.zeros_like(parameter) for name, parameter in module.named_parameters()}
    assert not functional_call(module, zeros, (x,))[0].any()
    halves = {name: parameter.half() for name, parameter in module.named_parameters()}
    assert functional_call(module, halves, (x.half(),))[0].dtype == torch.float16
    gradients = grad(lambda weights: functional_call(module, weights, (x,))[0].sum())(dict(module.named_parameters()))
    module(x)[0].sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)
