"""The variant step (step.cuh): one launch for each step, which reads W again."""

from __future__ import annotations

import math
from functools import lru_cache

from ...arithmetic import ceil_divide
from ...hardware import Device
from ...planning import Configuration, Prediction, Variant
from ...table import LaunchConfig, LaunchPlan, instantiate
from . import block_product
from .cost import L2_BYTES_PER_CLOCK, LAUNCH_CLOCKS, StepClocks, pass_prediction
from .problem import PASSES, Recurrence
from .tile import MATHS, TILE_ROWS

_COLUMN_TILES = tuple(map(str, block_product.COLUMN_TILES.values()))
KERNELS = tuple(instantiate("rnn/step.cuh", "rnn_step_kernel", MATHS, PASSES, _COLUMN_TILES))
_BY_ARGUMENTS = {row.arguments: row for row in KERNELS}


class Step(Variant[Recurrence]):
    """Accepts every pass whose batch fits into a grid."""

    name = "step"

    def refuses(self, problem: Recurrence, device: Device) -> str | None:
        return block_product.batch_limit(problem.N)

    def tiles(self, problem: Recurrence, device: Device) -> tuple[str, ...]:
        return block_product.tiles(problem.N)

    def handicap(self, problem: Recurrence, configuration: Configuration) -> float:
        # The prediction counts only the launch and a block's reads and would split a batch too finely. So if the wide tile is
        # preferred, only a measurement or `force` selects the narrow one.
        preferred, *_ = block_product.tiles(problem.N)
        return 1.0 if configuration.tile == preferred else math.inf

    def predict(self, problem: Recurrence, configuration: Configuration, device: Device) -> Prediction:
        columns = block_product.columns(configuration.tile)
        blocks = problem.D * ceil_divide(problem.H, TILE_ROWS) * block_product.sample_blocks(problem.N, configuration.tile)
        read = blocks * (TILE_ROWS + columns) * problem.H * problem.item_bytes
        read_clocks = read / (L2_BYTES_PER_CLOCK * min(blocks, device.multiprocessors))
        bound = "launches" if read_clocks < LAUNCH_CLOCKS else "bytes of W and the state"
        return pass_prediction(problem, StepClocks(LAUNCH_CLOCKS + read_clocks, bound), device)

    def plan(self, problem: Recurrence, configuration: Configuration, device: Device) -> LaunchPlan:
        return _plan(problem, configuration.tile)


@lru_cache(maxsize=4096)
def _plan(problem: Recurrence, tile: str) -> LaunchPlan:
    kernel = _BY_ARGUMENTS[problem.math, problem.template_pass, str(block_product.COLUMN_TILES[tile])]
    grid = (ceil_divide(problem.H, TILE_ROWS), block_product.sample_blocks(problem.N, tile), problem.D)
    shared_bytes = block_product.shared_bytes(problem.dtype, tile)
    config = LaunchConfig(grid=grid, block=(block_product.THREADS, 1, 1), shared_bytes=shared_bytes)
    return LaunchPlan(kernel, config, "step")


STEP = Step()
