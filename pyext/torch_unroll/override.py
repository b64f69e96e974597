"""Makes calls of torch's functions in unmodified code run torch_unroll's functions instead."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import HigherOrderOperator, _compute_keyset
from torch.utils._contextlib import context_decorator

from torch_unroll.conv2d import conv2d, conv_transpose2d
from torch_unroll.max_pool2d import max_pool2d, max_pool2d_with_indices
from torch_unroll.rnn import rnn, rnn_cell
from torch_unroll.signatures import like, like_rnn, like_rnn_cell
from torch_unroll.torch_function import Redirect
from torch_unroll.unfold import fold, unfold

Function = TypeVar("Function", bound=Callable[..., Any])


def _unchecked(function: Any) -> Callable[..., Any]:
    """A copy of one of torch's Python functions that consults no mode and no subclass; the functions that it calls still do."""
    checks = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    namespace = {**function.__globals__, **dict.fromkeys(checks, lambda *_: False)}
    copy = FunctionType(function.__code__, namespace, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


#: torch's functions that call user code (hooks, or models that a checkpoint runs again) -> copies that consult no mode.
_CALLS_USER_CODE = {f: _unchecked(f) for f in (Tensor.backward, torch.autograd.backward, torch.autograd.grad)}


def _call_higher_order(operator: HigherOrderOperator, *args: Any, **kwargs: Any) -> Any:
    """Does what `HigherOrderOperator.__call__` does after it has consulted the modes."""
    keys = _compute_keyset(args, kwargs, operator.non_fallthrough_keys)
    return operator.dispatch(keys.highestPriorityTypeId(), *args, **kwargs)


_TABLE: dict[Any, Callable[..., Any]] = {
    F.conv2d: like(F.conv2d, conv2d, "input weight", "bias stride padding dilation groups"),
    F.conv_transpose2d: like(
        F.conv_transpose2d, conv_transpose2d, "input weight", "bias stride padding output_padding groups dilation"
    ),
    F.unfold: unfold,
    F.fold: fold,
    F.max_pool2d: max_pool2d,
    torch.max_pool2d: like(torch.max_pool2d, max_pool2d, "input kernel_size", "stride padding dilation ceil_mode"),
    F.max_pool2d_with_indices: max_pool2d_with_indices,
    torch.rnn_tanh: like_rnn(torch.rnn_tanh, partial(rnn, nonlinearity="tanh")),
    torch.rnn_relu: like_rnn(torch.rnn_relu, partial(rnn, nonlinearity="relu")),
    torch.rnn_tanh_cell: like_rnn_cell(torch.rnn_tanh_cell, partial(rnn_cell, nonlinearity="tanh")),
    torch.rnn_relu_cell: like_rnn_cell(torch.rnn_relu_cell, partial(rnn_cell, nonlinearity="relu")),
}


class override(Redirect):  # noqa: N801 (a context manager, named like torch.no_grad)
    """Replaces the functions of torch that are listed below with torch_unroll's, within a block `with tu.override():` or a
    function that `@tu.override()` decorates.

    It affects calls of `F.conv2d`, `F.conv_transpose2d`, `F.unfold`, `F.fold`, `F.max_pool2d`, `F.max_pool2d_with_indices`,
    `torch.max_pool2d`, `torch.rnn_tanh`, `torch.rnn_relu` and their cells on this thread, whether functions or modules make them,
    also under `torch.compile`. It also affects a backward pass within the block: its hooks, and what `torch.utils.checkpoint`
    computes again. Arguments are accepted as torch accepts them, by position or by name.

    It does not affect other threads, scripted modules, the bodies of custom operators, what a compiled function runs inside a
    checkpoint or another higher-order operator, or a backward pass after the block has ended: a checkpoint then computes again
    with torch's functions, and may report that different tensors were saved. `torch_unroll.replace` changes modules permanently,
    so it also works in those cases, except for scripted modules.
    """

    def __init__(self) -> None:
        super().__init__(_TABLE)

    def __call__(self, function: Function) -> Function:
        mode = type(self)
        return cast(Function, context_decorator(lambda: mode(), function))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if ours := self.table.get(func):
            return ours(*args, **kwargs)
        # torch.compile cannot trace a mode that is entered again inside a higher-order operator.
        if torch.compiler.is_compiling() or not (func in _CALLS_USER_CODE or isinstance(func, HigherOrderOperator)):
            return func(*args, **kwargs)
        return self._resume(func, types, args, kwargs)

    def _resume(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Calls one of torch's functions with this mode active inside it; torch takes a mode off the stack while that mode
        handles a call."""
        with self:
            for kind in types:  # subclasses are consulted after the modes
                if kind not in (Tensor, torch.nn.Parameter):
                    result = kind.__torch_function__(func, types, args, kwargs)
                    if result is not NotImplemented:
                        return result
            if isinstance(func, HigherOrderOperator):
                return _call_higher_order(func, *args, **kwargs)
            return _CALLS_USER_CODE[func](*args, **kwargs)
