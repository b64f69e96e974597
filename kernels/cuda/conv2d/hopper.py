"""The variant of compute capability 9.0: im2col by the copy engine, products by wgmma; its launch plans are in `wgmma.py`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

from ...hardware import Device
from . import wgmma
from .im2col_maps import Image, image_map, images
from .portable import Tensor, whole
from .problem import ITEM_BYTES, Conv2dProblem

_MOST_OFFSET = 255  # of a filter position, as the copy instruction holds it


class Hopper(Tensor):
    """wgmma.cuh; packs what `tensor` packs."""

    name = "hopper"
    persistent = True
    #: Of what the tile could reach: an estimate, since large dense products run short of power before they reach their rate.
    power = 0.8

    def refuses(self, direction: str, problem: Conv2dProblem, device: Device) -> str | None:
        if device.capability != (9, 0):
            return f"is made for compute capability 9.0, not {device.capability[0]}.{device.capability[1]}"
        return super().refuses(direction, problem, device) or _out_of_reach(direction, problem)

    def tiles(self, direction: str, problem: Conv2dProblem) -> Sequence[str]:
        return wgmma.TILES_OF[direction]

    def step(self, direction: str, problem: Conv2dProblem, tile: str) -> int:
        return wgmma.STEP_BYTES // ITEM_BYTES[problem.dtype]

    def resident(self, direction: str, problem: Conv2dProblem, tile: str) -> int:
        return wgmma.TILES[tile].blocks

    def rate(self, direction: str, problem: Conv2dProblem, tile: str, device: Device) -> float:
        return self.power * wgmma.TILES[tile].rate

    def given(self, direction: str, problem: Conv2dProblem) -> Conv2dProblem:
        """Whole blocks of channels: those summed over, and in wgrad those of x."""
        packed = super().given(direction, problem)
        channels = wgmma.depth_channels(direction, packed)
        whole = wgmma.padded_channels(problem.dtype, channels) * problem.groups
        return packed._replace(K=whole) if direction == "dgrad" else packed._replace(C=whole)

    def packed_filter(self, direction: str, problem: Conv2dProblem) -> int:
        """TF32's dgrad turns the filter, to (C, K, R, S)."""
        if direction != "dgrad" or problem.dtype != "float32":
            return super().packed_filter(direction, problem)
        K = problem.group_channels[1]
        return problem.C * whole(K, problem) * problem.R * problem.S * ITEM_BYTES[problem.dtype]


@lru_cache(maxsize=4096)
def _out_of_reach(direction: str, problem: Conv2dProblem) -> str | None:
    """Why the copy engine or wgmma cannot do it; None if they can.

    Drivers up to CUDA 13.1 describe tensors below 128 KiB wrongly for GPUs of compute capability 10.0, where this variant does
    not run; nothing of the kind is known of 9.0.
    """
    p = problem
    if p.dtype == "float32" and direction == "wgrad":
        return "wgmma takes TF32 with the depth contiguous only, and wgrad's are pixels"
    if direction == "dgrad" and prod(p.residues) > wgmma.MOST_RESIDUES:
        most = wgmma.MOST_RESIDUES
        return f"strides {p.stride} have {prod(p.residues)} residues, the kernel's parameters hold {most} maps"
    item = ITEM_BYTES[p.dtype]
    channels = wgmma.depth_channels(direction, p)
    if p.groups > 1 and direction != "wgrad" and channels * item % 32:
        return f"a group's {channels} channels are no multiple of {32 // item}: a block of them would reach into the next group"
    for vertical, horizontal in images(direction, p):
        if not (vertical.walked and horizontal.walked):
            continue
        if (offset := max((axis.taps - 1) * axis.step for axis in (vertical, horizontal))) > _MOST_OFFSET:
            return f"the filter reaches over {offset} pixels, the copy engine's offsets over {_MOST_OFFSET}"
        if reason := _map_refused(direction, p, (vertical, horizontal)):
            return f"the copy engine does not take the image: {reason}"
    return None


def _map_refused(direction: str, problem: Conv2dProblem, image: Image) -> str | None:
    """Of the map of an image that has been packed."""
    p, item = problem, ITEM_BYTES[problem.dtype]
    piece = 16 // item
    channels, H, W = (p.K, p.P, p.Q) if direction == "dgrad" else (p.C, p.H, p.W)
    packed = p.groups * -(-(channels // p.groups) // piece) * piece
    dense = (H * W * packed, 1, W * packed, packed)
    return image_map(
        p.dtype, (p.N, packed, H, W), dense, image, wgmma.span(direction, p.dtype, packed // p.groups) // item, 64
    ).refused()


HOPPER = Hopper()
