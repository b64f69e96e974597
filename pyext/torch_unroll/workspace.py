"""How much memory a convolution may take besides its inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch.utils._contextlib import context_decorator

from torch_unroll.engines.compiled.conv2d_workspace import set_workspace_limit, workspace_limit
from torch_unroll.settings import Setting

Function = TypeVar("Function", bound=Callable[..., Any])

_setting = Setting(workspace_limit, set_workspace_limit)


class conv2d_workspace:  # noqa: N801 (a context manager, named like torch.no_grad)
    """Limits the workspace of each convolution, in bytes: `tu.conv2d_workspace(64 << 20)` for all later calls, or only within a
    `with` block, or in a function that it decorates.

    The limit applies to engines `cuda` and `cupy`, on every thread of the process; initially it is 256 MiB. Of several open
    blocks, the one that was entered last determines the limit, and they may end in any order. An object that has been used in a
    `with` block or as a decorator limits nothing elsewhere.

    Half of the limit is for packed images or columns. Packing takes

        N · channels (those of a group rounded up to 16 bytes) · H · W · bytes of an element

    for each tensor that has to be packed, and columns take N · C·R·S · P · Q · bytes of an element. If this is more than half of
    the limit, a call processes its batch in parts, of one image or more. The other half is for the sums of a product whose depth
    is split over several blocks. They take

        splits · elements of the result · 4 bytes (8 for float64)

    and there are fewer splits if this is more than the other half. wgrad, whose result is dw, writes such sums even for one
    split. Tensor cores compute dw with the channels of a group rounded up to 16 bytes; variant `wgmma` rounds those of x up to a
    multiple of 32, 64 or 128 bytes.

    A call stays within the limit unless a single image, or a single split of wgrad, does not fit into its half. A packed filter
    is not counted, and neither is the copy that variant `wgmma` makes of an image tensor whose strides TMA cannot describe, such
    as a channels_last batch made by `expand`. `torch_unroll.explain` reports how much a call takes.

    Args:
        limit: bytes, 0 or more.

    Raises:
        TypeError: `limit` is not an int.
        ValueError: `limit` is below 0.
    """

    def __init__(self, limit: int):
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(f"limit: expected a number of bytes as int, got {type(limit).__name__}")
        if limit < 0:
            raise ValueError(f"limit: expected 0 or more bytes, got {limit}")
        self.limit = limit
        _setting.set(self, limit)

    def __enter__(self) -> None:
        _setting.enter(self, self.limit)

    def __exit__(self, *_: object) -> None:
        _setting.leave(self)

    def __call__(self, function: Function) -> Function:
        _setting.unset(self)
        return cast(Function, context_decorator(lambda: self, function))
