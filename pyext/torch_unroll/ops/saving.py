"""What an operator keeps for its derivatives: what backward needs of it, and no more."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torch_unroll.ops.registration import save


def save_needed(ctx: Any, *tensors: tuple[Tensor | None, bool]) -> None:
    """Keeps each tensor that backward needs, and None in place of the others.

    All are kept where a tangent may be asked for, or where torch.func does not tell what needs a gradient.
    """
    everything = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    save(ctx, *(tensor if everything or needed else None for tensor, needed in tensors))


def stand_in(saved: Tensor | None, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A saved tensor or, if it was not kept, zeros of its shape in the memory of one."""
    return like.new_zeros(()).expand(shape) if saved is None else saved
