"""Predicts how long the variants of max pooling take, from bytes, instructions and how much of the GPU is busy.

None of the predictions has been compared with a measurement yet.
"""

from __future__ import annotations

from typing import NamedTuple

from ...hardware import LAUNCH_SECONDS, Device, rates
from ...planning import Prediction
from .problem import PIECE_BYTES, STRIP, Pool2dProblem

#: Threads that keep a multiprocessor busy, half of its 2,048. They are 8 warps for each of its 4 schedulers, enough to cover the
#: 4 to 8 clocks from an instruction to one that needs its result.
BUSY = 1024
#: Clocks from a load of device memory to its result: an assumption. A multiprocessor uses its whole share of the bandwidth only
#: while the bytes of this many clocks are in flight: 560 clocks * 20 bytes = 11 KiB on an H200, and 16 KiB on a B200, which is
#: one 16-byte load of each of `BUSY` threads.
LATENCY_CLOCKS = 560
#: Threads of a multiprocessor that execute an instruction in one clock: a warp for each of the 4 schedulers.
ISSUE = 128
SECTOR_BYTES = 32  # the unit in which device memory is read

# Instructions, counted by hand from the source.
CELL = 5  # to compare a cell: widening, the two comparisons of `wins`, the selections of value and offset
LOAD = 4  # to load a cell: the test that it lies in the plane, two for the 64-bit address, the load
STORE = 3  # to store: two for the 64-bit address, the store
SUM = 2  # to add a window's gradient: the comparison of its offset, the addition
DIVIDE = 40  # to divide by a 64-bit number, for which the GPU has no instruction; the remainder comes with the quotient
DIVIDE_32 = 15  # to divide by a 32-bit number
COPY = 6  # to move 16 bytes into or out of shared memory: two for the loop, two addresses, a load and a store


class Cost(NamedTuple):
    """What a launch moves and executes on the whole device."""

    bytes: float  # through device memory
    instructions: float  # summed over all threads
    loads: float  # in flight at once, as if all threads were resident; each is taken to bring 16 bytes
    threads: float  # of the whole launch
    in_turn: bool = False  # whether a multiprocessor has too few warps for some to execute while others load


def predict(cost: Cost, device: Device) -> Prediction:
    """Predicts the time of a launch and the share of the memory bandwidth that it uses.

    Memory accesses and execution overlap unless `cost.in_turn` is set. So the time is `LAUNCH_SECONDS` plus the longer of the
    two, or plus both if they do not overlap.
    """
    rate = rates(device)
    clocks = device.multiprocessors * rate.clock_hz  # of all multiprocessors, per second
    loads = device.multiprocessors * rate.memory * LATENCY_CLOCKS / PIECE_BYTES  # needed in flight to saturate the bandwidth
    full_rate = cost.bytes / (clocks * rate.memory)
    memory = full_rate / min(1.0, cost.loads / loads)
    execution = cost.instructions / (clocks * ISSUE * min(1.0, cost.threads / (device.multiprocessors * BUSY)))
    work = memory + execution if cost.in_turn else max(memory, execution)
    bounds = {"bytes": memory, "instructions": execution, "launches": LAUNCH_SECONDS}
    seconds = LAUNCH_SECONDS + work
    return Prediction(
        seconds=seconds,
        bound=max(bounds, key=bounds.__getitem__),
        share=full_rate / seconds,
        share_of="the memory bandwidth",
    )


def touched_x_bytes(problem: Pool2dProblem) -> int:
    """An upper bound on the bytes of x that windows cover."""
    R, S = problem.window
    return problem.N * problem.C * min(problem.H, problem.P * R) * min(problem.W, problem.Q * S) * problem.item_bytes


def sector_waste(problem: Pool2dProblem) -> int:
    """How many bytes of device memory are read for each byte of x that is used, because memory is read in whole sectors.

    If neighbours in x are two elements apart, half of each sector is wasted; at worst, only one element of a sector is used.
    """
    stride = problem.x_strides[1 if problem.channels_last else 3]
    return min(max(stride, 1), SECTOR_BYTES // problem.item_bytes)


def choice_bytes(problem: Pool2dProblem) -> int:
    """Bytes of y, or dy, and of the offsets if there are any."""
    return problem.outputs * (problem.item_bytes + problem.offset_bytes * problem.with_offsets)


def forward_instructions(problem: Pool2dProblem, V: int, any_window: bool) -> float:
    """Instructions of `walk_windows` for each output, with loads of V elements.

    `any_window` selects the overload for `AnyWindow`.
    """
    R, S = problem.window
    if any_window:  # two divisions find the first cell inside the plane
        return R * S * (CELL + LOAD / V) + (2 * DIVIDE + STORE) / V
    rows = ((STRIP - 1) * problem.stride[0] + R) / STRIP  # input rows for each output of a strip
    return rows * S * (CELL + LOAD / V) + R * CELL + STORE / V


def backward_instructions(problem: Pool2dProblem, V: int, any_window: bool) -> float:
    """Instructions of `walk_pixels` for each pixel, with loads of V elements.

    `any_window` selects the overload for `AnyWindow`.
    """
    (R, S), stride, dilation = problem.window, problem.stride, problem.dilation
    if any_window:  # four divisions find the windows that cover the pixel, and two its cell in each
        rows, columns = ((taps - 1) * d // s + 1 for taps, s, d in zip((R, S), stride, dilation, strict=True))
        covering = rows * columns
        loaded = covering / (dilation[0] * dilation[1])  # the cells of the other windows miss the pixel
        return (4 * DIVIDE + covering * 2 * DIVIDE + loaded * 2 * LOAD + STORE) / V + loaded * SUM
    reach, reach_left = (R - 1) // stride[0], (S - 1) // stride[1]
    window_rows = (STRIP + reach) / STRIP  # rows of windows that are read for each pixel block
    block = window_rows * ((reach_left + 1) * 2 * LOAD / V + R * S * SUM)
    return block / (stride[0] * stride[1]) + STORE / V
