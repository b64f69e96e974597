"""How much memory a convolution may take beside its inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch.utils._contextlib import context_decorator

from torch_unroll.engines.compiled.conv2d_workspace import set_workspace_limit, workspace_limit
from torch_unroll.settings import Setting

Function = TypeVar("Function", bound=Callable[..., Any])

_setting = Setting(workspace_limit, set_workspace_limit)


class conv2d_workspace:  # noqa: N801 (a context manager, named like torch.no_grad)
    """Limits the workspace of one convolution, in bytes: `tu.conv2d_workspace(64 << 20)`, or within a `with` block only, or a
    function that it decorates.

    It holds for engines `cuda` and `cupy`, for every call of the process from now on, on whatever thread; it is 256 MiB at first.
    Where several blocks are open, the one entered last holds; they may end in any order. An object that has been entered limits
    nothing outside its blocks.
    Half of it is for packed images or columns,

        N · channels (those of a group rounded up to 16 bytes) · H · W · bytes of an element

    for each tensor that has to be packed, or N · C·R·S · P · Q · bytes of an element for columns; with less, a call works through
    its batch in parts, the smallest of which is one image. Half of it is for the sums of a product whose depth is split over
    several blocks,

        splits · elements of the result · 4 bytes (8 of float64)

    where wgrad's result is dw, channels rounded up likewise (to 32 bytes and more by variant `wgmma`: whole blocks), and has
    always one split; with less, there are fewer splits. So a call stays within the limit, except where one image or one split of
    wgrad does not; a packed filter comes on top.
    `torch_unroll.explain` tells what a call takes.

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
