"""What a choice is, what a variant of the kernels has to tell of itself, and how long a choice is predicted to take.

A variant is one object of a class derived from `Variant`, entered in `choice.VARIANTS`. The model below ranks the choices of all
variants where nothing was measured; only the ratios of its times matter for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from ...hardware import LAUNCH_SECONDS, Device, rates
from . import variants
from .problem import ITEM_BYTES, Conv2dProblem, sum_bytes


class Choice(NamedTuple):
    """How one direction of a convolution is computed."""

    variant: str
    tile: str  # of the result per block, rows x columns, e.g. "128x128"
    splits: int  # of the product's depth

    def __str__(self) -> str:
        return f"{self.variant} {self.tile}" + (f", {self.splits} splits" if self.splits > 1 else "")


class Prediction(NamedTuple):
    """What a choice is expected to take. Where `measured`, the seconds come from the table of measurements."""

    seconds: float
    bound: str  # "products", "bytes" or "launches": what takes most of it; predicted in either case
    share: float  # of the device's dense rate of products in this dtype and precision, 0 to 1
    workspace_bytes: int
    measured: bool = False


class Product(NamedTuple):
    """The matrix products of a direction: so many parts, each rows x depth times depth x columns."""

    rows: int
    columns: int
    depth: float  # of a part, on average
    parts: int  # groups, and in dgrad residues modulo the stride


class Passes(NamedTuple):
    """What a variant does beside the product and the sum of its splits: packing, im2col."""

    moved_bytes: int = 0  # read and written
    launches: int = 0
    workspace_bytes: int = 0


# ---- what the model knows of devices: everything here is predicted -------------------------------------------------------


#: Of a block before its first product and after its last one, unless another block of the multiprocessor fills the time: an
#: estimate of three latencies of memory and the stores.
BLOCK_CLOCKS = 3000
#: Share of a tile's rate that a multiprocessor loses where it has none of the blocks that it could hold, and in proportion where
#: it has some, because nothing relieves them while they wait: an estimate.
LOST = 0.5
#: Bytes per clock that one multiprocessor can fetch, however idle the others are: half of what its path to L2 is said to carry.
MOST_BYTES_PER_CLOCK = 32


def peak(problem: Conv2dProblem, device: Device) -> int:
    """FLOP per clock of a multiprocessor for products of the problem's dtype and precision."""
    of = rates(device)
    if problem.dtype == "float32":
        return of.tf32 if problem.precision == "tf32" else of.fp32
    return of.fp64 if problem.dtype == "float64" else of.half


# ---- variants ------------------------------------------------------------------------------------------------------------


class Variant:
    """A way to compute convolution: what choosing needs to know of it.

    A tile is named by its rows and columns, "128x128". `splits` is how many blocks share the depth of one tile.
    """

    name: str
    #: Whether blocks stay for many tiles, and start the next one's products while the last one's results are stored.
    persistent = False
    #: Whether the model ranks it only where no other variant takes the problem.
    last_resort = False

    def resident(self, direction: str, problem: Conv2dProblem, tile: str) -> int:
        """Blocks that a multiprocessor holds at once."""
        raise NotImplementedError

    def refuses(self, direction: str, problem: Conv2dProblem, device: Device) -> str | None:
        """Why it does not take a problem; None if it does."""
        raise NotImplementedError

    def tiles(self, direction: str, problem: Conv2dProblem) -> Sequence[str]:
        """The tiles that it has for a problem, the largest first."""
        raise NotImplementedError

    def step(self, direction: str, problem: Conv2dProblem, tile: str) -> int:
        """Depth that a block multiplies at a time; a split is a multiple of it."""
        raise NotImplementedError

    def rate(self, direction: str, problem: Conv2dProblem, tile: str, device: Device) -> float:
        """Share of `peak` that a tile reaches while its products last."""
        raise NotImplementedError

    def passes(self, direction: str, problem: Conv2dProblem) -> Passes:
        """What it does beside the product and the sum of its splits."""
        return Passes()

    def given(self, direction: str, problem: Conv2dProblem) -> Conv2dProblem:
        """The problem that its product computes: with the channels it pads, or on columns."""
        return problem

    def most_splits(self, direction: str, problem: Conv2dProblem, tile: str) -> int:
        """What the depth has steps for, and half of the workspace room; at least 1."""
        given = self.given(direction, problem)
        steps = -(-depth(direction, given) // self.step(direction, problem, tile))
        return max(1, min(steps, variants.workspace_limit // 2 // bytes_of_sums(direction, given)))

    def splits(self, direction: str, problem: Conv2dProblem, tile: str, device: Device) -> Sequence[int]:
        """The numbers of splits worth considering: one; and what fills whole waves of multiprocessors while a split keeps
        several steps, 16 in wgrad, whose sums are written anyway, 4 elsewhere."""
        given = self.given(direction, problem)
        steps = -(-depth(direction, given) // self.step(direction, problem, tile))
        most = min(self.most_splits(direction, problem, tile), steps // (16 if direction == "wgrad" else 4))
        found = {1}
        for waves in (1, 2, 3, 4) if direction == "wgrad" else (1, 2):
            wanted = min(most, waves * device.multiprocessors // tiles(product(direction, given), tile))
            if wanted > 1:
                found.add(variants.split_evenly(steps, 1, wanted)[1])
        return sorted(found)

    def workspace_bytes(self, direction: str, problem: Conv2dProblem, tile: str, splits: int) -> int:
        """What a call allocates beside its inputs and outputs."""
        sums = splits if splits > 1 or direction == "wgrad" else 0
        return self.passes(direction, problem).workspace_bytes + sums * bytes_of_sums(direction, self.given(direction, problem))


# ---- counting ------------------------------------------------------------------------------------------------------------


def product(direction: str, problem: Conv2dProblem) -> Product:
    """The products of a direction."""
    C, K = problem.group_channels
    if direction == "fprop":
        return Product(problem.N * problem.P * problem.Q, K, problem.taps, problem.groups)
    if direction == "wgrad":
        return Product(K, problem.taps, problem.N * problem.P * problem.Q, problem.groups)
    stride_h, stride_w = problem.stride
    residues = prod(problem.residues)
    rows = problem.N * -(-problem.H // stride_h) * -(-problem.W // stride_w)
    return Product(rows, C, K * problem.R * problem.S / residues, problem.groups * residues)


def depth(direction: str, problem: Conv2dProblem) -> int:
    """Of the part whose depth is the longest."""
    if direction == "wgrad":
        return problem.N * problem.P * problem.Q
    return problem.taps if direction == "fprop" else problem.dgrad_taps


def elements(problem: Conv2dProblem) -> dict[str, int]:
    """Of each direction's result."""
    return {
        "fprop": problem.N * problem.K * problem.P * problem.Q,
        "dgrad": problem.N * problem.C * problem.H * problem.W,
        "wgrad": problem.K * problem.taps,
    }


def bytes_of_sums(direction: str, problem: Conv2dProblem) -> int:
    """Of one split."""
    return elements(problem)[direction] * sum_bytes(problem.dtype)


def extents(tile: str) -> tuple[int, int]:
    """Rows and columns."""
    rows, _, columns = tile.partition("x")
    return int(rows), int(columns)


def tiles(of: Product, tile: str) -> int:
    """How many tiles the products have."""
    rows, columns = extents(tile)
    return -(-of.rows // rows) * -(-of.columns // columns) * of.parts


def flops(problem: Conv2dProblem) -> int:
    """A multiply-add counts as two, and so do taps on the padding, as everyone counts them."""
    return 2 * problem.N * problem.K * problem.P * problem.Q * problem.taps


def share(problem: Conv2dProblem, device: Device, seconds: float) -> float:
    """Of the device's rate of products."""
    return flops(problem) / (seconds * device.multiprocessors * rates(device).clock_hz * peak(problem, device))


def predict(variant: Variant, choice: Choice, direction: str, problem: Conv2dProblem, device: Device) -> Prediction:
    """How long a choice should take: the sum of

    - LAUNCH_SECONDS for each kernel;
    - the product: as many tiles as the busiest multiprocessor has, each all of its rows, columns and depth at the variant's rate,
      and BLOCK_CLOCKS for each turn of resident blocks; or, if that is longer, operands and results (sums, where there are
      several splits) once through device memory;
    - bytes of the passes before and after: packing, and the sums of splits, written by the product, read by the sum.
    """
    given, passes, hardware = variant.given(direction, problem), variant.passes(direction, problem), rates(device)
    of = product(direction, given)
    rows, columns = extents(choice.tile)
    blocks = tiles(of, choice.tile) * choice.splits
    busiest = -(-blocks // device.multiprocessors)
    resident = variant.resident(direction, problem, choice.tile)
    relieved = 1 - LOST * (1 - min(busiest / resident, 1))
    rate = peak(problem, device) * variant.rate(direction, problem, choice.tile, device) * relieved
    turns = 1 if variant.persistent else -(-busiest // resident)
    step = variant.step(direction, problem, choice.tile)
    each = max(of.depth / choice.splits, min(of.depth, step))
    products = (busiest * 2 * rows * columns * each / rate + turns * BLOCK_CLOCKS) / hardware.clock_hz

    item, counts = ITEM_BYTES[problem.dtype], elements(given)
    result = elements(problem)[direction] * item
    summed = choice.splits > 1 or direction == "wgrad"
    sums = choice.splits * bytes_of_sums(direction, given) if summed else 0
    operands = (sum(counts.values()) - counts[direction]) * item
    fetched = min(hardware.memory * device.multiprocessors, MOST_BYTES_PER_CLOCK * min(blocks, device.multiprocessors))
    moved = (operands + (sums or counts[direction] * item)) / (fetched * hardware.clock_hz)
    bandwidth = hardware.memory * device.multiprocessors * hardware.clock_hz
    beside = (passes.moved_bytes + (sums + result if summed else 0)) / bandwidth

    launches = (1 + passes.launches + summed) * LAUNCH_SECONDS
    seconds = launches + max(products, moved) + beside
    parts = {"products": products, "bytes": beside if products > moved else moved + beside, "launches": launches}
    workspace = variant.workspace_bytes(direction, problem, choice.tile, choice.splits)
    return Prediction(seconds, max(parts, key=lambda part: parts[part]), share(problem, device, seconds), workspace)
