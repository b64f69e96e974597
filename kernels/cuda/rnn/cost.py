"""How long a step of a recurrent pass is predicted to take, in clocks of a multiprocessor.

The constants are computed by hand or taken from published figures for sm_90; this project has measured none of them yet. Only the
ratios of predictions matter for the selection.
"""

from __future__ import annotations

from typing import NamedTuple

from ...hardware import Device, rates
from ...planning import Prediction
from .problem import Recurrence

#: Clocks for which one scheduler is busy with an instruction. For "float", 64 multiply-adds count as one instruction.
_MMA_CLOCKS = {"half": 6.5, "bfloat16": 6.5, "tfloat32": 6.5, "float": 64, "double": 16}
_MMA_PER_CHUNK = {"half": 2, "bfloat16": 2, "tfloat32": 2, "float": 1, "double": 4}  # instructions for a chunk of a row tile
SCHEDULERS = 4
SHARED_BYTES_PER_CLOCK = 128
L2_BYTES_PER_CLOCK = 24  # of one multiprocessor while all of them read
POINTWISE_CLOCKS = 150  # sums, nonlinearity, stores and one barrier
LAUNCH_CLOCKS = 4500  # 2.5 µs


class StepClocks(NamedTuple):
    """Clocks that a step takes, and what takes most of them."""

    clocks: float
    bound: str


def product_clocks(problem: Recurrence, row_tiles: float, chunks: float) -> float:
    """Returns the clocks in which a scheduler multiplies `row_tiles` row tiles by a column tile, over `chunks` chunks of K."""
    return row_tiles * chunks * _MMA_PER_CHUNK[problem.math] * _MMA_CLOCKS[problem.math]


def pass_prediction(problem: Recurrence, step: StepClocks, device: Device) -> Prediction:
    """Returns the prediction for a pass in which each product, with the rest of its step, takes `step.clocks`."""
    seconds = step.clocks * problem.products / rates(device).clock_hz
    return Prediction(seconds=seconds, bound=step.bound, share=problem.flop / seconds / dense_rate(problem.math, device))


def dense_rate(math: str, device: Device) -> float:
    """Returns the FLOP per second of all multiprocessors in an arithmetic, one of `MATHS` in tile.py."""
    rate = rates(device)
    per_clock = {"tfloat32": rate.tf32, "float": rate.fp32, "double": rate.fp64}.get(math, rate.half)
    return per_clock * rate.clock_hz * device.multiprocessors
