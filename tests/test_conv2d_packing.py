"""An NCHW image that two products of a training step take is packed once for both; results, strides and derivatives stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from torch import Tensor

import torch_unroll as tu
from torch_unroll import conv2d_ops
from torch_unroll.engines import use_engine
from torch_unroll.engines.compiled.recording import recording
from torch_unroll.kernels.cuda.conv2d.variants import plan_pack_channels
from torch_unroll.testing import Target, assert_exact, targets

TARGETS = targets("conv2d")
EMULATED = [target for target in TARGETS if str(target) == "cuda-emulated"]
MATHS = [(torch.float16, "conv"), (torch.bfloat16, "conv"), (torch.float32, "tf32")]


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def slice_of_channels(tensor: Tensor) -> Tensor:
    return torch.cat((tensor, -tensor), -3)[..., : tensor.shape[-3], :, :]


@dataclass(frozen=True)
class Case:
    """A call of conv2d or conv_transpose2d; both images come in groups of whole pieces."""

    x: tuple[int, ...] = (2, 16, 7, 5)
    w: tuple[int, ...] = (8, 16, 3, 2)
    stride: tuple[int, int] = (1, 2)
    padding: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = False
    transposed: bool = False
    x_layout: Callable[[Tensor], Tensor] = lambda tensor: tensor
    w_layout: Callable[[Tensor], Tensor] = lambda tensor: tensor
    dy_layout: Callable[[Tensor], Tensor] = lambda tensor: tensor
    images: int = 2  # packed in a step

    def inputs(self, target: Target, dtype: torch.dtype) -> list[Tensor]:
        """Of -1, 0 and 1: every sum of their products, and of those with them, is exact in every dtype."""
        outputs = self.w[1] * self.groups if self.transposed else self.w[0]
        sizes = [self.x, self.w, *([(outputs,)] if self.bias else [])]
        generator = torch.Generator().manual_seed(0)
        x, w, *bias = (torch.randint(-1, 2, size, generator=generator).to(target.device, dtype) for size in sizes)
        return [each.requires_grad_() for each in (self.x_layout(x), self.w_layout(w), *bias)]

    def ours(self, *tensors: Tensor, **options: Any) -> Tensor:
        if self.transposed:
            bias = tensors[2] if self.bias else None
            return tu.conv_transpose2d(*tensors[:2], bias, self.stride, self.padding, 0, self.groups, **options)
        return tu.conv2d(*tensors[:2], tensors[2] if self.bias else None, self.stride, self.padding, 1, self.groups, **options)

    def torchs(self, *tensors: Tensor) -> Tensor:
        bias = tensors[2] if self.bias else None
        if self.transposed:
            return F.conv_transpose2d(*tensors[:2], bias, self.stride, self.padding, 0, self.groups)
        return F.conv2d(*tensors[:2], bias, self.stride, self.padding, 1, self.groups)


CASES = {
    "plain": Case(),
    "bias": Case(bias=True),
    "groups": Case(x=(3, 16, 7, 6), w=(16, 8, 3, 3), groups=2),
    "unbatched": Case(x=(16, 7, 5)),
    "1x1": Case(w=(40, 16, 1, 1), stride=(1, 1), padding=(0, 0)),
    "channels_last filter": Case(w_layout=channels_last),
    "channels_last image": Case(x_layout=channels_last, images=1),
    "channels_last": Case(x_layout=channels_last, dy_layout=channels_last, images=0),
    "slices of channels": Case(x_layout=slice_of_channels, dy_layout=slice_of_channels),
    "transposed": Case(w=(16, 8, 3, 2), transposed=True),
    "transposed, groups and bias": Case(w=(16, 8, 2, 2), transposed=True, groups=2, bias=True),
}


def weighting(y: Tensor, case: Case) -> Tensor:
    dy = torch.randint(-1, 2, y.shape, generator=torch.Generator().manual_seed(1)).to(y.device, y.dtype)
    return case.dy_layout(dy).detach()


def results(call: Callable[..., Tensor], case: Case, inputs: list[Tensor]) -> list[Tensor]:
    """y, the gradients, and theirs."""
    y = call(*inputs)
    dy = weighting(y, case).requires_grad_()
    first = torch.autograd.grad(y, inputs, dy, create_graph=True)
    generator = torch.Generator().manual_seed(2)
    along = [torch.randint(-1, 2, each.shape, generator=generator).to(each.device, each.dtype) for each in first]
    second = torch.autograd.grad(first, [*inputs[:2], dy], along)
    return [each.detach() for each in (y, *first, *second)]


def unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv2d_ops, "_packs", lambda *_: False)


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The sizes of the images that are packed by an op."""
    sizes: list[torch.Size] = []
    pack = conv2d_ops.conv2d_pack

    def noted(image: Tensor, engine: str) -> Tensor:
        sizes.append(image.shape)
        return pack(image, engine)

    monkeypatch.setattr(conv2d_ops, "conv2d_pack", noted)
    return sizes


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "precision"), MATHS, ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_everything_is_as_without_packing(
    target: Target, dtype: torch.dtype, precision: str, name: str, packed: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    inputs = case.inputs(target, dtype)

    def call(*tensors: Tensor) -> Tensor:
        return case.ours(*tensors, engine=target.engine, precision=precision)

    y = call(*inputs)
    torch.autograd.grad(y, inputs, weighting(y, case))
    assert len(packed) == case.images
    mine = results(call, case, inputs)
    unpacked(monkeypatch)
    before = results(call, case, inputs)
    exact = results(case.torchs, case, [each.detach().double().requires_grad_() for each in inputs])
    assert mine[0].stride() == case.torchs(*inputs).stride()
    for ours, theirs, right in zip(mine, before, exact, strict=True):
        assert_exact(ours.double(), right)
        assert_exact(theirs.double(), right)
        assert ours.stride() == theirs.stride()


def packs(launches: list[Any]) -> Counter[Any]:
    return Counter(plan for _, plan in launches if plan.kernel.name == "pack_channels_kernel")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "precision"), MATHS, ids=str)
@pytest.mark.parametrize("target", EMULATED, ids=str)
def test_launches_of_a_training_step(target: Target, dtype: torch.dtype, precision: str, name: str) -> None:
    """Each NCHW image is packed once, a filter by each direction of tensor cores that takes it."""
    case = CASES[name]
    inputs = case.inputs(target, dtype)
    with recording() as record:
        y = case.ours(*inputs, engine=target.engine, precision=precision)
        forward = packs(record.launches)
        torch.autograd.grad(y, inputs, weighting(y, case))
    x, w = inputs[0] if inputs[0].dim() == 4 else inputs[0].unsqueeze(0), inputs[1]
    turned = (w.shape[1] * case.groups, w.shape[0] // case.groups, *w.shape[2:])
    of_x, of_y, of_w, of_turned = (
        plan_pack_channels(str(dtype).removeprefix("torch."), size[0], size[2] * size[3], size[1], 1)
        for size in (x.shape, (x.shape[0], *y.shape[-3:]), w.shape, turned)
    )
    chosen = {direction: record.choices[f"conv2d_{direction}"].choice.variant for direction in ("fprop", "dgrad")}
    expected = Counter({of_x: int(case.images == 2), of_y: int(case.images > 0)})
    assert forward[of_x] == expected[of_x]
    for direction, variant in chosen.items():
        turns = (variant, direction, dtype) == ("hopper", "dgrad", torch.float32)  # wgmma takes TF32 with the depth contiguous
        if turns or (variant in ("hopper", "tensor") and w.stride(1) > 1):
            expected[of_turned if turns else of_w] += 1
    assert len({of_x, of_y, of_w}) == 3
    assert of_turned not in (of_x, of_y)
    assert packs(record.launches) == +expected


WITHOUT: dict[str, tuple[Case, tuple[torch.dtype, str]]] = {
    "float32 of IEEE products": (Case(), (torch.float32, "ieee")),
    "float64": (Case(), (torch.float64, "conv")),
    "channels that are no whole pieces": (Case(x=(2, 12, 7, 5), w=(12, 12, 3, 2)), (torch.bfloat16, "conv")),
    "channels of a group that are none": (Case(w=(16, 4, 3, 2), groups=4), (torch.bfloat16, "conv")),
    "one pixel": (Case(x=(2, 16, 1, 1), stride=(1, 1), padding=(1, 1), w=(12, 16, 3, 3)), (torch.bfloat16, "conv")),
    "few filters in each group": (Case(w=(4, 8, 3, 2), groups=2), (torch.bfloat16, "conv")),
    "an expanded batch": (Case(w=(12, 16, 3, 2), x_layout=lambda t: t[:1].expand(t.shape)), (torch.bfloat16, "conv")),
    "an empty batch": (Case(x=(0, 16, 7, 5)), (torch.bfloat16, "conv")),
}


@pytest.mark.parametrize("name", WITHOUT)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_what_is_not_packed(target: Target, name: str, packed: list[torch.Size]) -> None:
    case, (dtype, precision) = WITHOUT[name]
    inputs = case.inputs(target, dtype)
    y = case.ours(*inputs, engine=target.engine, precision=precision)
    torch.autograd.grad(y, inputs, torch.ones_like(y, memory_format=torch.contiguous_format))
    assert not packed


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_only_what_is_taken_twice_is_packed(target: Target, packed: list[torch.Size]) -> None:
    case = CASES["plain"]
    x, w = case.inputs(target, torch.bfloat16)
    with torch.no_grad():
        case.ours(x, w, engine=target.engine)
    y = case.ours(x, w.detach(), engine=target.engine)
    torch.autograd.grad(y, x, torch.ones_like(y))
    assert not packed
    y = case.ours(x.detach(), w, engine=target.engine)
    torch.autograd.grad(y, w, torch.ones_like(y))
    assert packed == [x.shape]
    packed.clear()
    y = case.ours(x, w, engine=target.engine)
    torch.autograd.grad(y, (x, w), torch.ones(1, device=y.device, dtype=y.dtype).expand_as(y))
    assert packed == [x.shape]  # an expanded gradient is smaller than its copy


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_the_copy_is_workspace_and_is_kept_in_place_of_the_input(target: Target, packed: list[torch.Size]) -> None:
    case = CASES["plain"]
    x, w = case.inputs(target, torch.bfloat16)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        case.ours(x, w, engine=target.engine)
    assert [tensor.shape for tensor in saved] == [x.shape, w.shape]
    assert saved[0].is_contiguous(memory_format=torch.channels_last)
    assert packed == [x.shape]
    with tu.conv2d_workspace(2 * x.nbytes - 1):
        case.ours(x, w, engine=target.engine)
        assert len(packed) == 1
    with tu.conv2d_workspace(2 * x.nbytes):
        case.ours(x, w, engine=target.engine)
        assert len(packed) == 2


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nchw": lambda t: t,
    "channels_last": channels_last,
    "transposed": lambda t: t.mT.contiguous().mT,
    "expanded": lambda t: t[:1, :, :, :1].expand(t.shape),
    "offset": lambda t: F.pad(t, (1, 2, 3, 4))[:, :, 3:-4, 1:-2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_packed_copy(target: Target, dtype: torch.dtype, layout: str) -> None:
    for size in ((2, 16, 5, 3), (1, 12, 4, 4), (3, 1, 5, 2), (2, 8, 1, 1), (0, 8, 3, 3)):
        x = LAYOUTS[layout](torch.randn(size, device=target.device).to(dtype))
        y = conv2d_ops.conv2d_pack(x, target.engine)
        assert_exact(y, x)
        assert y.stride() == torch.empty(size, memory_format=torch.channels_last).stride()
        assert not x.numel() or y.data_ptr() != x.data_ptr()
    x = LAYOUTS[layout](torch.randn(2, 16, 5, 3, device=target.device).to(dtype)).detach().requires_grad_()
    torch.library.opcheck(torch.ops.torch_unroll.conv2d_pack, (x, target.engine))


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_operators_on_packed_copies(target: Target) -> None:
    ops, case = torch.ops.torch_unroll, CASES["groups"]
    x, w = case.inputs(target, torch.float64)
    geometry = ([*case.stride], [1, 1, 1, 1], [1, 1], case.groups, "conv", target.engine)
    copy = channels_last(x.detach()).requires_grad_()
    y = ops.conv2d_fprop(copy, w, None, *geometry, True)
    assert y.is_contiguous()
    dy = channels_last(torch.randn_like(y)).detach().requires_grad_()
    torch.library.opcheck(ops.conv2d_fprop, (copy, w, None, *geometry, True))
    torch.library.opcheck(ops.conv2d_fprop, (copy, channels_last(w.detach()).requires_grad_(), None, *geometry, True))
    torch.library.opcheck(ops.conv2d_dgrad, (dy, w, [*x.shape[2:]], *geometry, True))
    for dy_packed in (False, True):
        for x_packed in (False, True):
            dw = ops.conv2d_wgrad(dy, copy, [*w.shape[2:]], *geometry, dy_packed, x_packed)
            assert dw.is_contiguous() == (dy_packed and x_packed)
            torch.library.opcheck(ops.conv2d_wgrad, (dy, copy, [*w.shape[2:]], *geometry, dy_packed, x_packed))


@pytest.mark.parametrize("name", ["bias", "groups", "transposed"])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_compiles_without_graph_breaks(target: Target, name: str) -> None:
    torch._dynamo.reset()
    case = CASES[name]
    inputs = case.inputs(target, torch.bfloat16)
    counter = torch._dynamo.testing.EagerAndRecordGraphs()
    for backend in (counter, "aot_eager"):
        with use_engine(target.engine):
            y = torch.compile(lambda *tensors: case.ours(*tensors), fullgraph=True, backend=backend)(*inputs)
            expected = case.ours(*inputs)
        assert_exact(y, expected)
        assert y.stride() == expected.stride()
        dy = weighting(y, case)
        for ours, theirs in zip(torch.autograd.grad(y, inputs, dy), torch.autograd.grad(expected, inputs, dy), strict=True):
            assert_exact(ours, theirs)
            assert ours.stride() == theirs.stride()
    assert "torch_unroll.conv2d_pack" in str(counter.graphs[0].graph)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_compiles_for_dynamic_shapes(target: Target) -> None:
    torch._dynamo.reset()
    frames = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    call = torch.compile(
        lambda x, w: tu.conv2d(x, w, None, 2, 1, engine=target.engine), fullgraph=True, dynamic=True, backend=frames
    )
    w = torch.randint(-1, 2, (8, 16, 3, 3)).to(target.device, torch.bfloat16).requires_grad_()
    for extent in (5, 8, 11):
        x = torch.randint(-1, 2, (2, 16, extent, extent + 1)).to(target.device, torch.bfloat16).requires_grad_()
        y, expected = call(x, w), F.conv2d(x.detach().double(), w.detach().double(), None, 2, 1)
        assert_exact(y.double(), expected)
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.stride() == x.stride()
    assert frames.frame_count == 1


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_autocast(target: Target, packed: list[torch.Size]) -> None:
    case = CASES["bias"]
    inputs = case.inputs(target, torch.float32)
    with torch.autocast(target.device.type, torch.bfloat16):
        y = case.ours(*inputs, engine=target.engine)
    dy = weighting(y, case)
    gradients = torch.autograd.grad(y, inputs, dy)
    assert packed == [inputs[0].shape, y.shape]
    exact = [each.detach().double().requires_grad_() for each in inputs]
    expected = case.torchs(*exact)
    assert y.dtype == torch.bfloat16
    assert_exact(y.double(), expected)
    for ours, theirs, like in zip(gradients, torch.autograd.grad(expected, exact, dy.double()), inputs, strict=True):
        assert_exact(ours.double(), theirs)
        assert ours.dtype == like.dtype
        assert ours.stride() == like.stride()


@pytest.mark.parametrize("name", ["bias", "groups", "transposed"])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_transforms(target: Target, name: str, packed: list[torch.Size]) -> None:
    case = CASES[name]
    inputs = [each.detach() for each in case.inputs(target, torch.bfloat16)]

    def ours(*tensors: Tensor) -> Tensor:
        return case.ours(*tensors, engine=target.engine)

    def loss(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *tensors: (call(*tensors) * dy).sum(dtype=torch.float64)

    everything, dy = tuple(range(len(inputs))), weighting(ours(*inputs), case)
    batch = [torch.stack((each, -each, each.flip(0))) for each in inputs]
    for transform, tensors in ((torch.func.grad, inputs), (lambda *of: torch.func.vmap(torch.func.grad(*of)), batch)):
        mine = transform(loss(ours), everything)(*tensors)
        right = transform(loss(case.torchs), everything)(*(each.double() for each in tensors))
        for result, expected in zip(mine, right, strict=True):
            assert_exact(result.double(), expected)
    assert not packed


@pytest.mark.parametrize("name", ["bias", "groups", "transposed"])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_forward_mode_beside_gradients(target: Target, name: str, packed: list[torch.Size]) -> None:
    case = CASES[name]
    inputs = case.inputs(target, torch.bfloat16)
    tangents = [each.detach().flip(0) for each in inputs]
    with fwAD.dual_level():
        y = case.ours(*(fwAD.make_dual(*pair) for pair in zip(inputs, tangents, strict=True)), engine=target.engine)
        _, tangent = fwAD.unpack_dual(y)
    assert packed[0] == inputs[0].shape
    exact = tuple(each.detach().double() for each in inputs)
    _, right = torch.func.jvp(case.torchs, exact, tuple(each.double() for each in tangents))
    assert tangent is not None
    assert_exact(tangent.double(), right)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_transforms_of_the_copy(target: Target) -> None:
    x, t = (torch.randn(3, 2, 16, 4, 3, device=target.device).bfloat16() for _ in range(2))

    def pack(x: Tensor) -> Tensor:
        return conv2d_ops.conv2d_pack(x, target.engine)

    for dim in (0, 1, 4):
        assert_exact(torch.func.vmap(pack, dim, dim)(x), x)
    for result, right in zip(torch.func.jvp(pack, (x[0],), (t[0],)), (x[0], t[0]), strict=True):
        assert_exact(result, right)
    assert_exact(torch.func.grad(lambda x: (pack(x) * t[0]).sum())(x[0]), t[0])


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_batched_gradients(target: Target) -> None:
    case = CASES["plain"]
    inputs = case.inputs(target, torch.bfloat16)
    y = case.ours(*inputs, engine=target.engine)
    dys = torch.stack((weighting(y, case), torch.ones_like(y))).detach()
    batched = torch.autograd.grad(y, inputs, dys, retain_graph=True, is_grads_batched=True)
    for i, dy in enumerate(dys):
        for ours, single in zip(batched, torch.autograd.grad(y, inputs, dy, retain_graph=True), strict=True):
            assert_exact(ours[i], single)
