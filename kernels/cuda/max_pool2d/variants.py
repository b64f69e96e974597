"""The table of max pooling: its kernels, the mirrors of their parameters, and the variants of each function in the order of
preference."""

from __future__ import annotations

import ctypes
import math

from ...planning import Selector
from ...table import Kernel
from .channels import Channels
from .gather import Gather, Indices
from .parameters import BackwardParameters, ForwardParameters, GatherParameters, IndicesParameters
from .plan import PoolingVariant
from .problem import Pool2dProblem
from .split import Split
from .staged import Staged
from .strided import Strided

SPLIT, CHANNELS, STAGED, STRIDED, GATHER, INDICES = Split(), Channels(), Staged(), Strided(), Gather(), Indices()

KERNELS: tuple[Kernel, ...] = tuple(
    row for variant in (CHANNELS, STAGED, STRIDED, SPLIT, GATHER, INDICES) for row in variant.kernels
)

#: Direction -> the mirror of its kernels' parameters.
DIRECTION_PARAMETERS: dict[str, type[ctypes.Structure]] = {
    "forward": ForwardParameters,
    "backward": BackwardParameters,
    "gather": GatherParameters,
    "indices": IndicesParameters,
}

#: Name of a template -> the mirror of its parameters.
PARAMETERS: dict[str, type[ctypes.Structure]] = {
    row.name: DIRECTION_PARAMETERS[row.name.removeprefix("max_pool2d_").partition("_")[0]] for row in KERNELS
}


def _selector(direction: str, *variants: PoolingVariant) -> Selector[Pool2dProblem]:
    """The predictions rest on counted instructions and have not been measured, so that they do not overrule the order: the first
    variant that takes a problem computes it, until a measurement names another."""
    return Selector("max_pool2d", f"max_pool2d_{direction}", variants, margin=math.inf)


#: Function -> what selects its variant. The last variant takes everything.
SELECTORS: dict[str, Selector[Pool2dProblem]] = {
    selector.function: selector
    for selector in (
        _selector("forward", SPLIT, CHANNELS, STAGED, STRIDED),
        _selector("backward", CHANNELS, STAGED, STRIDED),
        _selector("gather", GATHER),
        _selector("indices", INDICES),
    )
}
