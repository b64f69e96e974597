"""Sending the functions of unmodified code through torch_unroll."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torch_unroll.conv2d import conv2d, conv_transpose2d
from torch_unroll.max_pool2d import max_pool2d
from torch_unroll.rnn import rnn, rnn_cell
from torch_unroll.unfold import fold, unfold


def _rnn(nonlinearity: str) -> Callable[..., Any]:
    def run(first: Tensor, second: Tensor, third: Any, *rest: Any) -> tuple[Tensor, Tensor]:
        if isinstance(third, Tensor):  # the packed overload: data, batch_sizes, hx, params, ...
            params, _, num_layers, dropout, training, bidirectional = rest
            options: dict[str, Any] = {"batch_sizes": second}
            input, hx = first, third
        else:  # input, hx, params, ...
            _, num_layers, dropout, training, bidirectional, batch_first = rest
            options = {"batch_first": batch_first}
            input, hx, params = first, second, third
        return rnn(
            input,
            hx,
            list(params),
            nonlinearity=nonlinearity,
            num_layers=num_layers,
            bidirectional=bidirectional,
            dropout=dropout,
            training=training,
            **options,
        )

    return run


def _cell(nonlinearity: str) -> Callable[..., Tensor]:
    def run(
        input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
    ) -> Tensor:
        return rnn_cell(input, hx, w_ih, w_hh, b_ih, b_hh, nonlinearity=nonlinearity)

    return run


def _max_pool2d_with_indices(*args: Any, **kwargs: Any) -> Any:
    kwargs["return_indices"] = True
    return max_pool2d(*args[:6], **kwargs)


class override(TorchFunctionMode):  # noqa: N801 (a context manager, named like torch.no_grad)
    """Within `with tu.override():`, torch's convolutions, poolings, folds and recurrences are torch_unroll's.

    It sees calls of `F.conv2d`, `F.conv_transpose2d`, `F.unfold`, `F.fold`, `F.max_pool2d`, `torch.rnn_tanh`, `torch.rnn_relu`
    and their cells, by modules too, in this thread, under `torch.compile` as well. It does not see other threads, scripted
    modules, or a checkpoint's recomputation after the block has ended; for those, and for good, use `torch_unroll.replace`.
    """

    table: ClassVar[dict[Any, Callable[..., Any]]] = {
        F.conv2d: conv2d,
        F.conv_transpose2d: conv_transpose2d,
        F.unfold: unfold,
        F.fold: fold,
        F.max_pool2d: max_pool2d,
        torch.max_pool2d: max_pool2d,
        F.max_pool2d_with_indices: _max_pool2d_with_indices,
        torch.rnn_tanh: _rnn("tanh"),
        torch.rnn_relu: _rnn("relu"),
        torch.rnn_tanh_cell: _cell("tanh"),
        torch.rnn_relu_cell: _cell("relu"),
    }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ours = self.table.get(func)
        return (ours or func)(*args, **(kwargs or {}))
