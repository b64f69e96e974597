"""Plans the blocks of wgrad's launches that compute the bias gradient (`bias_gradient.cuh`)."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from ...arithmetic import ceil_divide
from ...shapes import SizeError
from ...table import LaunchPlan

_CHANNELS = 32  # kBiasChannels


@lru_cache(maxsize=4096)
def with_bias_gradient(launch: LaunchPlan, channels: int, splits: int) -> LaunchPlan:
    """Returns the launch of a product with additional blocks, which sum the `channels` channels of dy over each split.

    Raises:
        SizeError: the grid would have too many blocks.
    """
    blocks = launch.config.grid[0] + splits * ceil_divide(channels, _CHANNELS)
    if blocks >= 2**31:
        raise SizeError(f"conv2d_wgrad: expected sizes for fewer than 2^31 blocks, got {blocks} blocks")
    return LaunchPlan(launch.kernel, replace(launch.config, grid=(blocks, 1, 1)), launch.variant)
