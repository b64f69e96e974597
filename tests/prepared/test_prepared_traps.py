"""What may come between equal calls: errors, other types of arguments, modes, transforms, tracing, and autograd's features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import torch_unroll as tu
from tests.prepared.cases import Case, assert_equal, copies, every_case, gradients, misaligned, prepare, transposed

_BAD: dict[str, Callable[[Tensor], Any]] = {
    "None": lambda _: None,
    "str": lambda _: "tensor",
    "array": lambda tensor: tensor.numpy(),
    "list": lambda tensor: tensor.tolist(),
    "meta": lambda tensor: tensor.to("meta"),
    "dtype": lambda tensor: tensor.double(),
    "integer": lambda tensor: tensor.int(),
    "shape": lambda tensor: torch.cat([tensor, tensor]),
    "rank": lambda tensor: tensor[None, None],
    "sparse": lambda tensor: tensor.to_sparse(),
    "empty": lambda tensor: tensor[:0],
    "numbers": lambda tensor: np.float32(tensor.flatten()[0]),
}


def _outcome(function: Callable[..., Any], arguments: Sequence[Any], **options: Any) -> tuple[Any, ...]:
    try:
        return ("result", tuple(function(*arguments, **options).shape))
    except Exception as error:
        return (type(error), str(error))


@every_case
def test_wrong_tensors_raise_the_same_errors_as_before(case: Case) -> None:
    tensors = case.tensors()
    wrong = [[*tensors[:i], change(tensors[i]), *tensors[i + 1 :]] for i in range(len(tensors)) for change in _BAD.values()]
    before = [_outcome(case.run, arguments) for arguments in wrong]
    prepare(case)
    assert [_outcome(case.run, arguments) for arguments in wrong] == before


@pytest.mark.parametrize("number", [1.0, True, np.int64(1), [1], [1, 1], (1, 1), (1.0, 1), (True, 1), "1", None], ids=repr)
def test_options_that_equal_prepared_ones(number: Any) -> None:
    x, w = torch.randn(2, 4, 6, 6), torch.randn(4, 4, 3, 3)
    for name in ("stride", "padding", "dilation"):
        before = _outcome(tu.conv2d, (x, w), engine="cuda", **{name: number})
        for _ in range(4):
            for equal in (1, (1, 1)):
                tu.conv2d(x, w, engine="cuda", **{name: equal})
        assert _outcome(tu.conv2d, (x, w), engine="cuda", **{name: number}) == before
        pooled = {"stride": 1, "padding": 1, "dilation": 1, name: number}
        before = _outcome(tu.max_pool2d, (x, 2), engine="cuda", **pooled)
        for _ in range(4):
            tu.max_pool2d(x, 2, engine="cuda", **{**pooled, name: 1})
        assert _outcome(tu.max_pool2d, (x, 2), engine="cuda", **pooled) == before


def test_pooling_options_of_other_types() -> None:
    x = torch.randn(2, 4, 5, 5)
    for _ in range(4):
        tu.max_pool2d(x, 2, ceil_mode=False, engine="cuda")
    with pytest.raises(TypeError, match="ceil_mode"):
        tu.max_pool2d(x, 2, ceil_mode=0, engine="cuda")  # type: ignore[arg-type]
    assert_equal(tu.max_pool2d(x, 2, ceil_mode=True, engine="cuda"), F.max_pool2d(x, 2, ceil_mode=True))
    assert isinstance(tu.max_pool2d(x, 2, return_indices=True, engine="cuda"), tuple)
    for _ in range(4):
        assert_equal(tu.max_pool2d(x, [2, 2], [1, 2], engine="cuda"), F.max_pool2d(x, [2, 2], [1, 2]))


@every_case
def test_gradient_modes(case: Case) -> None:
    prepare(case)
    for _ in range(4):
        leaves = case.leaves()
        with torch.no_grad():
            assert not case.run(*leaves).requires_grad
            with torch.enable_grad():
                assert case.run(*leaves).requires_grad
        with torch.inference_mode():
            assert case.run(*leaves).is_inference()
            inference = [leaf.detach().clone() for leaf in leaves]
        result = case.run(*leaves)
        assert result.requires_grad
        assert not result.is_inference()
        assert_equal(case.run(*inference), case.expected(*inference))


@every_case
def test_autocast(case: Case) -> None:
    tensors = case.tensors()
    for _ in range(5):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert case.run(*tensors).dtype == (torch.float32 if case.name == "max_pool2d" else torch.bfloat16)
        assert case.run(*tensors).dtype == torch.float32


@every_case
def test_transforms(case: Case) -> None:
    prepare(case)
    first, *others = case.tensors()
    batch = torch.stack([first, 2 * first])
    of_ours, of_torchs = (lambda x: case.run(x, *others)), (lambda x: case.expected(x, *others))
    assert_equal(torch.func.vmap(of_ours)(batch), torch.stack([of_torchs(x) for x in batch]))
    leaf = first.clone().requires_grad_()
    expected = torch.autograd.grad(of_torchs(leaf).sum(), leaf)[0]
    assert_equal(torch.func.grad(lambda x: of_ours(x).sum())(first), expected)
    tangent = torch.autograd.functional.jvp(of_torchs, first, first)[1]
    assert_equal(torch.func.jvp(of_ours, (first,), (first,))[1], tangent)
    with forward_ad.dual_level():
        assert_equal(forward_ad.unpack_dual(of_ours(forward_ad.make_dual(first, first))).tangent, tangent)


@every_case
def test_batched_gradients(case: Case) -> None:
    prepare(case)
    leaves = case.leaves()
    result = case.run(*leaves)
    of_results = torch.randn(3, *result.shape)
    results = torch.autograd.grad(result, leaves, of_results, is_grads_batched=True)
    separate = [gradients(case.expected, leaves, of_result) for of_result in of_results]
    assert_equal(list(results), [torch.stack(one) for one in zip(*separate, strict=True)])  # type: ignore[arg-type]


@every_case
def test_a_gradient_with_a_tangent(case: Case) -> None:
    leaves = case.leaves()
    for _ in range(5):
        result = case.run(*leaves)
        of_result, tangent = torch.randn_like(result), torch.randn_like(result)
        torch.autograd.grad(result, leaves, of_result, retain_graph=True)
        with forward_ad.dual_level():
            results = torch.autograd.grad(result, leaves, forward_ad.make_dual(of_result, tangent))
            tangents = [forward_ad.unpack_dual(result).tangent for result in results]
        assert_equal(tangents, gradients(case.expected, leaves, tangent))


@every_case
def test_gradients_of_gradients(case: Case) -> None:
    def second(function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
        leaves = copies(tensors)
        firsts = torch.autograd.grad(function(*leaves).pow(2).mean(), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(first.pow(2).mean() for first in firsts), leaves))  # type: ignore[arg-type]

    def of_the_first(function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> list[Tensor | None]:
        leaves = copies(tensors)
        (first,) = torch.autograd.grad(function(*leaves).sum(), leaves[:1], create_graph=True)
        return list(torch.autograd.grad(first.sum(), leaves, allow_unused=True))

    for _ in range(5):
        leaves = case.leaves()
        assert_equal(second(case.run, leaves), second(case.expected, leaves), 1e-3)
        for ours, torchs in zip(of_the_first(case.run, leaves), of_the_first(case.expected, leaves), strict=True):
            zeros = [torch.zeros(()) if tensor is None else tensor for tensor in (ours, torchs)]
            assert_equal(*(tensor.expand_as(max(zeros, key=Tensor.numel)) for tensor in zeros), 1e-3)


@pytest.mark.parametrize("reentrant", [False, True])
@every_case
def test_checkpoints_of_equal_segments(case: Case, reentrant: bool) -> None:
    """A call may be prepared between a forward and its recomputation."""

    def run(function: Callable[..., Tensor], tensors: Sequence[Tensor], segments: int) -> list[Tensor | None]:
        leaves = copies(tensors)
        results = [checkpoint(function, *leaves, use_reentrant=reentrant) for _ in range(segments)]
        torch.stack(results).sin().sum().backward()
        return [leaf.grad for leaf in leaves]

    for segments in (1, 1, 2, 3):
        leaves = case.leaves()
        assert_equal(run(case.run, leaves, segments), run(case.expected, leaves, segments))


@every_case
@pytest.mark.parametrize("change", [misaligned, transposed, torch.clone], ids=lambda change: change.__name__)
def test_saved_tensor_hooks(case: Case, change: Callable[[Tensor], Tensor]) -> None:
    for _ in range(5):
        leaves = case.leaves()
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (change(tensor.detach()),), lambda packed: packed[0]):
            result = case.run(*leaves)
        of_result = torch.randn_like(result)
        results = torch.autograd.grad(result, leaves, of_result)
        assert_equal(list(results), gradients(case.expected, leaves, of_result))


def test_saved_tensors_may_not_change() -> None:
    x, w = torch.randn(2, 4, 4, 4).requires_grad_(), torch.randn(4, 4, 3, 3).requires_grad_()
    xs, h = torch.randn(4, 8), torch.randn(4, 8)
    weights = [torch.randn(8, 8).requires_grad_(), torch.randn(8, 8).requires_grad_()]
    for _ in range(5):
        copy = w.clone()
        result = tu.conv2d(x, copy, engine="cuda")
        copy.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.sum().backward()
        result = tu.rnn_cell(xs, h, *weights, engine="cuda")
        result.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.sum().backward()


class _SeesDispatch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class _SeesFunctions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@every_case
def test_modes_see_calls(case: Case) -> None:
    prepare(case)
    leaves = case.leaves()
    with _SeesFunctions() as functions:
        case.run(*leaves)
    assert functions.seen
    with _SeesDispatch() as operators:
        result = case.run(*leaves)
    assert any(name.startswith("torch_unroll.") for name in operators.seen)
    with _SeesDispatch() as operators:
        torch.autograd.grad(result, leaves, torch.randn_like(result))
    assert any(name.startswith("torch_unroll.") for name in operators.seen)


class _Sub(Tensor):
    pass


@every_case
def test_subclasses(case: Case) -> None:
    prepare(case)
    tensors = case.tensors()
    result = case.run(tensors[0].as_subclass(_Sub), *tensors[1:])
    assert type(result) is _Sub
    assert_equal(result.as_subclass(Tensor), case.expected(*tensors))


@every_case
@pytest.mark.parametrize("how", ["make_fx", "compile", "trace"])
def test_tracing_after_preparing(case: Case, how: str) -> None:
    prepare(case)
    tensors, others = case.tensors(), case.tensors()
    if how == "make_fx":
        graph = make_fx(case.run)(*tensors)
        assert any("torch_unroll" in str(node.target) for node in graph.graph.nodes)
    elif how == "compile":
        torch.compiler.reset()
        graph = torch.compile(case.run, backend="aot_eager", fullgraph=True)
    else:
        graph = torch.jit.trace(case.run, tuple(tensors), check_trace=False)
    for _ in range(4):
        assert_equal(graph(*others), case.expected(*others))
