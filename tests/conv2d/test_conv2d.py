"""Convolution, its transpose, unfold and fold on every engine: derivatives, transforms, compilation, layouts, autocast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import Tensor

from torch_unroll.conv2d import conv2d, conv_transpose2d
from torch_unroll.engines import use_engine
from torch_unroll.testing import Target, assert_as_accurate, assert_exact, targets
from torch_unroll.unfold import fold, unfold

TARGETS = targets("conv2d")

# name -> (our function, torch's, shapes of the inputs); sizes and arguments are small, uneven and asymmetric
CALLS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "conv2d": (
        lambda *t, **o: conv2d(*t, (2, 1), (1, 2), (1, 2), 2, **o),
        lambda *t: F.conv2d(*t, (2, 1), (1, 2), (1, 2), 2),
        [(2, 4, 5, 6), (6, 2, 3, 2), (6,)],
    ),
    "conv2d-same": (
        lambda *t, **o: conv2d(*t, None, 1, "same", (1, 3), **o),
        lambda *t: F.conv2d(*t, None, 1, "same", (1, 3)),
        [(2, 3, 4, 5), (2, 3, 3, 2)],
    ),
    "conv2d-1x1": (lambda *t, **o: conv2d(*t, **o), F.conv2d, [(2, 3, 3, 4), (5, 3, 1, 1), (5,)]),
    "conv2d-unbatched": (lambda *t, **o: conv2d(*t, **o), F.conv2d, [(3, 4, 5), (2, 3, 2, 3)]),
    "conv_transpose2d": (
        lambda *t, **o: conv_transpose2d(*t, (2, 1), (1, 0), (1, 1), 2, (1, 2), **o),
        lambda *t: F.conv_transpose2d(*t, (2, 1), (1, 0), (1, 1), 2, (1, 2)),
        [(2, 4, 3, 3), (4, 3, 3, 2), (6,)],
    ),
    "unfold": (
        lambda *t, **o: unfold(*t, (3, 2), (1, 2), (2, 0), (2, 1), **o),
        lambda x: F.unfold(x, (3, 2), (1, 2), (2, 0), (2, 1)),
        [(2, 3, 5, 6)],
    ),
    "fold": (
        lambda *t, **o: fold(*t, (5, 6), (3, 2), (1, 2), (2, 0), (2, 1), **o),
        lambda x: F.fold(x, (5, 6), (3, 2), (1, 2), (2, 0), (2, 1)),
        [(2, 18, 16)],
    ),
}


def _inputs(name: str, target: Target, dtype: torch.dtype = torch.float64, grad: bool = True) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype, device=target.device, requires_grad=grad) for shape in CALLS[name][2]]


def _ours(name: str, target: Target) -> Callable[..., Tensor]:
    return lambda *tensors: CALLS[name][0](*tensors, engine=target.engine)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_derivatives(name: str, target: Target) -> None:
    inputs, call = _inputs(name, target), _ours(name, target)
    torch.testing.assert_close(call(*inputs), CALLS[name][1](*inputs))
    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_third_derivative(target: Target) -> None:
    x, w = _inputs("conv2d-1x1", target)[:2]

    def second(x: Tensor) -> Tensor:
        y = conv2d(x, w, engine=target.engine).sin().sum()
        (first,) = torch.autograd.grad(y, x, create_graph=True)
        return torch.autograd.grad(first.sin().sum(), x, create_graph=True)[0]

    assert torch.autograd.gradcheck(second, (x,))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_compiles_without_graph_breaks(name: str, target: Target) -> None:
    torch._dynamo.reset()
    backend = "inductor" if name in ("conv2d", "unfold") and target.engine == "torch" else "aot_eager"
    inputs, call = _inputs(name, target, torch.float32), CALLS[name][0]
    compiled = torch.compile(lambda *tensors: call(*tensors), fullgraph=True, backend=backend)
    with use_engine(target.engine):
        y = compiled(*inputs)
        expected = call(*inputs)
    torch.testing.assert_close(y, expected)
    weighting = torch.randn_like(y)
    for result, reference in zip(
        torch.autograd.grad(y, inputs, weighting), torch.autograd.grad(expected, inputs, weighting), strict=True
    ):
        torch.testing.assert_close(result, reference)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_compiles_for_dynamic_shapes(target: Target) -> None:
    torch._dynamo.reset()
    frames = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    call = torch.compile(
        lambda x, w: conv2d(x, w, None, 2, 1, engine=target.engine), fullgraph=True, dynamic=True, backend=frames
    )
    w = torch.randn(4, 3, 3, 3, device=target.device)
    for extent in (5, 8, 11):
        x = torch.randn(2, 3, extent, extent + 1, device=target.device)
        torch.testing.assert_close(call(x, w), F.conv2d(x, w, None, 2, 1), rtol=1e-4, atol=1e-5)
    assert frames.frame_count == 1


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_torch_func(name: str, target: Target) -> None:
    call, reference = _ours(name, target), CALLS[name][1]
    inputs = [torch.randn(shape, dtype=torch.float64, device=target.device) for shape in CALLS[name][2]]
    everything = tuple(range(len(inputs)))

    def loss(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *tensors: function(*tensors).sin().sum()

    for mine, torchs in zip(
        torch.func.grad(loss(call), everything)(*inputs), torch.func.grad(loss(reference), everything)(*inputs), strict=True
    ):
        torch.testing.assert_close(mine, torchs)
    torch.testing.assert_close(torch.func.jacrev(call)(*inputs), torch.func.jacrev(reference)(*inputs))
    torch.testing.assert_close(torch.func.jacfwd(call)(*inputs), torch.func.jacfwd(reference)(*inputs))
    batch = [torch.randn(3, *shape, dtype=torch.float64, device=target.device) for shape in CALLS[name][2]]
    for mask in range(1, 2 ** len(inputs)):  # every choice of one or more batched inputs
        dims = tuple(0 if mask >> i & 1 else None for i in everything)
        mixed = [many if dim == 0 else one for many, one, dim in zip(batch, inputs, dims, strict=True)]
        torch.testing.assert_close(torch.func.vmap(call, dims)(*mixed), torch.func.vmap(reference, dims)(*mixed))
    per_sample = torch.func.vmap(torch.func.grad(loss(call), everything))(*batch)
    torch.testing.assert_close(per_sample, torch.func.vmap(torch.func.grad(loss(reference), everything))(*batch))


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_operators(target: Target) -> None:
    x, w, bias = _inputs("conv2d", target)
    geometry = ([2, 1], [1, 1, 2, 2], [1, 2], 2, "conv", target.engine)
    ops = torch.ops.torch_unroll
    dy = torch.randn_like(ops.conv2d_fprop(x, w, bias, *geometry, None)).requires_grad_()
    for channels_last in (None, False, True):
        torch.library.opcheck(ops.conv2d_fprop, (x, w, bias, *geometry, channels_last))
        torch.library.opcheck(ops.conv2d_dgrad, (dy, w, [5, 6], *geometry, channels_last))
    for w_stride in (None, w.stride(), [w.stride(0), 1, w.stride(0) // 3, w.stride(0) // 6], [0, 1, 2, 3]):
        torch.library.opcheck(ops.conv2d_wgrad, (dy, x, [3, 2], w_stride, *geometry, None))
    window = ([3, 2], [2, 1], [2, 0], [1, 2], target.engine)
    columns = torch.randn_like(ops.unfold(x, *window)).requires_grad_()
    torch.library.opcheck(ops.unfold, (x, *window))
    torch.library.opcheck(ops.fold, (columns, [5, 6], *window))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "expanded", "offset"])
def test_layouts(layout: str, target: Target, dtype: torch.dtype) -> None:
    shape = (2, 4, 6, 5)
    x = torch.randn(shape, device=target.device).to(dtype)
    x = {
        "contiguous": lambda: x,
        "channels_last": lambda: x.contiguous(memory_format=torch.channels_last),
        "transposed": lambda: torch.randn(2, 4, 5, 6, device=target.device).to(dtype).transpose(2, 3),
        "expanded": lambda: x[:1, :, :, :1].expand(shape),
        "offset": lambda: torch.randn(3, 5, 7, 9, device=target.device).to(dtype)[1:, 1:, 1:, 2:7],
    }[layout]()
    w = torch.randn(6, 4, 3, 3, device=target.device).to(dtype)
    results = {}
    for kind, kind_dtype in (("ours", dtype), ("torchs", dtype), ("exact", torch.float64)):
        a, b = x.detach().to(kind_dtype).requires_grad_(), w.detach().to(kind_dtype).requires_grad_()
        y = conv2d(a, b, None, 1, 1, engine=target.engine) if kind == "ours" else F.conv2d(a, b, None, 1, 1)
        results[kind] = [y.detach(), *torch.autograd.grad(y, (a, b), torch.ones_like(y))]
    for name, ours, torchs, exact in zip(
        ("y", "dx", "dw"), *(results[kind] for kind in ("ours", "torchs", "exact")), strict=True
    ):
        assert_as_accurate(ours, torchs, exact, f"{name} of a {layout} input")
    assert results["ours"][0].is_contiguous(
        memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
    )


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (2, 3, 5, 5)])
def test_empty_batch_and_the_same_bits_twice(shape: tuple[int, ...], target: Target) -> None:
    x = torch.randn(shape, device=target.device, requires_grad=True)
    w = torch.randn(4, 3, 3, 3, device=target.device, requires_grad=True)
    first, second = (
        [y.detach(), *torch.autograd.grad(y.sum(), (x, w))] for y in (conv2d(x, w, engine=target.engine) for _ in range(2))
    )
    for a, b in zip(first, second, strict=True):
        assert_exact(a, b)
    assert first[0].shape == (shape[0], 4, 3, 3)
    if shape[0] == 0:
        assert not first[2].any()


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_autocast(name: str, target: Target) -> None:
    inputs, call = _inputs(name, target, torch.float32), _ours(name, target)
    with torch.autocast(target.device.type, torch.bfloat16):
        y = call(*inputs)
        reference = CALLS[name][1](*inputs)
    assert y.dtype == reference.dtype == torch.bfloat16
    exact = CALLS[name][1](*(tensor.detach().bfloat16().double() for tensor in inputs))
    assert_as_accurate(y.detach(), reference.detach(), exact)
    for tensor, gradient in zip(inputs, torch.autograd.grad(y.sum(), inputs), strict=True):
        assert gradient.dtype == tensor.dtype
    with torch.autocast(target.device.type, torch.bfloat16):
        vmapped = torch.func.vmap(torch.func.grad(lambda *t: call(*t).float().sum()), (0, *(None for _ in inputs[1:])))
        assert vmapped(inputs[0][None].detach(), *(tensor.detach() for tensor in inputs[1:])).dtype == torch.float32


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_failed_call_changes_nothing(target: Target) -> None:
    x, w = torch.randn(1, 3, 4, 4, device=target.device), torch.randn(2, 3, 5, 5, device=target.device)
    before = x.clone()
    with pytest.raises(
        RuntimeError, match=r"weight: expected a filter within the padded input of \(4, 4\), got one that spans \(5, 5\)"
    ):
        conv2d(x, w, engine=target.engine)
    assert_exact(x, before)


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(ValueError, match="engine: expected one of cuda, cupy, numba, torch or auto, got 'cudnn'"):
        conv2d(torch.randn(1, 1, 3, 3), torch.randn(1, 1, 3, 3), engine="cudnn")


def test_a_named_engine_never_falls_back() -> None:
    with pytest.raises(RuntimeError, match=r"torch: has no formulas for torch\.int64"):
        conv2d(torch.ones(1, 1, 3, 3, dtype=torch.int64), torch.ones(1, 1, 3, 3, dtype=torch.int64), engine="torch")
