"""The result of a convolution as its kernels see it: rows, columns and depth of the product in the order of the kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.exact.case import ARITHMETIC
from benchmarks.gpu.exact.conv2d import Conv2dCase, Geometry, Inputs, convolve, inputs
from benchmarks.gpu.failures.products import Depth, Part, Product, Tiling, padded
from torch_unroll.kernels.arithmetic import round_up
from torch_unroll.kernels.cuda.conv2d import mma, simt, wgmma
from torch_unroll.shapes import dtype_name

PIXEL, CHANNEL, TAP = "pixel", "channel", "filter tap and channel"


def conv2d_product(case: Conv2dCase, operands: bool) -> Product:
    """The result of a case, with or without its operands."""
    walk = _Walk(case)
    parts = list({"fprop": _fprop, "dgrad": _dgrad, "wgrad": _wgrad}[case.direction](walk, operands))
    rows, columns = map(int, case.tile.split("x"))
    named = (CHANNEL, TAP) if case.direction == "wgrad" else (PIXEL, CHANNEL)
    tiling = Tiling(rows, columns, *named, fragments=case.variant in ("mma", "wgmma"))
    alternatives = list(_alternatives(case)) if operands else []
    return Product(tiling, parts, walk.depth, alternatives=alternatives)


class _Walk:
    """The order in which the variant of a case walks the depth."""

    def __init__(self, case: Conv2dCase):
        self.case, self.sizes, self.inputs = case, case.sizes, inputs(case.sizes, case.seed)
        dtype = dtype_name(ARITHMETIC[case.arithmetic])
        self.item = ARITHMETIC[case.arithmetic].itemsize
        groups, direction = self.sizes.groups, case.direction
        C, K = self.sizes.C // groups, self.sizes.K // groups
        piece = 16 // self.item
        by_wgmma, by_mma = case.variant == "wgmma", case.variant == "mma"
        self.reversed = by_wgmma and direction == "dgrad"  # the kernel walks the filter positions from the last to the first
        last = case.layout == "channels_last"
        self.channels_inner = by_wgmma or by_mma or direction == "dgrad" or (last and case.variant != "im2col")
        self.whole = 1  # channels of the gathered image are padded to a multiple of this
        if by_wgmma:
            span = wgmma.span(dtype, round_up(K if direction == "dgrad" else C, piece))
            self.whole, step = span // self.item, wgmma.STEP_BYTES // self.item
            self.depth = Depth(step, self.item, case.splits, min(span, 128) // self.item, *_of_wgmma(direction, dtype, span))
        elif by_mma:
            self.whole, step = piece, mma.TILES[case.tile].step(dtype)
            major = {"fprop": ("depth", "depth"), "dgrad": ("depth", "rows"), "wgrad": ("rows", "rows")}[direction]
            self.depth = Depth(step, self.item, case.splits, 4 * piece, major)
        else:
            step = simt.TILES[dtype][case.tile].step(dtype)
            self.depth = Depth(step, self.item, case.splits)

    def in_order(self, columns: Tensor, taps: list[tuple[int, int]]) -> tuple[Tensor, dict[str, Tensor]]:
        """Flattens (..., taps, channels) to (..., depth), pads to whole steps, and labels each depth with its tap and channel."""
        channels = columns.shape[-1]
        numbers = torch.arange(columns.shape[-2])[:, None].expand(-1, channels)
        channel_numbers = torch.arange(channels).expand(columns.shape[-2], -1)
        if self.channels_inner:
            columns = padded(columns, -1, self.whole)
            numbers, channel_numbers = (padded(label, -1, self.whole, -1) for label in (numbers, channel_numbers))
        else:
            columns, numbers, channel_numbers = (tensor.transpose(-1, -2) for tensor in (columns, numbers, channel_numbers))
        label = {"tap": numbers, "channel": channel_numbers}
        depth = padded(columns.flatten(-2), -1, self.depth.step)
        return depth, {kind: padded(index.flatten(), 0, self.depth.step, -1) for kind, index in label.items()}


def _of_wgmma(direction: str, dtype: str, span: int) -> tuple[tuple[str, str], tuple[int, int]]:
    if direction == "fprop" or (direction == "dgrad" and dtype == "float32"):
        return ("depth", "depth"), (span, span)
    if direction == "dgrad":
        return ("depth", "rows"), (span, 128)
    return ("rows", "rows"), (128, span)


def _places(size: tuple[int, ...]) -> Tensor:
    return torch.arange(torch.Size(size).numel()).view(size)


def _columns(sizes: Geometry, x: Tensor) -> Tensor:
    """Unfolds (N, C, H, W) to (N·P·Q, groups, taps, channels of a group)."""
    top, bottom, left, right = sizes.padding
    unfolded = F.unfold(F.pad(x, (left, right, top, bottom)), (sizes.R, sizes.S), sizes.dilation, 0, sizes.stride)
    cut = unfolded.unflatten(1, (sizes.groups, sizes.C // sizes.groups, sizes.R * sizes.S))
    return cut.permute(0, 4, 1, 3, 2).flatten(0, 1)


def _taps(sizes: Geometry) -> list[tuple[int, int]]:
    return list(product(range(sizes.R), range(sizes.S)))


def _fprop(walk: _Walk, operands: bool) -> Iterator[Part]:
    sizes, groups = walk.sizes, walk.sizes.groups
    place = _places(tuple(walk.inputs.dy.shape)).permute(0, 2, 3, 1).flatten(0, 2).unflatten(1, (groups, -1))
    columns = _columns(sizes, walk.inputs.x.float()) if operands else None
    for group in range(groups):
        part = Part(_name("group", group, groups), place[:, group])
        if columns is not None:
            w = walk.inputs.w.float().unflatten(0, (groups, -1))[group].permute(0, 2, 3, 1).flatten(1, 2)
            part.left, part.label = walk.in_order(columns[:, group], _taps(sizes))
            part.right, _ = walk.in_order(w, _taps(sizes))
            if walk.case.bias:
                part.addend = walk.inputs.bias.float().view(groups, -1)[group][None, :]
        yield part


def _dgrad(walk: _Walk, operands: bool) -> Iterator[Part]:
    """Yields a part for each group and each residue of the pixels modulo the stride; each part is a separate convolution."""
    sizes, groups = walk.sizes, walk.sizes.groups
    (top, _, left, _), dy = sizes.padding, walk.inputs.dy.float()
    places = _places(tuple(walk.inputs.x.shape))
    P, Q = dy.shape[2:]
    axes = [
        [_axis(residue, *numbers) for residue in range(min(numbers[1], numbers[0]))]
        for numbers in (
            (sizes.H, sizes.stride[0] if P > 1 else 1, sizes.R, sizes.dilation[0], top, P),
            (sizes.W, sizes.stride[1] if Q > 1 else 1, sizes.S, sizes.dilation[1], left, Q),
        )
    ]
    count = len(axes[0]) * len(axes[1])
    residues = list(enumerate(product(*axes)))
    for (number, ((lines, r, p), (pixels, s, q))), group in product(residues, range(groups)):
        place = places[:, :, lines][..., pixels].permute(0, 2, 3, 1).flatten(0, 2).unflatten(1, (groups, -1))[:, group]
        part = Part(" ".join(filter(None, (_name("residue", number, count), _name("group", group, groups)))), place)
        if operands:
            cut = dy.unflatten(1, (groups, -1))[
                :, group
            ]  # (N, K, P, Q); index -1 selects the border of zeros that is added below
            gathered = F.pad(cut, (0, 1, 0, 1))[:, :, p][..., q]  # (N, K, lines, r, pixels, s)
            left_columns = gathered.permute(0, 2, 4, 3, 5, 1).flatten(0, 2).flatten(1, 2)
            w = walk.inputs.w.float().unflatten(0, (groups, -1))[group][:, :, r][..., s].permute(1, 2, 3, 0).flatten(1, 2)
            if walk.reversed:
                left_columns, w = left_columns.flip(1), w.flip(1)
            taps = list(product(r.tolist(), s.tolist()))
            part.left, part.label = walk.in_order(left_columns, taps)
            part.right, _ = walk.in_order(w, taps)
            numbers = torch.tensor([a * sizes.S + b for a, b in (taps[::-1] if walk.reversed else taps)] + [-1])
            part.label["tap"] = numbers[part.label["tap"]]
        yield part


def _axis(
    residue: int, extent: int, stride: int, taps: int, dilation: int, pad: int, outputs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """For dgrad along one axis: the pixels of dx whose index has this residue modulo the stride, the filter positions that
    reach them, and for each pixel and position the index of the element of dy that is multiplied, -1 if there is none."""
    pixels, positions = torch.arange(residue, extent, stride), torch.arange(taps)
    positions = positions[(residue + pad - positions * dilation) % stride == 0]
    output = (pixels[:, None] + pad - positions * dilation) // stride
    return pixels, positions, torch.where((output >= 0) & (output < outputs), output, -1)


def _wgrad(walk: _Walk, operands: bool) -> Iterator[Part]:
    sizes, groups = walk.sizes, walk.sizes.groups
    places = _places(tuple(walk.inputs.w.shape)).flatten(2).unflatten(0, (groups, -1)).transpose(2, 3)  # (groups, K, taps, C)
    columns = _columns(sizes, walk.inputs.x.float()) if operands else None
    for group in range(groups):
        place = padded(places[group], 2, walk.whole, -1)
        if not walk.channels_inner:
            place = place.transpose(1, 2)
        part = Part(_name("group", group, groups), place.flatten(1))
        if columns is not None:
            right = padded(columns[:, group], 2, walk.whole)  # (pixels, taps, C)
            if not walk.channels_inner:
                right = right.transpose(1, 2)
            dy = walk.inputs.dy.float().unflatten(1, (groups, -1))[:, group].transpose(0, 1).flatten(1)
            part.left = padded(dy, 1, walk.depth.step)
            part.right = padded(right.flatten(1).mT, 1, walk.depth.step)
            image = torch.arange(sizes.N).repeat_interleave(dy.shape[1] // sizes.N)
            part.label = {"image": padded(image, 0, walk.depth.step, -1)}
        yield part


def _name(kind: str, number: int, count: int) -> str:
    return f"{kind} {number}" if count > 1 else ""


def _alternatives(case: Conv2dCase) -> Iterator[tuple[str, str, Callable[[], Tensor]]]:
    """Results of faulty convolutions of the same inputs, in the form of `Product.alternatives`."""
    sizes, drawn = case.sizes, inputs(case.sizes, case.seed)
    changed = {"with the filter's taps in reverse": drawn._replace(w=drawn.w.flip(2, 3), x=drawn.x)}
    if sizes.R == sizes.S and sizes.R > 1:
        changed["with the filter's lines and columns exchanged"] = drawn._replace(w=drawn.w.mT)
    for words, shift in (("a line below", (1, 0)), ("a line above", (-1, 0)), ("to the right", (0, 1)), ("to the left", (0, -1))):
        changed[f"from pixels {words}"] = drawn._replace(
            **{name: _shifted(getattr(drawn, name), shift) for name in (("dy",) if case.direction == "dgrad" else ("x",))}
        )
    for words, other in changed.items():
        if case.direction != "wgrad" or "pixels" in words:
            yield "wrong place", f"the operands are read {words}", partial(_result, case, other)
    if case.direction == "wgrad" and sizes.R * sizes.S > 1:
        yield "wrong place", "the taps are in reverse", lambda: _result(case, drawn).flip(2, 3)


def _shifted(image: Tensor, shift: tuple[int, int]) -> Tensor:
    """An image whose pixel (h, w) is the pixel (h, w) + shift of the original, with zeros from outside; shifts are -1, 0 or 1."""
    return F.pad(image, (1, 1, 1, 1))[:, :, 1 + shift[0] : 1 + shift[0] + image.shape[2], 1 + shift[1] :][..., : image.shape[3]]


def _result(case: Conv2dCase, drawn: Inputs) -> Tensor:
    sizes = case.sizes
    x, w, bias, dy = drawn
    if case.direction == "fprop":
        return convolve(sizes, x, w) + (bias.view(1, -1, 1, 1) if case.bias else 0)
    changed = (x if case.direction == "dgrad" else w).detach().requires_grad_()
    y = convolve(sizes, changed, w) if case.direction == "dgrad" else convolve(sizes, x, changed)
    (gradient,) = torch.autograd.grad(y, changed, dy)
    return gradient
