"""Launch plans of the matrix products that simt and mma compute."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ...dtypes import CPP_TYPES
from ...shapes import SizeError
from ...table import Kernel, LaunchConfig, LaunchPlan
from .access import Walks, sum_walk, walks
from .cost import count_tiles
from .parameters import CSplits, CWalks
from .problem import Conv2dProblem
from .split_k import split_evenly
from .tile import Tile


@dataclass(frozen=True, eq=False)
class GemmPlan:
    """One product: how it is launched, how it walks memory, and how its depth is split."""

    launch: LaunchPlan
    walks: Walks
    splits: int
    split_depth: int  # wgrad: the pixels of one split; fprop and dgrad: the kernel's step, at whose multiples splits begin

    @cached_property
    def c_walks(self) -> CWalks:
        """The walks as the struct that kernel parameters contain."""
        return self.walks.struct()

    @cached_property
    def one_split(self) -> CSplits:
        """The field `splits` of the parameters of fprop and dgrad if the depth is not split."""
        return CSplits(sums=None, count=1, step=self.split_depth)


def epilogue_arguments(direction: str, dtype: str) -> tuple[str, ...]:
    """Returns the template argument, if any, that names the epilogue, which finishes a sum before it is stored."""
    cpp = CPP_TYPES[dtype]
    return {"fprop": (f"BiasEpilogue<{cpp}>",), "dgrad": (f"NoEpilogue<{cpp}>",), "wgrad": ()}[direction]


def require_tiles(problem: Conv2dProblem, tiles: int) -> None:
    """Raises SizeError if there are more tiles than the kernels can number."""
    if tiles >= 2**31:
        raise SizeError(f"conv2d_{problem.direction}: expected sizes whose tiles number fewer than 2^31, got {tiles} tiles")


def plan_gemm(variant: str, problem: Conv2dProblem, tile: Tile, kernel: Kernel, piece: int, splits: int) -> GemmPlan:
    """Plans the product of a problem, with fewer splits than asked for if some would have no steps.

    Args:
        piece: elements that a thread moves at a time.
    """
    dtype, step = problem.dtype, tile.step(problem.dtype)
    depth_per_split, splits = split_evenly(problem.depth, step, splits)
    blocks = count_tiles(problem.product, tile) * splits
    require_tiles(problem, blocks)
    config = LaunchConfig(grid=(blocks, 1, 1), block=(tile.threads, 1, 1), shared_bytes=tile.shared_bytes(dtype))
    walked, is_wgrad = walks(problem, piece), problem.direction == "wgrad"
    if splits > 1 and not is_wgrad:  # the sums of a split have channels innermost, whatever the result's layout
        walked = walked._replace(c=sum_walk(problem.product.columns, dtype))
    return GemmPlan(
        launch=LaunchPlan(kernel, config, variant),
        walks=walked,
        splits=splits,
        split_depth=depth_per_split if is_wgrad else step,
    )
