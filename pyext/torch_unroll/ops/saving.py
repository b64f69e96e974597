"""What an operator saves for its derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """Saves tensors for `backward` and for `jvp`."""
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def save_needed(ctx: Any, *tensors: tuple[Tensor | None, bool]) -> None:
    """Saves the tensors that backward needs, and None in place of the others; each pair is a tensor and whether it is needed.

    Everything is saved if a tangent may be wanted, or inside a transform of torch.func, which does not say which inputs need a
    gradient.
    """
    everything = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    save(ctx, *(tensor if everything or needed else None for tensor, needed in tensors))


def stand_in(saved: Tensor | None, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The saved tensor or, if it was not saved, zeros of the given shape with the dtype and device of `like`. The zeros take the
    memory of one element."""
    return like.new_zeros(()).expand(shape) if saved is None else saved
