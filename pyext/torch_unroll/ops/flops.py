"""The FLOPs of convolution and recurrence for `torch.utils.flop_counter`: a multiplication and the addition of its product count
as two, as in torch's formulas. Pooling, unfold and fold count as none."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

Shape = tuple[int, ...]


def _fprop(x: Shape, w: Shape, *_: Any, out_shape: Shape) -> int:
    return 2 * out_shape[0] * prod(out_shape[2:]) * prod(w)


def _dgrad(dy: Shape, w: Shape, *_: Any, out_shape: Shape) -> int:
    return 2 * dy[0] * prod(dy[2:]) * prod(w)


def _wgrad(dy: Shape, x: Shape, w_size: Shape, *_: Any, out_shape: Shape) -> int:
    """Like torch's formula, this counts every group as if it multiplied all channels."""
    return 2 * prod(dy) * x[1] * prod(w_size)


def _steps(rows: Shape, w_hh: Shape) -> int:
    """The FLOPs of a recurrence over rows (..., D·H) with w_hh (D, H, H): each step multiplies the state of each direction by the
    matrix W_hh of that direction."""
    return 2 * prod(rows) * w_hh[-1]


def _cell_forward(x: Shape, h: Shape, w_ih: Shape, w_hh: Shape, *_: Any, out_shape: Shape) -> int:
    return 2 * x[0] * (prod(w_ih) + prod(w_hh))


def _cell_backward(dh_next: Shape, h_next: Shape, w_ih: Shape, w_hh: Shape, *_: Any, out_shape: Any) -> int:
    return 2 * dh_next[0] * (prod(w_ih) + prod(w_hh))


_FORMULAS: dict[str, Callable[..., int]] = {
    "conv2d_fprop": _fprop,
    "conv2d_dgrad": _dgrad,
    "conv2d_wgrad": _wgrad,
    "rnn_forward": lambda z, w_hh, *_, out_shape: _steps(z, w_hh),
    "rnn_backward": lambda dh, h, w_hh, *_, out_shape: _steps(h, w_hh),
    "rnn_tangent": lambda p, h, w_hh, *_, out_shape: _steps(h, w_hh),
    "rnn_cell_forward": _cell_forward,
    "rnn_cell_backward": _cell_backward,
}


@cache
def register() -> None:
    """Registers the formulas with the counters that are active and with later ones."""
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    for name, formula in _FORMULAS.items():
        register_flop_formula(getattr(torch.ops.torch_unroll, name))(formula)
    for mode in _get_current_dispatch_mode_stack():
        # An active counter has a copy of the registry.
        registry: dict[Any, Any] = getattr(getattr(mode, "counter", None), "flop_registry", {})
        for name in _FORMULAS:
            packet = getattr(torch.ops.torch_unroll, name)
            registry.setdefault(packet, flop_registry[packet])
