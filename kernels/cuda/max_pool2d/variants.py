"""The table of max pooling: the kernels, their parameters, and the variants of each function, the preferred first."""

from __future__ import annotations

import ctypes
import math

from ...planning import Selector
from . import channels, gather, split, staged, strided
from .channels import CHANNELS
from .gather import GATHER, INDICES
from .parameters import (
    MaxPool2dBackwardParameters,
    MaxPool2dForwardParameters,
    MaxPool2dGatherParameters,
    MaxPool2dIndicesParameters,
)
from .plan import PoolingVariant
from .problem import Pool2dProblem
from .split import SPLIT
from .staged import STAGED
from .strided import STRIDED

KERNELS = (*channels.KERNELS, *staged.KERNELS, *strided.KERNELS, *split.KERNELS, *gather.KERNELS)

#: Direction -> the mirror of its kernels' parameters.
DIRECTION_PARAMETERS: dict[str, type[ctypes.Structure]] = {
    "forward": MaxPool2dForwardParameters,
    "backward": MaxPool2dBackwardParameters,
    "gather": MaxPool2dGatherParameters,
    "indices": MaxPool2dIndicesParameters,
}

#: Name of a kernel template -> the mirror of its parameters.
PARAMETERS: dict[str, type[ctypes.Structure]] = {
    row.name: DIRECTION_PARAMETERS[row.name.removeprefix("max_pool2d_").partition("_")[0]] for row in KERNELS
}


def _selector(direction: str, *variants: PoolingVariant) -> Selector[Pool2dProblem]:
    """Returns the selector of a function. Its margin is infinite, because the predictions rest on counted instructions that have
    not been measured: the first variant that takes a problem computes it, until a measurement names another."""
    return Selector("max_pool2d", f"max_pool2d_{direction}", variants, margin=math.inf)


#: Function -> what selects its variant. The last variant of each accepts every problem.
SELECTORS: dict[str, Selector[Pool2dProblem]] = {
    selector.function: selector
    for selector in (
        _selector("forward", SPLIT, CHANNELS, STAGED, STRIDED),
        _selector("backward", CHANNELS, STAGED, STRIDED),
        _selector("gather", GATHER),
        _selector("indices", INDICES),
    )
}
