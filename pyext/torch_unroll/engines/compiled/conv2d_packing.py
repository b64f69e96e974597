"""Packs tensors for the variants that copy pieces of 16 bytes."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from torch_unroll.engines.compiled import Launcher
from torch_unroll.engines.compiled.conv2d_call import four
from torch_unroll.engines.compiled.conv2d_workspace import allocate_workspace
from torch_unroll.kernels.cuda.conv2d.access import whole_pieces
from torch_unroll.kernels.cuda.conv2d.pack_channels import padded, piece, plan_pack_channels
from torch_unroll.kernels.cuda.conv2d.parameters import PackChannelsParameters
from torch_unroll.shapes import dtype_name


def padded_channels(channels: int, tensor: Tensor) -> int:
    """Returns the channels of a group once they are padded to pieces of 16 bytes."""
    return padded(channels, dtype_name(tensor.dtype))


def is_packed(tensor: Tensor, groups: int) -> bool:
    """Whether a tensor can be used without a packed copy: its channels are contiguous, and those of each group fill whole,
    aligned pieces of 16 bytes."""
    aligned = tensor.data_ptr() % 16 == 0
    return whole_pieces(four(tensor.stride()), four(tensor.shape), aligned, groups, piece(dtype_name(tensor.dtype)))


def packed_bytes(groups: int, *tensors: Tensor) -> int:
    """Returns the bytes of the packed copies of one image of each tensor; tensors that are packed already need none."""
    return sum(
        groups * padded_channels(tensor.shape[1] // groups, tensor) * tensor[0, 0].numel() * tensor.element_size()
        for tensor in tensors
        if not is_packed(tensor, groups)
    )


def pack_channels(
    launcher: Launcher, tensor: Tensor, groups: int, images: int | None = None, padded_images: int | None = None
) -> Tensor:
    """Returns a copy of a tensor (N, groups · channels, H, W) with channels innermost in memory. The channels of each group are
    padded with zeros to whole pieces of 16 bytes.

    Args:
        images, padded_images: each run of `images` along dimension 0 is padded to `padded_images`, for the outputs of each group
            of a filter; by default, dimension 0 is not padded.

    Returns:
        The copy, or the tensor itself if it is packed already.
    """
    N, C, H, W = tensor.shape
    images, padded_images = images or N, padded_images or N
    if images == padded_images and is_packed(tensor, groups):
        return tensor
    N, channels = N // images * padded_images, padded_channels(C // groups, tensor)
    packed = allocate_workspace((N, groups * channels, H, W), tensor, memory_format=torch.channels_last)
    struct = PackChannelsParameters(
        **{"from": tensor.data_ptr()},  # `from` is a keyword of Python
        to=packed.data_ptr(),
        stride=(ctypes.c_int64 * 4)(*tensor.stride()),
        channels=C // groups,
        padded=channels,
        images=images,
        padded_images=padded_images,
        H=H,
        W=W,
        groups=groups,
        pixels_first=abs(tensor.stride(3)) < tensor.stride(1),
    )
    launcher.launch(plan_pack_channels(dtype_name(tensor.dtype), N, H * W, channels, groups), struct, tensor.device)
    return packed
