"""The table of recurrence: its kernels, what they take, and what selects them."""

from __future__ import annotations

import ctypes
from typing import Any

from ...planning import Selector
from . import cluster, grid_exchange, single_block, single_step, step
from .cluster import Cluster
from .grid_exchange import GridExchange
from .parameters import RnnCellParameters, RnnParameters
from .single_block import SingleBlock
from .single_step import SingleStep
from .step import Step

KERNELS = (*step.KERNELS, *single_step.KERNELS, *single_block.KERNELS, *grid_exchange.KERNELS, *cluster.KERNELS)

#: Name of a template -> the mirror of its parameters.
PARAMETERS: dict[str, type[ctypes.Structure]] = {
    row.name: RnnCellParameters if row in single_step.KERNELS else RnnParameters for row in KERNELS
}

SINGLE_BLOCK, CLUSTER, GRID_EXCHANGE, STEP = SingleBlock(), Cluster(), GridExchange(), Step()
SINGLE_STEP = SingleStep()
_PASS = (SINGLE_BLOCK, CLUSTER, GRID_EXCHANGE, STEP)

#: Function of the engines -> what selects its variant. Forcing "rnn" leaves `rnn_cell` alone.
SELECTORS: dict[str, Selector[Any]] = {
    **{function: Selector("rnn", function, _PASS) for function in ("rnn_forward", "rnn_backward")},
    **{function: Selector("rnn_cell", function, (SINGLE_STEP,)) for function in ("rnn_cell_forward", "rnn_cell_backward")},
}
