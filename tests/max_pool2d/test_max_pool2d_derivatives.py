"""Max pooling in autograd, torch.func, torch.compile and the dispatcher, on every engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torch_unroll.engines import use_engine
from torch_unroll.max_pool2d import max_over_time, max_pool2d
from torch_unroll.testing import Target, assert_exact, targets

TARGETS = targets("max_pool2d")
LENGTHS = [5, 1, 9, 2]


def _over_time(x: Tensor, engine: str | None = None) -> Tensor:
    """A masked maximum, computed by torch's own operators if no engine is named."""
    lengths = torch.tensor(LENGTHS, device=x.device)
    if engine is not None:
        return max_over_time(x, lengths, engine=engine)
    steps = torch.arange(x.shape[0], device=x.device).view(-1, 1, 1)
    return torch.where(steps < lengths.view(1, -1, 1), x, -torch.inf).amax(0)


# name -> (call, shape of the input); without options the call is torch's
CALLS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "compiled window": (lambda x, **o: (max_pool2d if o else F.max_pool2d)(x, 3, 2, 1, **o), (2, 2, 5, 6)),
    "any window": (
        lambda x, **o: (max_pool2d if o else F.max_pool2d)(x, (3, 2), (1, 2), 1, (1, 2), True, **o),
        (2, 2, 5, 6),
    ),
    "unbatched": (lambda x, **o: (max_pool2d if o else F.max_pool2d)(x, 2, **o), (3, 4, 5)),
    "max_over_time": (_over_time, (6, 4, 3)),
}


def _distinct(shape: tuple[int, ...], target: Target, dtype: torch.dtype = torch.float64) -> Tensor:
    """Returns cells that differ by at least a hundredth, so that no finite difference changes which cell is chosen."""
    count = torch.Size(shape).numel()
    return (torch.randperm(count, device=target.device).to(dtype) / 100 - count / 200).view(shape)


def _ours(name: str, target: Target) -> Callable[..., Tensor]:
    return lambda x: CALLS[name][0](x, engine=target.engine)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_derivatives(target: Target, name: str, layout: torch.memory_format) -> None:
    x = _distinct(CALLS[name][1], target)
    if layout == torch.channels_last:
        if x.dim() != 4:
            pytest.skip("has no channels_last layout")
        x = x.contiguous(memory_format=layout)
    call = _ours(name, target)
    x.requires_grad_()
    assert_exact(call(x).detach(), CALLS[name][0](x).detach())
    assert torch.autograd.gradcheck(call, (x,), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, (x,), check_fwd_over_rev=True)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_third_derivative(target: Target, name: str) -> None:
    call = _ours(name, target)

    def second(x: Tensor) -> Tensor:
        (first,) = torch.autograd.grad(call(x).sin().sum(), x, create_graph=True)
        return torch.autograd.grad(first.sin().sum(), x, create_graph=True)[0]

    assert torch.autograd.gradcheck(second, (_distinct(CALLS[name][1], target).requires_grad_(),))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_torch_func(target: Target, name: str) -> None:
    call, reference, x = _ours(name, target), CALLS[name][0], _distinct(CALLS[name][1], target)

    def loss(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x: function(x).sin().sum()

    torch.testing.assert_close(torch.func.grad(loss(call))(x), torch.func.grad(loss(reference))(x))
    assert_exact(torch.func.jacrev(call)(x), torch.func.jacrev(reference)(x))
    assert_exact(torch.func.jacfwd(call)(x), torch.func.jacfwd(reference)(x))
    torch.testing.assert_close(torch.func.hessian(loss(call))(x), torch.func.hessian(loss(reference))(x))
    for dim in (0, 1, -1):
        batch = torch.stack([_distinct(CALLS[name][1], target) for _ in range(3)], dim)
        assert_exact(torch.func.vmap(call, dim)(batch), torch.stack([reference(one) for one in batch.unbind(dim)]))
        per_sample = torch.stack([torch.func.grad(loss(reference))(one) for one in batch.unbind(dim)])
        torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss(call)), dim)(batch), per_sample)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_torch_func_with_indices_and_lengths(target: Target) -> None:
    batch = torch.stack([_distinct((2, 2, 5, 6), target) for _ in range(3)])
    y, indices = torch.func.vmap(lambda x: max_pool2d(x, 3, 2, 1, return_indices=True, engine=target.engine))(batch)
    expected, where = F.max_pool2d(batch.flatten(0, 1), 3, 2, 1, return_indices=True)
    assert_exact(y.flatten(0, 1), expected)
    assert_exact(indices.flatten(0, 1), where)
    x, lengths = _distinct((6, 4, 3), target), torch.tensor([[1, 6, 3, 0], [2, 2, 9, -1]], device=target.device)
    both = torch.func.vmap(lambda lengths: max_over_time(x, lengths, engine=target.engine))(lengths)
    assert_exact(both, torch.stack([max_over_time(x, row, engine=target.engine) for row in lengths]))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_compiles_without_graph_breaks(target: Target, name: str) -> None:
    torch._dynamo.reset()
    backend = "inductor" if name == "compiled window" and target.engine == "torch" else "aot_eager"
    compiled = torch.compile(
        lambda x: max_over_time(x) if x.dim() == 3 else max_pool2d(x, 3, 2, 1), fullgraph=True, backend=backend
    )
    x = _distinct(CALLS[name][1], target, torch.float32).requires_grad_()
    with use_engine(target.engine):
        y = compiled(x)
    expected = x.amax(0) if x.dim() == 3 else F.max_pool2d(x, 3, 2, 1)
    assert_exact(y.detach(), expected.detach())
    weighting = torch.randint(-3, 4, y.shape, device=y.device).to(y.dtype)
    assert_exact(torch.autograd.grad(y, x, weighting)[0], torch.autograd.grad(expected, x, weighting)[0])


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_compiles_for_dynamic_shapes(target: Target) -> None:
    torch._dynamo.reset()
    frames = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    call = torch.compile(
        lambda x: max_pool2d(x, 3, 2, 1, ceil_mode=True, return_indices=True, engine=target.engine),
        fullgraph=True,
        dynamic=True,
        backend=frames,
    )
    for extent in (5, 8, 11):
        x = torch.randn(2, 3, extent, extent + 1, device=target.device)
        for ours, theirs in zip(call(x), F.max_pool2d(x, 3, 2, 1, ceil_mode=True, return_indices=True), strict=True):
            assert_exact(ours, theirs)
    assert frames.frame_count == 1


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_operators(target: Target) -> None:
    ops, engine = torch.ops.torch_unroll, target.engine
    x = _distinct((2, 3, 6, 5), target).contiguous(memory_format=torch.channels_last).requires_grad_()
    geometry = ([3, 2], [2, 1], [1, 1], [1, 2])
    y, offsets = ops.max_pool2d_forward(x, *geometry, False, True, engine)
    torch.library.opcheck(ops.max_pool2d_forward, (x, *geometry, False, True, engine))
    torch.library.opcheck(ops.max_pool2d_forward, (x.detach(), *geometry, True, False, engine))
    torch.library.opcheck(ops.max_pool2d_backward, (torch.randn_like(y).requires_grad_(), offsets, [6, 5], *geometry, engine))
    torch.library.opcheck(ops.max_pool2d_gather, (x, offsets, *geometry, engine))
    torch.library.opcheck(ops.max_pool2d_indices, (offsets, [6, 5], *geometry, engine))
    x, lengths = _distinct((6, 4, 3), target).requires_grad_(), torch.tensor(LENGTHS, device=target.device)
    y, offsets = ops.max_over_time_forward(x, lengths, True, engine)
    torch.library.opcheck(ops.max_over_time_forward, (x, lengths, True, engine))
    torch.library.opcheck(ops.max_over_time_backward, (torch.randn_like(y).requires_grad_(), offsets, 6, engine))
    torch.library.opcheck(ops.max_over_time_gather, (x, offsets, engine))


class _Calls(TorchDispatchMode):
    """Records for each forward pass whether it computes offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.with_offsets: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.torch_unroll.max_pool2d_forward.default:
            self.with_offsets.append(args[6])
        if func is torch.ops.torch_unroll.max_over_time_forward.default:
            self.with_offsets.append(args[2])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_offsets_only_where_a_derivative_may_be_asked_for(target: Target) -> None:
    x = _distinct((2, 3, 6, 5), target)
    with _Calls() as calls:
        max_pool2d(x, 2, engine=target.engine)
        max_over_time(x[0], engine=target.engine)
        with torch.no_grad():
            max_pool2d(x.clone().requires_grad_(), 2, engine=target.engine)
        assert calls.with_offsets == [False] * 3
        max_pool2d(x, 2, return_indices=True, engine=target.engine)
        max_pool2d(x.clone().requires_grad_(), 2, engine=target.engine)
        max_over_time(x[0].clone().requires_grad_(), engine=target.engine)
        with torch.autograd.forward_ad.dual_level():
            max_pool2d(x, 2, engine=target.engine)
        assert calls.with_offsets == [False] * 3 + [True] * 4


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_forward_without_offsets_has_no_derivative(target: Target) -> None:
    x = _distinct((1, 1, 4, 4), target).requires_grad_()
    y, _ = torch.ops.torch_unroll.max_pool2d_forward(x, [2, 2], [2, 2], [0, 0], [1, 1], False, False, target.engine)
    with pytest.raises(RuntimeError, match="with_offsets"):
        y.sum().backward()


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_same_bits_twice(target: Target) -> None:
    x = torch.randn(3, 8, 9, 10, device=target.device, requires_grad=True)
    weighting = torch.randn(3, 8, 9, 10, device=target.device)
    runs = [torch.autograd.grad(max_pool2d(x, 3, 1, 1, engine=target.engine), x, weighting)[0] for _ in range(3)]
    assert_exact(runs[0], runs[1])
    assert_exact(runs[0], runs[2])
