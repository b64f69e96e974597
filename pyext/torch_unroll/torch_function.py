"""`__torch_function__`: a call is offered to tensor subclasses, torch.fx's proxies and modes before this package computes it.

Subclasses and modes are written for torch's functions, so they are passed the torch function with the same meaning, if there is
one, and its arguments. If they call that function, as `super().__torch_function__` does, the call comes back to this package,
with the engine that was asked for. A proxy is passed this package's own function, because the recorded program has to call that
one.
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
    """Replaces calls of torch's functions with calls of the functions that a table has for them."""

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
    """Offers a call to the active mode and to the arguments that override it; returns the first result that is not
    NotImplemented.

    Args:
        ours: this package's function.
        tensors: the arguments that may override the call.
        arguments: the positional arguments, as `theirs` accepts them.
        options: arguments that torch's function lacks; None marks one that was omitted.
        theirs: torch's function with the same meaning, if there is one.
        twin: the function that computes a call of `theirs` in this package, if that is not `ours` itself.
        named: further arguments, passed by name.

    Raises:
        TypeError: no mode and no argument implements the call.
    """
    options = {name: value for name, value in options.items() if value is not None}
    compute = partial(twin or ours, **options)
    overriding = _get_overloaded_args(tensors)
    types = tuple(map(type, overriding))
    function = theirs or ours
    redirect = Redirect({function: compute})
    keywords = named if theirs else {**named, **options}
    if torch._C._is_torch_function_mode_enabled():
        with _pop_mode_temporarily() as mode:
            # A Redirect would send the call back here without the options, and a DeviceContext concerns only functions that
            # create tensors.
            if isinstance(mode, (Redirect, DeviceContext)):
                return compute(*arguments, **named)
            with redirect:
                result = mode.__torch_function__(function, types, arguments, keywords)
        if result is not NotImplemented:
            return result
    for argument in overriding:
        if isinstance(argument, fx.Proxy):
            result = argument.__torch_function__(ours, types, arguments, {**named, **options})
        else:
            with redirect:
                result = argument.__torch_function__(function, types, arguments, keywords)
        if result is not NotImplemented:
            return result
    raise TypeError(f"torch_unroll.{ours.__name__}: no implementation for {', '.join(kind.__name__ for kind in types)}")
