"""The table of recurrence: the kernels, their parameters, and the variants of each function, the preferred first."""

from __future__ import annotations

import ctypes
from typing import Any

from ...planning import Selector
from . import cluster, grid_exchange, single_block, single_step, step
from .cluster import CLUSTER
from .grid_exchange import GRID_EXCHANGE
from .parameters import RnnCellParameters, RnnParameters
from .single_block import SINGLE_BLOCK
from .single_step import SINGLE_STEP
from .step import STEP

KERNELS = (*step.KERNELS, *single_step.KERNELS, *single_block.KERNELS, *grid_exchange.KERNELS, *cluster.KERNELS)

#: Name of a kernel template -> the mirror of its parameters.
PARAMETERS: dict[str, type[ctypes.Structure]] = {
    row.name: RnnCellParameters if row in single_step.KERNELS else RnnParameters for row in KERNELS
}

#: The variants of a pass.
VARIANTS = (SINGLE_BLOCK, CLUSTER, GRID_EXCHANGE, STEP)

#: Function -> what selects its variant. Forcing a variant of "rnn" does not affect `rnn_cell`.
SELECTORS: dict[str, Selector[Any]] = {
    **{function: Selector("rnn", function, VARIANTS) for function in ("rnn_forward", "rnn_backward")},
    **{function: Selector("rnn_cell", function, (SINGLE_STEP,)) for function in ("rnn_cell_forward", "rnn_cell_backward")},
}
