"""Every op as a function of its differentiable tensors, and the same computation with torch's functions: a table for tests that
transform or differentiate calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import torch_unroll as tu


@dataclass(frozen=True)
class Operation:
    """`ours` and `torchs` accept tensors of these shapes and return one tensor; `ours` also accepts the engine."""

    ours: Callable[..., Tensor]
    torchs: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]

    def tensors(self, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> list[Tensor]:
        """Inputs with the same values in every call."""
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(shape, dtype=torch.float64, generator=generator).to(device, dtype) * 0.5 for shape in self.shapes]

    def on(self, engine: str) -> Callable[..., Tensor]:
        """`ours` bound to an engine."""
        return lambda *tensors: self.ours(*tensors, engine=engine)


_LENGTHS, _SIZES = torch.tensor([3, 1]), torch.tensor([2, 2, 1])
_LAYER = ((4, 3), (4, 4), (4,), (4,))
_ABOVE = ((4, 4), (4, 4), (4,), (4,))
_BOTH_ABOVE = ((4, 8), (4, 4), (4,), (4,))


def _ours_recurrent(**options: Any) -> Callable[..., Tensor]:
    def run(x: Tensor, h0: Tensor, *weights: Tensor, engine: str) -> Tensor:
        return torch.cat([part.flatten() for part in tu.rnn(x, h0, list(weights), engine=engine, **options)])

    return run


def _torchs_recurrent(
    nonlinearity: str = "tanh", num_layers: int = 1, bidirectional: bool = False, batch_sizes: Tensor | None = None
) -> Callable[..., Tensor]:
    def run(x: Tensor, h0: Tensor, *weights: Tensor) -> Tensor:
        function: Any = torch.rnn_tanh if nonlinearity == "tanh" else torch.rnn_relu
        settings = (list(weights), True, num_layers, 0.0, False, bidirectional)
        outputs = function(x, h0, *settings, False) if batch_sizes is None else function(x, batch_sizes, h0, *settings)
        return torch.cat([part.flatten() for part in outputs])

    return run


def _recurrent(*shapes: tuple[int, ...], **options: Any) -> Operation:
    return Operation(_ours_recurrent(**options), _torchs_recurrent(**options), shapes)


def _padded(x: Tensor, h0: Tensor, *weights: Tensor) -> Tensor:
    """torch's recurrence, run on each sample separately with its own length."""
    samples = [
        torch.rnn_tanh(x[:length, n : n + 1], h0[:, n : n + 1], list(weights), True, 1, 0.0, False, False, False)
        for n, length in enumerate(_LENGTHS.tolist())
    ]
    outputs = [F.pad(output, (0, 0, 0, 0, 0, x.shape[0] - output.shape[0])) for output, _ in samples]
    states = [state for _, state in samples]
    return torch.cat([torch.cat(outputs, 1).flatten(), torch.cat(states, 1).flatten()])


def _longest(x: Tensor) -> Tensor:
    return torch.stack([x[:length, n].amax(0) for n, length in enumerate(_LENGTHS.tolist())])


OPERATIONS: dict[str, Operation] = {
    "conv2d": Operation(
        lambda x, w, b, engine: tu.conv2d(x, w, b, stride=(2, 1), padding=1, groups=2, engine=engine),
        lambda x, w, b: F.conv2d(x, w, b, stride=(2, 1), padding=1, groups=2),
        ((2, 4, 5, 4), (4, 2, 3, 2), (4,)),
    ),
    "conv_transpose2d": Operation(
        lambda x, w, b, engine: tu.conv_transpose2d(x, w, b, 2, 1, (1, 0), engine=engine),
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1, (1, 0)),
        ((2, 3, 3, 2), (3, 2, 3, 3), (2,)),
    ),
    "unfold": Operation(
        lambda x, engine: tu.unfold(x, (3, 2), padding=1, stride=2, engine=engine),
        lambda x: F.unfold(x, (3, 2), padding=1, stride=2),
        ((2, 2, 4, 3),),
    ),
    "fold": Operation(lambda x, engine: tu.fold(x, (4, 3), 2, engine=engine), lambda x: F.fold(x, (4, 3), 2), ((2, 8, 6),)),
    "max_pool2d": Operation(
        lambda x, engine: tu.max_pool2d(x, 3, 2, 1, engine=engine), lambda x: F.max_pool2d(x, 3, 2, 1), ((2, 2, 5, 4),)
    ),
    "max_over_time": Operation(
        lambda x, engine: tu.max_over_time(x, _LENGTHS, engine=engine), lambda x: _longest(x), ((4, 2, 3),)
    ),
    "rnn": _recurrent((3, 2, 3), (1, 2, 4), *_LAYER),
    "rnn-relu-layers": _recurrent((3, 2, 3), (2, 2, 4), *_LAYER, *_ABOVE, nonlinearity="relu", num_layers=2),
    "rnn-bidirectional": _recurrent(
        (3, 2, 3), (4, 2, 4), *_LAYER, *_LAYER, *_BOTH_ABOVE, *_BOTH_ABOVE, num_layers=2, bidirectional=True
    ),
    "rnn-packed": _recurrent((5, 3), (2, 2, 4), *_LAYER, *_LAYER, batch_sizes=_SIZES, bidirectional=True),
    "rnn-lengths": Operation(_ours_recurrent(lengths=_LENGTHS), _padded, ((3, 2, 3), (1, 2, 4), *_LAYER)),
    "rnn_cell": Operation(
        lambda x, h, *weights, engine: tu.rnn_cell(x, h, *weights, engine=engine), torch.rnn_tanh_cell, ((2, 3), (2, 4), *_LAYER)
    ),
}
