"""The table of convolution: the kernels, their parameters, and the variants of each function, the preferred first."""

from __future__ import annotations

import ctypes

from ...planning import Selector
from . import im2col, mma, pack_channels, parameters, simt, split_k, wgmma
from .cost import Conv2dVariant
from .im2col import IM2COL
from .mma import MMA
from .problem import DIRECTIONS, Conv2dProblem
from .simt import SIMT
from .wgmma import WGMMA

KERNELS = (
    *simt.KERNELS,
    *mma.KERNELS,
    *wgmma.KERNELS,
    *pack_channels.KERNELS,
    *split_k.KERNELS,
    *im2col.KERNELS,
)

#: Name of a kernel template -> the mirror of its parameters.
PARAMETERS: dict[str, type[ctypes.Structure]] = {
    "conv2d_fprop_simt_kernel": parameters.Conv2dFpropParameters,
    "conv2d_dgrad_simt_kernel": parameters.Conv2dDgradParameters,
    "conv2d_wgrad_simt_kernel": parameters.Conv2dWgradParameters,
    "conv2d_fprop_mma_kernel": parameters.Conv2dFpropParameters,
    "conv2d_dgrad_mma_kernel": parameters.Conv2dDgradParameters,
    "conv2d_wgrad_mma_kernel": parameters.Conv2dWgradParameters,
    "conv2d_fprop_wgmma_kernel": parameters.Conv2dFpropWgmmaParameters,
    "conv2d_dgrad_wgmma_kernel": parameters.Conv2dDgradWgmmaParameters,
    "conv2d_wgrad_wgmma_kernel": parameters.Conv2dWgradWgmmaParameters,
    "pack_channels_kernel": parameters.PackChannelsParameters,
    "conv2d_sum_splits_kernel": parameters.Conv2dSumSplitsParameters,
    "conv2d_sum_image_splits_kernel": parameters.Conv2dSumImageSplitsParameters,
    "im2col_kernel": parameters.Im2colParameters,
    "col2im_kernel": parameters.Col2imParameters,
}

VARIANTS: tuple[Conv2dVariant, ...] = (WGMMA, MMA, SIMT, IM2COL)
#: `Selector.margin` of each direction. It is above 1 because the order of preference is a prediction, too, which a small
#: predicted gain should not overrule.
MARGIN = 1.25
#: Name of a function -> the selector of its variants.
SELECTORS: dict[str, Selector[Conv2dProblem]] = {
    f"conv2d_{direction}": Selector("conv2d", f"conv2d_{direction}", VARIANTS, margin=MARGIN) for direction in DIRECTIONS
}
