"""How long a configuration of convolution is predicted to take.

The predictions of all variants are compared where nothing was measured. Only the ratios of the times matter for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ...arithmetic import ceil_divide
from ...dtypes import ITEM_BYTES, accumulator_bytes
from ...hardware import LAUNCH_SECONDS, Device, rates
from ...planning import Configuration, Prediction, Variant
from .problem import Conv2dProblem, Product
from .split_k import split_evenly
from .tile import Tile

#: Clocks that a block spends before its first product and after its last one, unless another block of the multiprocessor fills
#: the time. An estimate: three memory latencies and the stores.
BLOCK_CLOCKS = 3000
#: How much slower a multiprocessor is if it has fewer blocks than it could hold, because less runs while one of them waits: a
#: tile's rate is multiplied by 1 - IDLE_LOSS · (blocks that are missing / blocks that it could hold). An estimate.
IDLE_LOSS = 0.5
#: Bytes per clock that one multiprocessor can fetch, even if the others are idle: an estimate, half the width of its path to L2.
MOST_BYTES_PER_CLOCK = 32
#: Several splits of fprop or dgrad must be predicted to be this many times as fast as one, because they cost the host another
#: launch and an allocation.
SPLIT_MARGIN = 1.1


class Passes(NamedTuple):
    """What a variant does besides the product and the sum of its splits: packing, im2col."""

    moved_bytes: int = 0  # read and written
    launches: int = 0
    workspace_bytes: int = 0
    chunks: int = 1  # of the batch, each of which is a product of its own


def peak(problem: Conv2dProblem, device: Device) -> int:
    """Returns the FLOP per clock of a multiprocessor for products of the problem's dtype and precision."""
    hardware = rates(device)
    if problem.dtype == "float32":
        return hardware.tf32 if problem.precision == "tf32" else hardware.fp32
    return hardware.fp64 if problem.dtype == "float64" else hardware.half


def share(problem: Conv2dProblem, device: Device, seconds: float) -> float:
    """Returns the share of the device's dense rate that a call reaches if it takes `seconds`."""
    return problem.flops / (seconds * device.multiprocessors * rates(device).clock_hz * peak(problem, device))


def count_tiles(product: Product, tile: Tile) -> int:
    """Returns how many tiles the results of all parts of a product have together."""
    return ceil_divide(product.rows, tile.rows) * ceil_divide(product.columns, tile.columns) * product.parts


def split_bytes(problem: Conv2dProblem) -> int:
    """Returns the bytes that the sums of one split take."""
    return problem.elements[problem.direction] * accumulator_bytes(problem.dtype)


class Conv2dVariant(Variant[Conv2dProblem]):
    """A variant of convolution, whose cost the model below predicts.

    Derived classes say which tiles there are, which share of the dense rate each reaches, and what else a call launches.
    """

    #: Whether the blocks of wgrad can write dw, if there is one split and one chunk.
    writes_dw = True
    #: Whether a block computes several tiles in turn, and fetches the operands of the next tile while it stores a tile's results.
    persistent = False

    def tile_table(self, problem: Conv2dProblem) -> Mapping[str, Tile]:
        """Returns the tiles for a problem by name, the preferred first."""
        raise NotImplementedError

    def rate(self, problem: Conv2dProblem, tile: Tile, device: Device) -> float:
        """Returns the share of `peak` that a tile reaches while a block multiplies."""
        raise NotImplementedError

    def product_problem(self, problem: Conv2dProblem) -> Conv2dProblem:
        """Returns the problem that the kernel computes: `problem`, possibly padded, or a 1x1 convolution of the columns."""
        return problem

    def passes(self, problem: Conv2dProblem) -> Passes:
        """Returns what a call does besides the product and the sum of its splits."""
        return Passes(chunks=ceil_divide(problem.N, problem.images_per_launch(0)))

    # ---- methods of `Variant` --------------------------------------------------------------------------------------------

    def tiles(self, problem: Conv2dProblem, device: Device) -> Sequence[str]:
        """Returns the names of the tiles, the preferred first."""
        return tuple(self.tile_table(problem))

    def most_splits(self, problem: Conv2dProblem, tile: str, device: Device) -> int:
        """Returns the most splits for which the depth has steps and half of the workspace has room, at least 1."""
        computed = self.product_problem(problem)
        room = problem.workspace_limit // 2 // split_bytes(computed)
        return max(1, min(self._steps(computed, self.tile_table(problem)[tile]), room))

    def splits(self, problem: Conv2dProblem, tile: str, device: Device) -> Sequence[int]:
        """Returns 1 and, for each number of waves that is considered, the most splits with which all blocks fit into the waves.

        A wave is one block on each multiprocessor. Up to four waves are considered in wgrad, up to two in the other directions.
        A split, except the last one, keeps at least 16 steps in wgrad and 4 in the other directions.
        """
        computed, shape = self.product_problem(problem), self.tile_table(problem)[tile]
        steps, is_wgrad = self._steps(computed, shape), problem.direction == "wgrad"
        most = min(self.most_splits(problem, tile, device), steps // (16 if is_wgrad else 4))
        numbers = {1}
        for waves in (1, 2, 3, 4) if is_wgrad else (1, 2):
            wanted = min(most, waves * device.multiprocessors // count_tiles(computed.product, shape))
            if wanted > 1:
                numbers.add(split_evenly(steps, 1, wanted)[1])
        return sorted(numbers)

    @staticmethod
    def _steps(computed: Conv2dProblem, tile: Tile) -> int:
        return ceil_divide(computed.depth, tile.step(computed.dtype))

    def handicap(self, problem: Conv2dProblem, configuration: Configuration) -> float:
        """Returns SPLIT_MARGIN for several splits of fprop or dgrad, else 1."""
        return SPLIT_MARGIN if configuration.splits > 1 and problem.direction != "wgrad" else 1.0

    def workspace_bytes(self, problem: Conv2dProblem, splits: int) -> int:
        """Returns the bytes that a call allocates besides its inputs and outputs, and besides the sums of a bias gradient."""
        passes = self.passes(problem)
        writes_sums = splits > 1 or (problem.direction == "wgrad" and (passes.chunks > 1 or not self.writes_dw))
        return passes.workspace_bytes + (splits * split_bytes(self.product_problem(problem)) if writes_sums else 0)

    def predict(self, problem: Conv2dProblem, configuration: Configuration, device: Device) -> Prediction:
        """Predicts the time of a call.

        It is the sum of
        - LAUNCH_SECONDS for each kernel;
        - the product's time, or, if that is longer, the time in which operands and results go once through device memory
          (if the product stores sums of splits, these count in place of the results);
        - the time of the passes before and after the product: packing or im2col, and adding the sums of the splits, which
          wgrad is taken to do for one split, too.
        """
        computed, passes, hardware = self.product_problem(problem), self.passes(problem), rates(device)
        direction, item = problem.direction, ITEM_BYTES[problem.dtype]
        blocks = count_tiles(computed.product, self.tile_table(problem)[configuration.tile]) * configuration.splits
        is_summed = configuration.splits > 1 or direction == "wgrad"
        sum_bytes = configuration.splits * split_bytes(computed) if is_summed else 0
        product_seconds = self._product_clocks(problem, configuration, blocks, device) / hardware.clock_hz

        operand_bytes = (sum(computed.elements.values()) - computed.elements[direction]) * item
        written_bytes = sum_bytes or computed.elements[direction] * item
        bandwidth = hardware.memory * device.multiprocessors
        reached = min(bandwidth, MOST_BYTES_PER_CLOCK * min(blocks, device.multiprocessors))
        memory_seconds = (operand_bytes + written_bytes) / (reached * hardware.clock_hz)
        pass_bytes = passes.moved_bytes + (sum_bytes + problem.elements[direction] * item if is_summed else 0)
        pass_seconds = pass_bytes / (bandwidth * hardware.clock_hz)

        launch_seconds = (1 + passes.launches + is_summed) * LAUNCH_SECONDS
        seconds = launch_seconds + max(product_seconds, memory_seconds) + pass_seconds
        parts = {
            "products": product_seconds,
            "bytes": pass_seconds if product_seconds > memory_seconds else memory_seconds + pass_seconds,
            "launches": launch_seconds,
        }
        return Prediction(
            seconds=seconds,
            bound=max(parts, key=lambda part: parts[part]),
            share=share(problem, device, seconds),
            workspace_bytes=self.workspace_bytes(problem, configuration.splits),
        )

    def _product_clocks(self, problem: Conv2dProblem, configuration: Configuration, blocks: int, device: Device) -> float:
        """Predicts the clocks of the multiprocessor that has the most blocks.

        Every block counts as a full tile at the variant's rate, even if the tile reaches beyond the result. BLOCK_CLOCKS are
        added once for every set of blocks that are resident together; a persistent kernel has one such set.
        """
        tile, depth = self.tile_table(problem)[configuration.tile], self.product_problem(problem).product.depth
        most_blocks = ceil_divide(blocks, device.multiprocessors)
        occupied = min(most_blocks / tile.blocks, 1)
        rate = peak(problem, device) * self.rate(problem, tile, device) * (1 - IDLE_LOSS * (1 - occupied))
        depth_per_block = max(depth / configuration.splits, min(depth, tile.step(problem.dtype)))
        turns = 1 if self.persistent else ceil_divide(most_blocks, tile.blocks)
        return most_blocks * 2 * tile.rows * tile.columns * depth_per_block / rate + turns * BLOCK_CLOCKS
