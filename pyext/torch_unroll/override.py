"""Sending the functions of unmodified code through torch_unroll."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import HigherOrderOperator, _compute_keyset

from torch_unroll.conv2d import conv2d, conv_transpose2d
from torch_unroll.max_pool2d import max_pool2d, max_pool2d_with_indices
from torch_unroll.rnn import rnn, rnn_cell
from torch_unroll.torch_function import Redirect
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


def _unchecked(function: Any) -> Callable[..., Any]:
    """A copy of a Python function of torch's that asks no mode and no subclass; what it calls still does."""
    checks = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    namespace = {**function.__globals__, **dict.fromkeys(checks, lambda *_: False)}
    copy = FunctionType(function.__code__, namespace, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


#: The functions of torch that call code of the user's (hooks, and the models that a checkpoint runs again) and that a mode sees.
_CALLS_USER_CODE = {f: _unchecked(f) for f in (Tensor.backward, torch.autograd.backward, torch.autograd.grad)}


def _call_higher_order(operator: HigherOrderOperator, *args: Any, **kwargs: Any) -> Any:
    """What `HigherOrderOperator.__call__` does once it has asked the modes."""
    keys = _compute_keyset(args, kwargs, operator.non_fallthrough_keys)
    return operator.dispatch(keys.highestPriorityTypeId(), *args, **kwargs)


_TABLE: dict[Any, Callable[..., Any]] = {
    F.conv2d: conv2d,
    F.conv_transpose2d: conv_transpose2d,
    F.unfold: unfold,
    F.fold: fold,
    F.max_pool2d: max_pool2d,
    torch.max_pool2d: max_pool2d,
    F.max_pool2d_with_indices: max_pool2d_with_indices,
    torch.rnn_tanh: _rnn("tanh"),
    torch.rnn_relu: _rnn("relu"),
    torch.rnn_tanh_cell: _cell("tanh"),
    torch.rnn_relu_cell: _cell("relu"),
}


class override(Redirect):  # noqa: N801 (a context manager, named like torch.no_grad)
    """Within `with tu.override():`, torch's convolutions, poolings, folds and recurrences are torch_unroll's.

    It sees calls of `F.conv2d`, `F.conv_transpose2d`, `F.unfold`, `F.fold`, `F.max_pool2d`, `torch.rnn_tanh`, `torch.rnn_relu`
    and their cells, by modules too, in this thread, under `torch.compile` as well; and in a backward pass within the block, by
    hooks and by what `torch.utils.checkpoint` computes again.

    It does not see other threads, scripted modules, the bodies of custom operators, what a compiled function runs in a checkpoint
    or another higher-order operator, or a backward pass after the block has ended: a checkpoint then computes again with torch's
    functions, and may report that other tensors were saved. For those, and for good, use `torch_unroll.replace`.
    """

    def __init__(self) -> None:
        super().__init__(_TABLE)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if ours := self.table.get(func):
            return ours(*args, **kwargs)
        # A mode that torch.compile traces cannot be entered again inside a higher-order operator.
        if torch.compiler.is_compiling() or not (func in _CALLS_USER_CODE or isinstance(func, HigherOrderOperator)):
            return func(*args, **kwargs)
        return self._resume(func, types, args, kwargs)

    def _resume(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Calls a function of torch's with this mode active inside it; torch takes a mode off the stack while it asks it."""
        with self:
            for kind in types:  # a subclass is asked after the modes
                if kind not in (Tensor, torch.nn.Parameter):
                    result = kind.__torch_function__(func, types, args, kwargs)
                    if result is not NotImplemented:
                        return result
            if isinstance(func, HigherOrderOperator):
                return _call_higher_order(func, *args, **kwargs)
            return _CALLS_USER_CODE[func](*args, **kwargs)
