"""`__torch_function__`: tensor subclasses, torch.fx's proxies and modes are asked before a function of this package computes.

They were written for torch's functions, so they are told of the torch function of the same meaning, with its arguments. Whoever
then calls that function, as `super().__torch_function__` does, arrives at this package again, with the engine that was asked for.
A proxy is told of this package's own function: it is what the recorded program has to call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import fx
from torch.overrides import TorchFunctionMode, _get_overloaded_args, _pop_mode_temporarily
from torch.utils._device import DeviceContext


class Redirect(TorchFunctionMode):
    """Sends calls of torch's functions to others, by a table."""

    def __init__(self, table: Mapping[Any, Callable[..., Any]]):
        super().__init__()
        self.table = table

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.table.get(func, func)(*args, **(kwargs or {}))


def ask(
    ours: Callable[..., Any],
    tensors: Iterable[Any],
    arguments: tuple[Any, ...],
    options: Mapping[str, Any],
    theirs: Callable[..., Any] | None = None,
    twin: Callable[..., Any] | None = None,
    **named: Any,
) -> Any:
    """What those say that `torch.overrides.has_torch_function` found among tensors, or in a mode, to a call of a function.

    Args:
        ours: this package's function.
        tensors: those of its arguments that are asked.
        arguments: positional, as `theirs` takes them.
        options: those that torch's function has not; None stands for one that was left out.
        theirs: torch's function, where there is one that means the same.
        twin: what computes a call of `theirs` here, if that is not `ours` itself.
        named: further arguments, where torch's function tells of them by their names.

    Raises:
        TypeError: none of them knows an answer.
    """
    options = {name: value for name, value in options.items() if value is not None}
    compute = partial(twin or ours, **options)
    asked = _get_overloaded_args(tensors)
    types = tuple(map(type, asked))
    function = theirs or ours
    redirect = Redirect({function: compute})
    told = named if theirs else {**named, **options}
    if torch._C._is_torch_function_mode_enabled():
        with _pop_mode_temporarily() as mode:
            # The first would send the call here, without the options; the second has a say where tensors are made, no more.
            if isinstance(mode, (Redirect, DeviceContext)):
                return compute(*arguments, **named)
            with redirect:
                result = mode.__torch_function__(function, types, arguments, told)
        if result is not NotImplemented:
            return result
    for argument in asked:
        if isinstance(argument, fx.Proxy):
            result = argument.__torch_function__(ours, types, arguments, {**named, **options})
        else:
            with redirect:
                result = argument.__torch_function__(function, types, arguments, told)
        if result is not NotImplemented:
            return result
    raise TypeError(f"torch_unroll.{ours.__name__}: no implementation for {', '.join(kind.__name__ for kind in types)}")
